"""Real servers for whoever asks for one: started once per run when first needed, emptied for each test.

A program that is missing fails the tests that need it, with the name of the package; nothing is skipped.
"""

from collections.abc import Iterator

import pytest

from fakes.servers import PostgresServer, RedisCluster, RedisServer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that every test of this run shares: who breaks it makes one of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the shared Redis, emptied of data and scripts."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def timed_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A shared Redis whose clock stands still until ``set_time_ms`` or ``advance_ms``; flush it first."""
    with RedisServer(tmp_path_factory.mktemp("redis"), fake_time=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters that every test of this run shares; flush them first."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL that every test of this run shares: who breaks it makes one of its own."""
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of its own."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="session")
def _migrated_template(postgres_server: PostgresServer) -> str:
    from fakes.store import migrate  # noqa: PLC0415 - tests without a database shall not load SQLAlchemy

    url = postgres_server.create_database()
    migrate(url)
    return url


@pytest.fixture
def migrated_database_url(postgres_server: PostgresServer, _migrated_template: str) -> Iterator[str]:
    """A database of its own with the newest schema and no rows."""
    url = postgres_server.create_database(_migrated_template)
    yield url
    postgres_server.drop_database(url)
