"""A gateway in front of one provider with completions of its own, and one that has chat completions only."""

from collections.abc import Iterator

import pytest

from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

TIMES = {
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "1",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "1",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "2",
    "METERHOUSE_SHIP_SECONDS": "0.01",
}


@pytest.fixture(scope="module")
def both(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """``fake/...`` is passed through, ``deepseek/...`` goes over chat."""
    environment = provider_environment("fake", up.base_url, **TIMES) | provider_environment("deepseek", up.base_url)
    with Gateway(tmp_path_factory.mktemp("completions") / "data", environment) as running:
        yield running
