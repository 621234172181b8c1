"""An installation for each module of the matrix. A module says its own in ``HOUSE``: arguments of ``House``."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from failure.matrix.house import House


@pytest.fixture(scope="module")
def house(request: Any, tmp_path_factory: pytest.TempPathFactory, figures: Callable[..., None]) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("house"), **getattr(request.module, "HOUSE", {})) as running:
        yield running
        figures(
            kills_caused=running.kills,
            requests_judged=running.requests,
            records_lost=running.lost,
            records_doubled=running.doubled,
        )
