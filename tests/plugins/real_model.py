"""The tests against real model servers: left out unless the environment says where those are installed.

``infra/test --real-model`` installs them and sets ``METERHOUSE_TEST_REAL_MODEL`` to the Python that has them.
"""

import os

import pytest

VARIABLE = "METERHOUSE_TEST_REAL_MODEL"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_model: needs a real model server (infra/test --real-model)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get(VARIABLE):
        left_out = [item for item in items if item.get_closest_marker("real_model")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
