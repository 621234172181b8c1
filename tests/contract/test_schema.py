import asyncio
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fakes.store import MIGRATIONS, change_schema, url_of
from meterhouse.db.engine import close, open_engine, reading, writing
from meterhouse.db.schema import check_schema, newest_revision, upgrade
from meterhouse.db.tables import is_ours
from meterhouse.db.tables_billing import metadata
from meterhouse.errors import StoreDown


@pytest.fixture
def path(tmp_path):
    return tmp_path / "100% new.db"


@pytest.fixture
async def engine(empty_url):
    """A database with nothing in it."""
    engine = open_engine(empty_url)
    yield engine
    await close(engine)


async def tables_of(engine):
    async with reading(engine) as connection:
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    return {name for name in names if is_ours(name, "table", {})}


async def test_the_migrations_make_the_tables_that_the_code_expects(empty_url, engine):
    await upgrade(empty_url, MIGRATIONS)

    def compare(connection):
        options = {"compare_type": True, "compare_server_default": True, "include_name": is_ours}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []


async def test_the_primary_keys_are_those_of_the_code_in_their_order(empty_url, engine):
    """It decides which sums the key can answer."""
    await upgrade(empty_url, MIGRATIONS)

    def keys(connection):
        inspector = sa.inspect(connection)
        return {table.name: inspector.get_pk_constraint(table.name) for table in metadata.sorted_tables}

    async with engine.connect() as connection:
        found = await connection.run_sync(keys)
    assert {name: key["constrained_columns"] for name, key in found.items()} == {
        table.name: table.primary_key.columns.keys() for table in metadata.sorted_tables
    }


async def test_an_upgrade_happens_once(empty_url):
    assert await upgrade(empty_url, MIGRATIONS)
    assert not await upgrade(empty_url, MIGRATIONS)


async def test_several_upgrades_at_once_are_one(empty_url, engine):
    await asyncio.gather(*(upgrade(empty_url, MIGRATIONS) for _ in range(3)))
    assert not await upgrade(empty_url, MIGRATIONS)
    async with reading(engine) as connection:
        versions = (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalars().all()
    assert versions == [newest_revision(MIGRATIONS)]


async def test_a_downgrade_leaves_nothing_and_can_be_undone(empty_url, engine):
    await upgrade(empty_url, MIGRATIONS)
    async with writing(engine) as connection:
        await connection.run_sync(change_schema, command.downgrade, "base")
    assert await tables_of(engine) == {"alembic_version"}
    assert await upgrade(empty_url, MIGRATIONS)
    assert await tables_of(engine) == {"alembic_version", *metadata.tables}


async def test_a_failed_upgrade_changes_nothing(empty_url, engine):
    async with writing(engine) as connection:
        await connection.execute(sa.text("CREATE TABLE usage_hour (in_the_way INTEGER)"))
    with pytest.raises(StoreDown) as caught:
        await upgrade(empty_url, MIGRATIONS)
    assert "already exists" in caught.value.detail
    assert await tables_of(engine) == {"usage_hour"}


async def test_a_database_of_a_newer_version_is_not_upgraded(empty_url, engine):
    await upgrade(empty_url, MIGRATIONS)
    async with writing(engine) as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreDown, match="schema 9999"):
        await upgrade(empty_url, MIGRATIONS)


async def test_a_server_starts_on_its_schema_or_a_newer_one_and_on_no_older_one(empty_url, engine):
    with pytest.raises(StoreDown, match=r"has no schema.* run `meterhouse migrate`"):
        await check_schema(engine, MIGRATIONS)
    await upgrade(empty_url, MIGRATIONS)
    assert await check_schema(engine, MIGRATIONS) == newest_revision(MIGRATIONS)
    for version, is_good in (("9999", True), ("0001", False)):
        async with writing(engine) as connection:
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": version})
        if is_good:
            assert await check_schema(engine, MIGRATIONS) == version
        else:
            with pytest.raises(StoreDown, match=r"has schema 0001.* run `meterhouse migrate`"):
                await check_schema(engine, MIGRATIONS)


def test_a_database_that_cannot_be_opened_is_store_down_and_leaves_no_thread_behind(tmp_path):
    """A thread that outlives its event loop would print a traceback; pytest turns that into a failure."""
    before = set(threading.enumerate())
    for _ in range(20):
        with pytest.raises(StoreDown, match="cannot be reached"):
            asyncio.run(upgrade(url_of(tmp_path / "missing" / "x.db"), MIGRATIONS))
    workers = [t for t in threading.enumerate() if t not in before and "connection_worker" in t.name]
    for worker in workers:
        worker.join(timeout=5)
    assert not [worker for worker in workers if worker.is_alive()]


def test_the_newest_file_name_is_alembics_head_and_every_file_is_named_after_its_revision():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [newest_revision(MIGRATIONS)]
    files = {path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("*.py")}
    assert {revision.revision for revision in script.walk_revisions()} == files


def test_alembic_is_not_imported_when_there_is_nothing_to_do(path):
    asyncio.run(upgrade(url_of(path), MIGRATIONS))
    program = (
        "import asyncio, pathlib, sys; from meterhouse.db.schema import upgrade; "
        "print(asyncio.run(upgrade(sys.argv[1], pathlib.Path(sys.argv[2]))), 'alembic' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, url_of(path), MIGRATIONS], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "False"]


def test_the_alembic_command_finds_its_settings_in_pyproject(store_url):
    command_line = [sys.executable, "-m", "alembic", "-c", MIGRATIONS.parent / "pyproject.toml"]
    ran = subprocess.run(
        [*command_line, "-x", f"url={store_url}", "check"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert (ran.returncode, ran.stdout) == (0, "No new upgrade operations detected.\n")


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("busy_timeout", 10_000), ("foreign_keys", 1)],
)
async def test_every_connection_of_sqlite_has_the_pragmas_that_durability_needs(path, pragma, value):
    engine = open_engine(url_of(path))
    async with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            assert (await connection.execute(sa.text(f"PRAGMA {pragma}"))).scalar() == value
    await close(engine)
