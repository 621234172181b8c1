"""Keys over a real PostgreSQL and Redis: what is served, and how soon, while PostgreSQL is gone, hangs or is busy."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
import sqlalchemy as sa

from fakes.house import PEPPERS, House, bearer
from fakes.servers import PostgresServer
from fakes.store import MIGRATIONS
from meterhouse.db.engine import close, open_engine
from meterhouse.db.schema import upgrade
from meterhouse.db.tables import key as key_table
from meterhouse.errors import InvalidKey, StoreDown
from meterhouse.keys import reader as reading
from meterhouse.keys.changes import Others
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.mirror import KeyMirror
from meterhouse.keys.secret import make
from meterhouse.keys.service import KeyService
from meterhouse.stores import open_redis

MOST_SECONDS_WITHOUT_SQL = 1.5
PATIENT_SECONDS = 5.0
"""How long Redis may take: the machine may be busy."""
KEYS = 10_000
PROCESSES = 4


@pytest.fixture(scope="module")
def postgres_of_keys(tmp_path_factory):
    with PostgresServer(tmp_path_factory.mktemp("keys") / "postgres") as server:
        yield server


@pytest.fixture
async def house(postgres_of_keys, redis_url):
    """Give a house on PostgreSQL whose ``keyring`` and ``service`` have a mirror."""
    server = postgres_of_keys
    if not server.is_running:
        server.start()
    url = server.create_database()
    await upgrade(url, MIGRATIONS)
    async with AsyncExitStack() as stack:
        engine = open_engine(url)
        stack.push_async_callback(close, engine)
        house = House(engine, None)
        house.server = server

        def start_process():
            client = open_redis(redis_url, PATIENT_SECONDS)
            stack.push_async_callback(client.aclose)
            mirror = KeyMirror(client, house.clock, b"s" * 32, PATIENT_SECONDS)
            stack.push_async_callback(mirror.close)
            keyring = Keyring(house.catalog.keys, PEPPERS, house.clock, mirror)
            stack.push_async_callback(keyring.close)
            return keyring, mirror

        house.start_process = start_process
        house.keyring, house.mirror = start_process()
        house.service = KeyService(
            house.catalog, PEPPERS, house.clock, environment="live", keyring=house.keyring, others=Others(house.mirror)
        )
        house.organization = await house.service.create_organization("Acme")
        house.project = await house.service.create_project(house.organization.id, "Search")
        yield house


async def seconds_of(call):
    began = time.monotonic()
    result = await call
    return time.monotonic() - began, result


async def mirrored(house):
    issued = await house.issue()
    await house.verify(issued)
    while house.mirror._writer is not None:
        await asyncio.wait({house.mirror._writer})
    return issued


@pytest.mark.cell(9, "A")
async def test_known_keys_are_served_while_postgres_is_gone_and_unknown_ones_are_not_invalid(house, figures):
    issued, revoked, unknown = await mirrored(house), await mirrored(house), await house.issue()
    await house.service.revoke(revoked.key.id)
    house.server.kill()
    cold, _ = house.start_process()
    took, principal = await seconds_of(cold.verify(bearer(issued), None))
    figures(key_without_postgres_seconds=took)
    assert principal.key_id == issued.key.id
    assert took < MOST_SECONDS_WITHOUT_SQL
    with pytest.raises(InvalidKey):
        await cold.verify(bearer(revoked), None)
    for value in (unknown.value, make("live").value):
        with pytest.raises(StoreDown):
            await cold.verify(f"Bearer {value}", None)
    with pytest.raises(StoreDown):
        await house.service.revoke(issued.key.id)
    house.server.start()
    house.clock.move(1_000)
    assert (await cold.verify(bearer(unknown), None)).key_id == unknown.key.id


@pytest.mark.cell(10, "A")
async def test_a_postgres_that_hangs_holds_up_one_batch_for_a_moment_and_then_nobody(house, figures):
    issued = [await mirrored(house) for _ in range(3)]
    unknown = make("live").value
    house.clock.move(10_000)
    house.server.pause()
    try:
        waits = [await seconds_of(house.verify(one)) for one in issued]
        figures(key_while_postgres_hangs_seconds=waits[0][0])
        assert [principal.key_id for _, principal in waits] == [one.key.id for one in issued]
        assert waits[0][0] < MOST_SECONDS_WITHOUT_SQL
        assert max(took for took, _ in waits[1:]) < 0.5
        began = time.monotonic()
        with pytest.raises(StoreDown):
            await house.keyring.verify(f"Bearer {unknown}", None)
        assert time.monotonic() - began < 4
    finally:
        house.server.resume()
    await house.keyring.close()
    house.clock.move(1_000)
    with pytest.raises(InvalidKey):
        await house.keyring.verify(f"Bearer {unknown}", None)


async def test_a_new_key_is_served_as_soon_as_a_migration_has_ended(house):
    unread = await house.issue()
    for name, other in (("model_mode", "mode_of_models"), ("mode_of_models", "model_mode")):
        async with house.engine.begin() as connection:
            await connection.execute(sa.text(f"ALTER TABLE project RENAME COLUMN {name} TO {other}"))
        if name == "model_mode":
            with pytest.raises(StoreDown, match="migrate"):
                await house.verify(unread)
    assert (await house.verify(unread)).key_id == unread.key.id


async def test_a_column_of_another_type_costs_no_request(house):
    read, unread = await house.issue(), await house.issue()
    await house.verify(read)
    async with house.engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE key ALTER COLUMN name TYPE varchar(64)"))
    assert (await house.verify(unread)).key_id == unread.key.id


@pytest.mark.cell(33, "A")
async def test_a_cold_start_of_all_workers_with_ten_thousand_keys_takes_a_connection_each(house, figures, monkeypatch):
    # All workers are in this one process here, so that none gets much of the processor.
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 60)
    monkeypatch.setattr(reading, "GIVE_UP_SECONDS", 60)
    monkeypatch.setattr(reading, "ABANDON_SECONDS", 60)
    issued = await house.issue()
    async with house.engine.begin() as connection:
        row = (await connection.execute(sa.select(key_table).where(key_table.c.id == issued.key.id))).mappings().one()
        rows = [dict(row) | {"id": f"key_{i:012}", "root_key_id": f"key_{i:012}"} for i in range(KEYS)]
        await connection.execute(sa.insert(key_table), rows)
    busy, most_busy = 0, 0

    def note_checkout(*_):
        nonlocal busy, most_busy
        busy += 1
        most_busy = max(most_busy, busy)

    def note_checkin(*_):
        nonlocal busy
        busy -= 1

    sa.event.listen(house.engine.sync_engine, "checkout", note_checkout)
    sa.event.listen(house.engine.sync_engine, "checkin", note_checkin)
    keyrings = [house.start_process()[0] for _ in range(PROCESSES)]
    ids = [row["id"] for row in rows]
    shares = [ids[i::PROCESSES] for i in range(PROCESSES)]
    asked = [keyring.find_live(key_id) for keyring, share in zip(keyrings, shares, strict=True) for key_id in share]
    took, answers = await seconds_of(asyncio.gather(*asked))
    figures(cold_start_of_10000_keys_seconds=took)
    assert answers == [True] * KEYS
    assert most_busy <= PROCESSES
    assert [keyring._reader.queries for keyring in keyrings] == [KEYS // PROCESSES // 100] * PROCESSES
