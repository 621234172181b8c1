"""Two real workers on Redis and PostgreSQL, watched."""

from collections.abc import Iterator

import pytest

from fakes.fleet import ServeProcess
from fakes.gateway import provider_environment
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
    """Two workers that the tests of this folder share; who kills one waits for the next."""
    environment = provider_environment("fake", up.base_url)
    # One of its own: workers compare and sweep whatever they find in theirs, and other tests empty the shared one.
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        fleet = ServeProcess(
            tmp_path_factory.mktemp("watched") / "data",
            redis_url=redis.url,
            database_url=postgres_server.create_database(),
            environment=environment,
        )
        with fleet as running:
            yield running
