"""Two real workers on a unix socket, and the real nginx with the shipped nginx.conf in front of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.fleet import ServeProcess
from fakes.gateway import provider_environment
from fakes.nginx_server import NginxServer
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    up: FakeUpstream,
) -> Iterator[ServeProcess]:
    """Two workers that all tests share; who kills some leaves two that serve."""
    folder = tmp_path_factory.mktemp("edge")
    # One of its own: workers compare and sweep whatever they find in theirs, and other tests empty the shared one.
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        fleet = ServeProcess(
            folder / "data",
            redis_url=redis.url,
            database_url=postgres_server.create_database(),
            environment=provider_environment("fake", up.base_url, METERHOUSE_SHUTDOWN_SECONDS="30"),
            bind=f"unix:{folder / 'gateway.sock'}",
        )
        with fleet as running:
            yield running


@pytest.fixture(scope="session")
def socket_path(fleet: ServeProcess) -> Path:
    return Path(fleet.bind.removeprefix("unix:"))


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory, socket_path: Path) -> Iterator[NginxServer]:
    """nginx.conf as it is shipped, for tests that break nothing."""
    with NginxServer(tmp_path_factory.mktemp("nginx"), socket=socket_path) as server:
        yield server


@pytest.fixture
def own_edge(tmp_path: Path, socket_path: Path) -> Iterator[NginxServer]:
    """One for a test that breaks it."""
    with NginxServer(tmp_path / "nginx", socket=socket_path) as server:
        yield server
