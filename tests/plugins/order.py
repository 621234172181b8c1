"""Keeps the modules of a folder together, in whatever order pytest-randomly has put folders, modules and tests.

What a test of a folder needs (workers, a browser) is then begun for one folder after the other.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places: dict[str, int] = {}
    for item in items:
        for folder in _folders_above(item):
            places.setdefault(folder, len(places))
    items.sort(key=lambda item: [places[folder] for folder in _folders_above(item)])


def folder_of(test: str) -> str:
    """Return the folder of a test, by its id."""
    return test.partition("::")[0].rpartition("/")[0]


def _folders_above(item: pytest.Item) -> list[str]:
    """Return the folders that an item lies in, the outermost first."""
    names = folder_of(item.nodeid).split("/")
    return ["/".join(names[:count]) for count in range(1, len(names) + 1)]
