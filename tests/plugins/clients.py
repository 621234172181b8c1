"""The tests of clients in environments of their own: left out unless the environment says where those are.

``infra/test --clients`` installs them and sets ``METERHOUSE_TEST_CLIENTS`` to the folder.
"""

import os

import pytest

VARIABLE = "METERHOUSE_TEST_CLIENTS"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clients: needs other clients than the SDKs (infra/test --clients)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get(VARIABLE):
        left_out = [item for item in items if item.get_closest_marker("clients")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
