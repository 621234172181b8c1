"""The databases that the contract suites of SQL run over: SQLite and PostgreSQL, the same tests."""

import pytest

from fakes.store import begin_store, migrate, url_of
from meterhouse.db.engine import close, open_engine
from meterhouse.db.tables_billing import metadata

BACKENDS = ("sqlite", "postgresql")

# As the superuser, for whom the triggers that refuse a DELETE are off.
EMPTY = "SET session_replication_role = replica;" + "".join(
    f'DELETE FROM "{table.name}";' for table in metadata.sorted_tables
)


@pytest.fixture(scope="session")
def shared_database_url(postgres_server):
    """One for all: making a database takes 0.3 s, emptying it 0.03 s."""
    url = postgres_server.create_database()
    migrate(url)
    return url


@pytest.fixture(params=BACKENDS)
def empty_url(request, tmp_path):
    """A database with nothing in it, not even tables."""
    if request.param == "postgresql":
        return request.getfixturevalue("database_url")
    return url_of(tmp_path / "100% new.db")


@pytest.fixture(params=BACKENDS)
def store_url(request, tmp_path):
    """A database at the newest migration without rows. Its tables stay as they are."""
    if request.param == "sqlite":
        yield url_of(begin_store(tmp_path / "store.db"))
    else:
        url = request.getfixturevalue("shared_database_url")
        yield url
        request.getfixturevalue("postgres_server").execute(EMPTY, url)


@pytest.fixture
async def engine(store_url):
    engine = open_engine(store_url)
    yield engine
    await close(engine)


@pytest.fixture
def is_postgres(store_url):
    return store_url.startswith("postgresql")
