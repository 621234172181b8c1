"""A gateway in front of one provider with completions of its own, and one that has chat completions only."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

SETTINGS = {"METERHOUSE_SHIP_SECONDS": "0.01"}


def started(folder: Path, up: FakeUpstream, **more: str) -> Gateway:
    environment = provider_environment("fake", up.base_url, **SETTINGS, **more)
    return Gateway(folder / "data", environment | provider_environment("deepseek", up.base_url))


@pytest.fixture(scope="module")
def both(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """``fake/...`` is passed through, ``deepseek/...`` goes over chat."""
    with started(tmp_path_factory.mktemp("completions"), up) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The same, for a provider that stops in the middle: it is given up after a second."""
    with started(tmp_path_factory.mktemp("hasty"), up, METERHOUSE_IDLE_TIMEOUT_SECONDS="1") as running:
        yield running
