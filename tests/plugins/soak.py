"""The soak: left out unless the environment says for how many minutes it goes on (``infra/test --soak [MINUTES]``)."""

import os

import pytest

VARIABLE = "METERHOUSE_TEST_SOAK"


def minutes() -> int:
    """For how long; 0: not at all."""
    return int(os.environ.get(VARIABLE) or 0)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: goes on for as long as it is told to (infra/test --soak)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not minutes():
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
