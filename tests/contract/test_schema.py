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

from fakes.store import MIGRATIONS, url_of
from meterhouse.db.engine import close, newest_revision, open_engine, reading, upgrade, writing
from meterhouse.db.tables import metadata
from meterhouse.errors import StoreDown


@pytest.fixture
def path(tmp_path):
    return tmp_path / "100% new.db"


@pytest.fixture
async def engine(path):
    engine = open_engine(url_of(path))
    yield engine
    await close(engine)


def run_alembic(connection, change, revision):
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS))
    change(config, revision)


async def test_the_migrations_make_the_tables_that_the_code_expects(path, engine):
    await upgrade(url_of(path), MIGRATIONS)

    def compare(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        inspector = sa.inspect(connection)
        keys = {
            name: set(inspector.get_pk_constraint(name)["constrained_columns"])
            for name in inspector.get_table_names()
            if name != "alembic_version"
        }
        return compare_metadata(context, metadata), keys

    async with engine.connect() as connection:
        differences, keys = await connection.run_sync(compare)
    assert differences == []
    assert keys == {table.name: set(table.primary_key.columns.keys()) for table in metadata.sorted_tables}


async def test_the_order_of_the_primary_keys_is_that_of_the_code(path, engine):
    """It decides which sums the key can answer, and the comparison of sets above cannot see it."""
    await upgrade(url_of(path), MIGRATIONS)
    async with engine.connect() as connection:
        for table in metadata.sorted_tables:
            rows = await connection.execute(sa.text(f"PRAGMA table_info('{table.name}')"))
            positions = {row.name: row.pk for row in rows if row.pk}
            assert sorted(positions, key=positions.get) == table.primary_key.columns.keys()


async def test_an_upgrade_happens_once(path):
    assert await upgrade(url_of(path), MIGRATIONS)
    assert not await upgrade(url_of(path), MIGRATIONS)


async def test_two_upgrades_at_once_are_one(path):
    await asyncio.gather(*(upgrade(url_of(path), MIGRATIONS) for _ in range(3)))
    assert not await upgrade(url_of(path), MIGRATIONS)


async def test_a_downgrade_leaves_nothing_and_can_be_undone(path, engine):
    await upgrade(url_of(path), MIGRATIONS)
    async with writing(engine) as connection:
        await connection.run_sync(run_alembic, command.downgrade, "base")
    async with reading(engine) as connection:
        names = (await connection.execute(sa.text("SELECT name FROM sqlite_master WHERE sql IS NOT NULL"))).scalars()
        assert names.all() == ["alembic_version"]
    assert await upgrade(url_of(path), MIGRATIONS)


async def test_a_failed_upgrade_changes_nothing(path, engine):
    async with writing(engine) as connection:
        await connection.execute(sa.text("CREATE TABLE usage_hour (in_the_way INTEGER)"))
    with pytest.raises(StoreDown):
        await upgrade(url_of(path), MIGRATIONS)
    async with reading(engine) as connection:
        names = (await connection.execute(sa.text("SELECT name FROM sqlite_master"))).scalars()
        assert names.all() == ["usage_hour"]


async def test_a_database_of_a_newer_version_is_refused(path, engine):
    await upgrade(url_of(path), MIGRATIONS)
    async with writing(engine) as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreDown, match="schema 9999"):
        await upgrade(url_of(path), MIGRATIONS)


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
        "import asyncio, pathlib, sys; from meterhouse.db.engine import upgrade; "
        "print(asyncio.run(upgrade(sys.argv[1], pathlib.Path(sys.argv[2]))), 'alembic' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, url_of(path), MIGRATIONS], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "False"]


def test_the_alembic_command_finds_its_settings_in_pyproject(tmp_path):
    url = url_of(tmp_path / "x.db")
    asyncio.run(upgrade(url, MIGRATIONS))
    command_line = [sys.executable, "-m", "alembic", "-c", MIGRATIONS.parent / "pyproject.toml", "-x", f"url={url}"]
    ran = subprocess.run([*command_line, "check"], capture_output=True, text=True, check=False, cwd="/")
    assert (ran.returncode, ran.stdout) == (0, "No new upgrade operations detected.\n")


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("busy_timeout", 2_000), ("foreign_keys", 1)],
)
async def test_every_connection_has_the_pragmas_that_durability_needs(path, engine, pragma, value):
    async with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            assert (await connection.execute(sa.text(f"PRAGMA {pragma}"))).scalar() == value
