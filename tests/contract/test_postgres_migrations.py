"""Migrations on PostgreSQL run beside the application, up and down, and let go of locks rather than make it wait."""

import asyncio

import pytest
import sqlalchemy as sa
from alembic import command

from fakes.ledger import record, rows_of
from fakes.store import MIGRATIONS, change_schema
from meterhouse.db.engine import close, open_engine, writing
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.schema import check_schema, newest_revision, upgrade
from meterhouse.db.tables import usage_record


@pytest.fixture
async def engine(migrated_database_url):
    engine = open_engine(migrated_database_url)
    yield engine
    await close(engine)


async def test_up_and_down_under_traffic_no_insert_fails(migrated_database_url, engine):
    ledger = LedgerStore(engine)
    is_done = asyncio.Event()

    async def write():
        written = 0
        while not is_done.is_set():
            written += await ledger.insert([record(key_id=f"key_{i}") for i in range(5)])
        return written

    async def migrate():
        for _ in range(3):
            async with writing(engine) as connection:
                await connection.run_sync(change_schema, command.downgrade, "0001")
            assert await upgrade(migrated_database_url, MIGRATIONS)
        is_done.set()

    written, other, _ = await asyncio.gather(write(), write(), migrate())
    assert min(written, other) > 0
    assert len(await rows_of(engine, usage_record)) == written + other
    assert await ledger.rebuild_check() == []
    assert await check_schema(engine, MIGRATIONS) == newest_revision(MIGRATIONS)


async def test_a_migration_that_meets_a_lock_tries_again(migrated_database_url, engine):
    async with writing(engine) as connection:
        await connection.run_sync(change_schema, command.downgrade, "0001")
    async with writing(engine) as connection:
        await connection.execute(sa.text("LOCK TABLE alembic_version IN SHARE MODE"))
        upgrading = asyncio.ensure_future(upgrade(migrated_database_url, MIGRATIONS))
        await wait_for_give_up(engine)
        assert not upgrading.done()
    assert await upgrading


async def wait_for_give_up(engine):
    """Wait until the migration waited for the lock, and then no more."""
    waits = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE NOT granted AND application_name = 'meterhouse migrate'"
    )
    for wanted in (1, 0):
        while await count(engine, waits) != wanted:  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


async def count(engine, statement):
    async with writing(engine) as connection:
        return await connection.scalar(sa.text(statement))
