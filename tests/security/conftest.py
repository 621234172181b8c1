"""One provider and one gateway for all attacks that break neither; an attack that needs others starts its own."""

from collections.abc import Iterator

import pytest

from api.asking import Capture
from fakes.gateway import Gateway, provider_environment
from fakes.nginx_server import NginxServer
from fakes.upstream import FakeUpstream

SETTINGS = {
    "METERHOUSE_SHIP_SECONDS": "0.01",
    "METERHOUSE_ADMIN_RATE": "100000/minute",
    "METERHOUSE_ADMIN_FAILURE_RATE": "100000/minute",
}


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment("fake", up.base_url, **SETTINGS)
    folder = tmp_path_factory.mktemp("security")
    with Gateway(folder / "data", environment, socket_path=folder / "gateway.sock") as running:
        yield running


@pytest.fixture(scope="session")
def guarded(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NginxServer]:
    """The shipped nginx.conf in front of the same gateway."""
    with NginxServer(tmp_path_factory.mktemp("guarded"), socket=gateway.data.parent / "gateway.sock") as server:
        yield server


@pytest.fixture(scope="session")
def capture(up: FakeUpstream) -> Capture:
    return Capture(up)
