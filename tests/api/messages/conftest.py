"""One provider that is asked in both ways, a gateway in front of it, and Anthropic's own SDK."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from api.messages.asking import Wires
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = {
        **provider_environment("fake", up.base_url),
        **provider_environment("anthropic", up.base_url.removesuffix("/v1")),
        "METERHOUSE_SHIP_SECONDS": "0.01",
        "METERHOUSE_KEEP_ALIVE_SECONDS": "0.1",
        "METERHOUSE_MAX_BODY_BYTES": "200000",
    }
    with Gateway(tmp_path_factory.mktemp("messages") / "data", environment) as running:
        yield running


@pytest.fixture(scope="session")
def client(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def wires(up: FakeUpstream, gateway: Gateway) -> Wires:
    return Wires(up, gateway)


@pytest.fixture(params=["fake", "anthropic"])
def row(request: pytest.FixtureRequest) -> Any:
    """A provider that is asked over chat completions, and Anthropic, to whom requests are passed through."""
    return request.param
