"""Sealing over SQLite and PostgreSQL: nothing is skipped, nothing is sealed twice, and what was changed is named."""

import asyncio
import sqlite3
from dataclasses import replace

import asyncpg
import msgspec
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes.ledger import HOUR, record
from fakes.postgres_server import OWN_USER
from meterhouse.db import seals as sealing
from meterhouse.db.books import Books
from meterhouse.db.chain import LOCK
from meterhouse.db.engine import close, open_engine, reading, wall_ms, writing
from meterhouse.db.ledger import Adjustment, LedgerStore
from meterhouse.db.reviews import ProviderDay
from meterhouse.db.seals import CLOCK_STEP_MS, OVERLAP_MS, PAGE_ROWS, RECENT_MS, SealStore
from meterhouse.db.tables import DAY_MS, HOUR_MS, meta, seal, usage_hour, usage_record
from meterhouse.errors import Conflict, StoreDown
from meterhouse.exports import export
from meterhouse.ledger.audit import GRACE_MS, DatabaseAudit
from meterhouse.ledger.export import ExportReader, Order, check_export
from meterhouse.ledger.seal import ChainChecker, Entry, Fault, Finding, hash_rows
from meterhouse.ledger.sealer import Sealer
from meterhouse.telemetry.logs import get_logger
from meterhouse.usage import Usage

NOW = HOUR + 10 * HOUR_MS
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
CREDIT = Adjustment("adj_1", "org_1", "proj_1", "key_1", HOUR, -400, -10, "credit", NOW, "me")


class Hand:
    """A clock that is moved by hand."""

    def __init__(self, now_ms=NOW):
        self.now_ms = now_ms

    def __call__(self):
        return self.now_ms


@pytest.fixture
def clock():
    return Hand()


@pytest.fixture
def ledger(engine, clock):
    return LedgerStore(engine, clock)


@pytest.fixture
def seals(engine, clock):
    return SealStore(engine, hash_rows, clock)


@pytest.fixture
async def tamper(store_url, is_postgres, request):
    """Run a statement as somebody who can do anything: a superuser with the triggers off."""
    if is_postgres:
        server = request.getfixturevalue("postgres_server")
        yield lambda statement: server.execute(f"SET session_replication_role = replica; {statement}", store_url)
        return
    engine = open_engine(store_url)

    def run(statement):
        with sqlite3.connect(engine.url.database) as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            connection.executescript(statement)

    yield run
    await close(engine)


@pytest.fixture
def insert(ledger, clock, tamper, is_postgres):
    """Write records as if they were recorded now by the clock of the test: PostgreSQL has a clock of its own."""

    async def write(*records):
        await ledger.insert(records)
        if is_postgres:
            ids = ", ".join(f"'{one.request_id}'" for one in records)
            tamper(f"UPDATE usage_record SET recorded_at_ms = {clock.now_ms} WHERE request_id IN ({ids});")

    return write


def entry_of(stored):
    names = ("kind", "organization_id", "sequence", "previous_hash", "hash", "sealed_at_ms", "row")
    return Entry(**{name: getattr(stored, name) for name in names})


async def chain_of(seals, organization_id="org_1"):
    entries = [entry_of(stored) for stored in await seals.read(organization_id, 1, 10_000)]
    checker = ChainChecker(None)
    assert [finding for entry in entries for finding in checker.take(entry)] == []
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    return entries


async def test_records_and_adjustments_are_sealed_once_in_a_chain_for_each_organization(insert, ledger, seals, clock):
    records = [record(), record(organization_id="org_2"), record(attempt=2)]
    await insert(*records)
    await ledger.insert_adjustment(CREDIT)
    assert (await seals.seal_new()).sealed == 4
    assert (await seals.seal_new()).sealed == 0
    clock.now_ms += 1
    await insert(record())
    assert (await seals.seal_new()).sealed == 1
    first = await chain_of(seals)
    assert sorted(entry.kind for entry in first) == ["adjustment", "usage", "usage", "usage"]
    assert [entry.sealed_at_ms for entry in first] == [NOW] * 3 + [NOW + 1]
    assert [entry.row["request_id"] for entry in await chain_of(seals, "org_2")] == [records[1].request_id]
    assert await seals.list_organizations() == ["org_1", "org_2"]


async def test_sealing_goes_on_in_batches_until_nothing_is_left(ledger, seals, engine):
    await ledger.insert([record() for _ in range(25)])
    step = await seals.seal_new(limit=10)
    assert (step.sealed, step.has_more) == (10, True)
    sealer = Sealer(seals, get_logger(), batch_rows=10)
    assert await sealer.step() == 15
    assert sealer.sealed == 15
    assert len(await chain_of(seals)) == 25


async def test_a_step_soon_after_another_process_looked_does_nothing(insert, seals, clock):
    await seals.seal_new()
    await insert(record())
    assert (await seals.seal_new(least_interval_ms=1_000)).sealed == 0
    clock.now_ms += 1_000
    assert (await seals.seal_new(least_interval_ms=1_000)).sealed == 1


async def test_two_that_seal_at_once_make_one_chain(ledger, store_url, seals):
    await ledger.insert([record(organization_id=f"org_{i % 3}") for i in range(60)])
    engine = open_engine(store_url)
    try:
        both = [Sealer(SealStore(one, hash_rows), get_logger(), batch_rows=7) for one in (engine, engine, engine)]
        assert sum(await asyncio.gather(*(sealer.seal_all(retry_seconds=0.01) for sealer in both))) == 60
    finally:
        await close(engine)
    for i in range(3):
        assert len(await chain_of(seals, f"org_{i}")) == 20


async def test_who_finds_another_sealing_says_so(ledger, seals, engine, is_postgres):
    await ledger.insert([record()])
    if not is_postgres:
        assert not (await seals.seal_new()).is_busy
        return
    async with engine.connect() as connection:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        step = await seals.seal_new()
        assert (step.sealed, step.is_busy) == (0, True)
    assert (await seals.seal_new()).sealed == 1


@pytest.fixture
def sealing_ledger(engine):
    """As whoever ships has it."""
    return LedgerStore(engine, hash_rows=hash_rows)


async def count_seals(engine):
    async with reading(engine) as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(seal))


async def test_whoever_ships_records_seals_them(ledger, sealing_ledger, seals, engine):
    await ledger.insert([record(), record(organization_id="org_2")])
    await ledger.insert_adjustment(CREDIT)
    await Sealer(seals, get_logger()).seal_all()
    await sealing_ledger.insert([record(key_id=f"key_{i}", price_id=None if i else "price_1") for i in range(400)])
    await sealing_ledger.insert([record(organization_id="org_2"), record(organization_id="org_3")])
    assert await count_seals(engine) == 405
    assert (await seals.seal_new()).sealed == 0
    assert [len(await chain_of(seals, f"org_{i}")) for i in (1, 2, 3)] == [402, 2, 1]


async def test_records_are_shipped_while_somebody_else_seals(sealing_ledger, seals, engine, is_postgres):
    if not is_postgres:
        return  # nothing is written while somebody seals
    async with engine.connect() as connection:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        assert await sealing_ledger.insert([record(), record()]) == 2
    assert await count_seals(engine) == 0
    assert await sealing_ledger.insert([record()]) == 1
    assert await count_seals(engine) == 1
    assert (await SealStore(engine, hash_rows).seal_new()).sealed == 2
    assert len(await chain_of(seals)) == 3


async def test_what_keeps_seals_from_being_written_keeps_no_record_from_it(sealing_ledger, seals, engine):
    """A lock of whoever mends the seals' index, say: what failed is written without, and sealed later."""
    first, second = record(), record()
    async with writing(engine) as connection:
        await connection.execute(sa.text("ALTER TABLE seal RENAME TO seal_aside"))
    with pytest.raises(StoreDown):
        await sealing_ledger.insert([first])
    assert await sealing_ledger.insert([first]) == 1
    async with writing(engine) as connection:
        await connection.execute(sa.text("ALTER TABLE seal_aside RENAME TO seal"))
    assert await sealing_ledger.insert([second]) == 1
    assert await count_seals(engine) == 1
    assert (await SealStore(engine, hash_rows).seal_new()).sealed == 1
    assert len(await chain_of(seals)) == 2


async def test_of_a_batch_that_is_partly_there_the_rest_is_sealed_later(sealing_ledger, seals, engine):
    first, second = record(), record()
    assert await sealing_ledger.insert([first]) == 1
    assert await sealing_ledger.insert([first, second]) == 1
    assert await count_seals(engine) == 1
    assert (await SealStore(engine, hash_rows).seal_new()).sealed == 1
    assert len(await chain_of(seals)) == 2
    assert await sealing_ledger.rebuild_check() == []


async def test_a_record_that_was_removed_is_written_again_and_sealed_but_once(sealing_ledger, engine, tamper):
    gone = record()
    await sealing_ledger.insert([gone])
    tamper("DELETE FROM usage_record; DELETE FROM usage_hour;")
    assert await sealing_ledger.insert([gone, record()]) == 2
    assert await sealing_ledger.rebuild_check() == []
    assert await count_seals(engine) == 1


async def test_many_that_ship_and_seal_at_once_make_one_chain(store_url, seals):
    engines = [open_engine(store_url) for _ in range(3)]
    try:
        sealer = Sealer(SealStore(engines[0], hash_rows), get_logger(), batch_rows=7)
        shipping = [
            LedgerStore(engine, hash_rows=hash_rows).insert([record(organization_id=f"org_{i % 2}") for i in range(9)])
            for engine in engines * 4
        ]
        assert sum((await asyncio.gather(*shipping, sealer.step(is_forced=True)))[:-1]) == 108
        await sealer.seal_all(retry_seconds=0.01)
    finally:
        for engine in engines:
            await close(engine)
    for i in range(2):
        assert len(await chain_of(seals, f"org_{i}")) == {0: 60, 1: 48}[i]


@pytest.mark.parametrize("late_ms", [OVERLAP_MS - 1, OVERLAP_MS * 10, RECENT_MS - HOUR_MS, RECENT_MS + 5 * HOUR_MS])
async def test_what_is_committed_late_is_sealed_nevertheless(insert, seals, clock, late_ms):
    """A shipper that was stopped before its commit, or whose clock is behind."""
    await insert(*[record() for _ in range(3)])
    assert (await seals.seal_new()).sealed == 3
    clock.now_ms = NOW - late_ms
    await insert(record())
    clock.now_ms = NOW + 3_000
    assert (await seals.seal_new()).sealed == 1
    assert len(await chain_of(seals)) == 4


@pytest.fixture
def walks_find_nothing(monkeypatch):
    """What a step looks at by its marks alone."""

    async def look(_connection, _from_ms, _limit):
        return [], None

    monkeypatch.setattr(sealing, "_look_at_page", look)


@pytest.mark.usefixtures("walks_find_nothing")
async def test_what_was_being_written_is_looked_at_again(engine, store_url, is_postgres, monkeypatch):
    """However little a step looks back by itself."""
    if not is_postgres:
        return  # nothing is written while somebody seals
    monkeypatch.setattr(sealing, "CLOCK_STEP_MS", 0)
    seals = SealStore(engine, hash_rows)
    other = open_engine(store_url)
    try:
        async with writing(other) as connection:
            assert await LedgerStore(connection).insert([record()]) == 1
            await asyncio.sleep(0.05)
            assert (await seals.seal_new()).sealed == 0
        assert (await seals.seal_new()).sealed == 1
    finally:
        await close(other)


@pytest.mark.usefixtures("walks_find_nothing")
async def test_an_adjustment_that_waited_before_it_was_written_is_sealed(engine):
    """Whoever makes it stamps it, and the transaction that writes it may begin later."""
    ledger, seals = LedgerStore(engine), SealStore(engine, hash_rows)
    made = replace(CREDIT, created_at_ms=wall_ms() - 2 * CLOCK_STEP_MS)
    await ledger.insert([record()])
    assert (await seals.seal_new()).sealed == 1
    await ledger.insert_adjustment(made)
    assert (await seals.seal_new()).sealed == 1


@pytest.mark.usefixtures("walks_find_nothing")
async def test_a_step_looks_back_no_further_than_somebody_writes(engine, store_url, is_postgres, postgres_server):
    async def overlap_ms():
        await LedgerStore(engine).insert([record()])
        await SealStore(engine, hash_rows).seal_new()
        async with reading(engine) as connection:
            marks = msgspec.json.decode(await connection.scalar(sa.select(meta.c.value)), type=sealing.Marks)
        return marks.stepped_at_ms - marks.from_ms

    if not is_postgres:
        assert await overlap_ms() == OVERLAP_MS
        return
    assert CLOCK_STEP_MS <= await overlap_ms() < CLOCK_STEP_MS + 2_000
    superuser = await asyncpg.connect(postgres_server.url_of(sa.make_url(store_url).database, OWN_USER))
    try:
        # What others do is hidden from the application's role.
        assert await overlap_ms() == OVERLAP_MS
    finally:
        await superuser.close()


async def test_a_clock_that_runs_ahead_hides_nothing(insert, seals, clock):
    clock.now_ms = NOW + HOUR_MS
    await insert(record())
    await seals.seal_new()
    clock.now_ms = NOW
    await insert(record())
    await seals.seal_new()
    entries = await chain_of(seals)
    assert [entry.sealed_at_ms for entry in entries] == [NOW + HOUR_MS] * 2


async def test_the_walk_reaches_every_page(insert, seals, clock, monkeypatch):
    """Late rows behind pages of sealed ones, more than a step looks at."""
    monkeypatch.setattr(sealing, "PAGE_ROWS", 5)
    for i in range(4):
        clock.now_ms = NOW + i * HOUR_MS * 24
        await insert(*[record() for _ in range(6)])
    await Sealer(seals, get_logger()).step(is_forced=True)
    clock.now_ms = NOW + HOUR_MS * 24 + 1
    late = [record() for _ in range(3)]
    await insert(*late)
    clock.now_ms = NOW + HOUR_MS * 24 * 5
    sealed = 0
    for _ in range(8):
        clock.now_ms += 3_000
        sealed += (await seals.seal_new(limit=2)).sealed
    assert sealed == 3
    assert len(await chain_of(seals)) == 27
    assert PAGE_ROWS > 5


async def test_the_part_of_a_chain_between_two_times_is_found(insert, seals, clock):
    for i in range(6):
        clock.now_ms = NOW + i * 1_000
        await insert(record())
        await seals.seal_new()
    assert await seals.find_span("org_1", None, None) == (1, 7)
    assert await seals.find_span("org_1", NOW + 2_000, NOW + 4_000) == (3, 5)
    assert await seals.find_span("org_1", NOW + 2_001, NOW + 2_002) == (4, 4)
    assert await seals.find_span("org_1", NOW + 9_000, None) == (7, 7)
    assert await seals.find_span("nobody", None, None) == (1, 1)


async def execute(engine, statement):
    async with engine.connect() as connection:
        await connection.exec_driver_sql(statement)
        await connection.commit()


async def test_a_seal_cannot_be_changed_or_removed(ledger, seals, engine):
    await ledger.insert([record()])
    await seals.seal_new()
    for statement in ("UPDATE seal SET hash = ''", "DELETE FROM seal"):
        with pytest.raises((sa.exc.DBAPIError, StoreDown), match="append-only"):
            await execute(engine, statement)


# --- the database, changed by somebody who can do anything


@pytest.fixture
async def exported(insert, ledger, seals, engine, clock, tmp_path):
    """Eight sealed rows of two organizations, and the file that proves them."""
    clock.now_ms = NOW - 2 * GRACE_MS
    records = [record(request_id=f"0190{i:08x}70008000000000000000") for i in range(1, 7)]
    other = record(request_id="01900000000970008000000000000000", organization_id="org_2")
    for one in (*records[:3], other, *records[3:]):
        await insert(one)
        await seals.seal_new()
    await ledger.insert_adjustment(replace(CREDIT, created_at_ms=clock.now_ms))
    await seals.seal_new()
    path = tmp_path / "export.jsonl"
    await write_export(engine, path, clock)
    clock.now_ms = NOW
    return path


async def write_export(engine, path, clock):
    books = Books(engine, hash_rows)
    with path.open("wb") as file:
        file.write(await export(books, file, "jsonl", Order(clock.now_ms), KEY))


async def audit(seals, path):
    reader = ExportReader(path)
    assert list(check_export(reader, KEY.public_key())) == []
    comparison = DatabaseAudit(seals, replace_time(reader.statement))
    return [finding async for finding in comparison.compare(reader.read())]


def replace_time(statement):
    order = msgspec.structs.replace(statement.order, exported_at_ms=NOW)
    return msgspec.structs.replace(statement, order=order)


def uuid(number):
    return f"0190{number:08x}70008000000000000000"


async def test_a_database_that_nobody_touched_agrees(seals, exported, insert):
    assert await audit(seals, exported) == []
    await insert(record())
    await seals.seal_new()
    assert await audit(seals, exported) == []


async def test_a_row_that_was_changed_in_the_database_is_named_with_the_column(seals, exported, tamper):
    tamper(f"UPDATE usage_record SET charge_nanos = 1, model = 'x' WHERE request_id = '{uuid(2)}';")
    found = await audit(seals, exported)
    assert [(one.fault, one.sequence) for one in found] == [(Fault.CHANGED, 2)] * 2
    assert f"request {uuid(2)} attempt 1" in str(found[0])
    assert {one.detail for one in found} == {
        "charge_nanos is 1 in the database, 1000 in the export",
        "model is 'x' in the database, 'gpt' in the export",
    }


async def test_an_adjustment_that_was_changed_in_the_database_is_named(seals, exported, tamper):
    tamper("UPDATE adjustment SET nanos = -4000;")
    [found] = await audit(seals, exported)
    assert (found.fault, found.sequence, found.subject) == (Fault.CHANGED, 7, "adjustment adj_1")


async def test_a_row_that_was_removed_from_the_database_is_named(seals, exported, tamper):
    tamper(f"DELETE FROM usage_record WHERE request_id = '{uuid(3)}';")
    [found] = await audit(seals, exported)
    assert (found.fault, found.sequence, found.subject) == (Fault.MISSING, 3, f"request {uuid(3)} attempt 1")


@pytest.mark.parametrize("number", [1, 3, 6])
async def test_a_row_that_was_removed_with_its_seal_is_named(seals, exported, tamper, number):
    condition = f"WHERE request_id = '{uuid(number)}'"
    tamper(f"DELETE FROM usage_record {condition}; DELETE FROM seal {condition};")
    [found] = await audit(seals, exported)
    assert (found.fault, found.sequence, found.subject) == (Fault.MISSING, number, f"request {uuid(number)} attempt 1")


async def test_a_row_that_was_inserted_behind_the_triggers_is_named(seals, exported, tamper, clock, is_postgres):
    columns = ", ".join(usage_record.c.keys())
    values = columns.replace("request_id", f"'{uuid(99)}'{'::uuid' if is_postgres else ''}")
    tamper(f"INSERT INTO usage_record ({columns}) SELECT {values} FROM usage_record WHERE request_id = '{uuid(1)}';")
    [found] = await audit(seals, exported)
    assert found.fault is Fault.INSERTED
    assert f"request {uuid(99)} attempt 1 of organization org_1" in str(found)
    await seals.seal_new()
    [found] = await audit(seals, exported)
    assert (found.fault, found.sequence, found.subject) == (Fault.INSERTED, 8, f"request {uuid(99)} attempt 1")


async def test_rows_that_changed_places_are_named(seals, exported, tamper):
    tamper(
        "UPDATE seal SET sequence = 100 WHERE organization_id = 'org_1' AND sequence = 2;"
        "UPDATE seal SET sequence = 2 WHERE organization_id = 'org_1' AND sequence = 3;"
        "UPDATE seal SET sequence = 3 WHERE organization_id = 'org_1' AND sequence = 100;"
    )
    found = await audit(seals, exported)
    assert [(one.fault, one.sequence) for one in found] == [(Fault.REORDERED, 2), (Fault.REORDERED, 3)]
    assert "it stands as organization org_1, sequence 3" in str(found[0])


async def test_a_row_that_was_put_in_the_place_of_another_is_named_and_so_is_the_other(seals, exported, tamper):
    tamper(f"UPDATE seal SET request_id = '{uuid(77)}' WHERE request_id = '{uuid(2)}';")
    found = await audit(seals, exported)
    assert [(one.fault, one.sequence, one.subject) for one in found] == [
        (Fault.MISSING, 2, f"request {uuid(2)} attempt 1"),
        (Fault.INSERTED, 2, f"request {uuid(77)} attempt 1"),
    ]


async def test_what_a_file_lacks_is_named_by_the_database(seals, exported):
    lines = exported.read_bytes().splitlines(keepends=True)
    exported.write_bytes(b"".join(lines[:1] + lines[3:]))
    reader = ExportReader(exported)
    gap, *_ = check_export(reader, KEY.public_key())
    named = await DatabaseAudit(seals, reader.statement).name_missing(gap)
    assert [one.subject for one in named] == [f"request {uuid(2)} attempt 1", f"request {uuid(3)} attempt 1"]


async def test_only_what_the_statement_covers_is_looked_up(seals, engine, exported, clock, tmp_path):
    """The rows of a file that somebody sent may name anybody; the statement of it is signed."""
    path = tmp_path / "theirs.jsonl"
    with path.open("wb") as file:
        order = Order(clock.now_ms, "org_2")
        file.write(await export(Books(engine, hash_rows), file, "jsonl", order, KEY))
    rows = list(ExportReader(exported).read())
    comparison = DatabaseAudit(seals, ExportReader(path).statement)
    assert [one async for one in comparison.compare(replace(row, hash="1:x") for row in rows[:3])] == []
    gap = Finding(Fault.MISSING, "a gap", "org_1", 1, until=6)
    assert await comparison.name_missing(gap) == []
    [found] = [one async for one in comparison.compare([replace(rows[1], organization_id="org_2", sequence=9)])]
    assert (found.fault, found.detail) == (Fault.MISSING, "the database has no seal of it")


async def test_a_ledger_that_is_not_what_was_sealed_is_not_signed(engine, exported, tamper, clock, tmp_path):
    tamper(f"UPDATE usage_record SET charge_nanos = 1 WHERE request_id = '{uuid(4)}';")
    with pytest.raises(Conflict, match=f"sequence 4 .request {uuid(4)}"):
        await write_export(engine, tmp_path / "again", clock)
    tamper(f"DELETE FROM usage_record WHERE request_id = '{uuid(4)}';")
    with pytest.raises(Conflict, match=r"sequence 4 .*not the row"):
        await write_export(engine, tmp_path / "again", clock)
    tamper("DELETE FROM seal WHERE sequence = 2;")
    with pytest.raises(Conflict, match="missing: organization org_1, sequence 2"):
        await write_export(engine, tmp_path / "again", clock)


# --- the projection


async def test_a_rebuild_repairs_what_is_wrong_and_says_what(engine, ledger, tamper):
    await ledger.insert([record(), record(model="other"), record(organization_id="org_2")])
    tamper("UPDATE usage_hour SET charge_nanos = 1 WHERE model = 'gpt' AND organization_id = 'org_1';")
    tamper("UPDATE usage_hour SET model = 'phantom' WHERE model = 'other';")
    projection = Books(engine, hash_rows).projection
    found = {(one.group["organization_id"], one.group["model"]): one async for one in projection.compare()}
    assert set(found) == {("org_1", "gpt"), ("org_1", "other"), ("org_1", "phantom")}
    assert found["org_1", "gpt"].measures == {"charge_nanos": 999}
    assert {(one.group["organization_id"], one.group["model"]) async for one in projection.rebuild()} == set(found)
    assert [one async for one in projection.rebuild()] == []
    assert await ledger.rebuild_check() == []


async def test_a_rebuild_makes_a_lost_projection_anew_while_records_are_shipped(engine, ledger, tamper):
    await ledger.insert([record(key_id=f"key_{i}") for i in range(50)])
    tamper("DELETE FROM usage_hour;")
    projection = Books(engine, hash_rows).projection

    async def ship():
        for i in range(20):
            await ledger.insert([record(key_id=f"key_{i}"), record(key_id=f"new_{i}")])

    async def rebuild():
        return [one async for one in projection.rebuild()]

    _, changed = await asyncio.gather(ship(), rebuild())
    assert len(changed) == 50
    assert await ledger.rebuild_check() == []
    async with reading(engine) as connection:
        requests = await connection.scalar(sa.select(sa.func.sum(usage_hour.c.requests)))
        records = await connection.scalar(sa.select(sa.func.count()).select_from(usage_record))
    assert requests == records == 90


async def test_one_rebuilds_at_a_time(engine, ledger, tamper, is_postgres):
    await ledger.insert([record()])
    tamper("DELETE FROM usage_hour;")
    projection = Books(engine, hash_rows).projection

    async def rebuild():
        try:
            return [one async for one in projection.rebuild()]
        except Conflict:
            assert is_postgres
            return []

    found = await asyncio.gather(*(rebuild() for _ in range(4)))
    assert sum(map(len, found)) == 1
    assert await ledger.rebuild_check() == []


async def test_seals_are_in_no_other_column_than_the_code_says(engine):
    async with reading(engine) as connection:
        assert (await connection.execute(sa.select(seal))).all() == []


# --- reviews


async def test_adjustments_are_listed_a_page_at_a_time(engine, ledger):
    for i in range(5):
        await ledger.insert_adjustment(replace(CREDIT, id=f"adj_{i}", created_at_ms=NOW + i // 2))
    await ledger.insert_adjustment(replace(CREDIT, id="other", organization_id="org_2"))
    reviews = Books(engine, hash_rows).reviews
    first = await reviews.list_adjustments("org_1", limit=3)
    second = await reviews.list_adjustments("org_1", first[-1], limit=3)
    assert [one.id for one in (*first, *second)] == [f"adj_{i}" for i in range(5)]
    assert first[0] == replace(CREDIT, id="adj_0", created_at_ms=NOW)
    assert len(await reviews.list_adjustments(None)) == 6


async def test_a_providers_days_are_summed_by_what_it_was_asked_for_and_said_that_it_was(engine, ledger):
    day_ms = HOUR - HOUR % DAY_MS

    def at(moment_ms, number, **changes):
        request_id = f"{moment_ms - 500:012x}7000800000000000000{number}"
        return record(request_id=request_id, admitted_at_ms=moment_ms, **changes)

    await ledger.insert(
        [
            at(day_ms, 1),
            at(day_ms + DAY_MS - 1, 2),
            at(day_ms + 5, 3, served_model="other"),
            at(day_ms + 6, 4, provider="elsewhere"),
            at(day_ms + 7, 5, usage=Usage()),
            at(day_ms + DAY_MS, 6),
            at(day_ms - 1, 7),
        ]
    )
    reviews = Books(engine, hash_rows).reviews
    found = [one async for one in reviews.list_provider_days("openai", day_ms, day_ms + DAY_MS)]
    counts = {"cached_input_tokens": 40, "charge_nanos": 1_000, "input_tokens": 100, "output_tokens": 10}
    double = {name: 2 * count for name, count in counts.items()} | {"charge_nanos": 3_000}
    assert found == [
        ProviderDay(day_ms, "gpt-2026", "gpt-2026-01", requests=2, **double),
        ProviderDay(day_ms, "other", "gpt-2026-01", requests=1, **counts),
    ]
    everybody = [one async for one in reviews.list_provider_days(None, day_ms, day_ms + 2 * DAY_MS)]
    assert [(one.day_ms, one.requests) for one in everybody] == [(day_ms, 3), (day_ms, 1), (day_ms + DAY_MS, 1)]
