"""The heartbeat table and the sums that the meter reconciles with, on both databases."""

import asyncio
import random

import pytest
import sqlalchemy as sa

from fakes.crew import age
from fakes.ledger import DAY, HOUR, period, record
from fakes.store import opened_store, taken_away
from meterhouse.db.balances import CHUNK_IDS, LedgerBalances
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.tables import HOUR_MS
from meterhouse.db.workers import Heartbeat, WorkerStore
from meterhouse.errors import StoreDown
from meterhouse.ids import new_request_id
from meterhouse.metering import LedgerSums, Scope, Sums
from meterhouse.usage import Usage


@pytest.fixture
def workers(engine):
    return WorkerStore(engine)


# --- heartbeats


async def test_a_heartbeat_makes_a_row_and_later_ones_keep_it_young(engine, workers):
    await workers.beat(Heartbeat("w2", "host", "j2", 0))
    await workers.beat(Heartbeat("w1", "host", "j1", 7))
    await age(engine, "w1", 90_000)
    first, second = await workers.list_workers()
    assert (first.heartbeat, second.heartbeat.id) == (Heartbeat("w1", "host", "j1", 7), "w2")
    assert 90_000 <= first.silent_ms < 150_000
    assert second.silent_ms < 60_000

    said = Heartbeat("w1", "host", "j1", 0, is_leaving=True, is_cut_off=True, cut_off=("org_1", "org_2"))
    await workers.beat(said)
    again = (await workers.list_workers())[0]
    assert again.heartbeat == said
    assert again.silent_ms < 60_000
    assert again.started_at_ms == first.started_at_ms


async def test_times_are_unix_milliseconds_of_the_database(engine, workers):
    async with engine.connect() as connection:
        query = "SELECT extract(epoch FROM now())" if engine.dialect.name == "postgresql" else "SELECT unixepoch('now')"
        now_ms = int(await connection.scalar(sa.text(query))) * 1000
    await workers.beat(Heartbeat("w1", "host", "j1", 0))
    (row,) = await workers.list_workers()
    assert 0 <= row.started_at_ms - now_ms < 60_000


async def test_workers_leave_by_id_by_journal_and_by_silence(engine, workers):
    for i in range(5):
        await workers.beat(Heartbeat(f"w{i}", "host", f"j{i}", 0))
    await age(engine, "w3", 1_000_000)
    await workers.remove("w0")
    await workers.remove("nobody")
    for journal_id in ("j1", "j2", "unknown"):
        await workers.remove_journal(journal_id)
    await workers.remove_silent(500_000)
    assert [row.heartbeat.id for row in await workers.list_workers()] == ["w4"]


async def test_many_workers_beat_at_once(workers):
    await asyncio.gather(*(workers.beat(Heartbeat(f"w{i % 5}", "host", f"j{i % 5}", i)) for i in range(10)))
    assert [row.heartbeat.id for row in await workers.list_workers()] == [f"w{i}" for i in range(5)]


async def test_without_a_database_every_method_says_so(tmp_path):
    path = tmp_path / "ledger.db"
    async with opened_store(path) as engine:
        workers, balances = WorkerStore(engine), LedgerBalances(engine)
        async with taken_away(engine, path):
            for work in (
                workers.beat(Heartbeat("w", "h", "j", 0)),
                workers.list_workers(),
                workers.remove("w"),
                workers.remove_journal("j"),
                workers.remove_silent(1),
                balances.sum_before([period(Scope.KEY, "key_1")], HOUR, ()),
            ):
                with pytest.raises(StoreDown):
                    await work


# --- sums before a moment


async def test_sums_end_before_a_moment_and_leave_requests_out(engine):
    early, late, excluded, both = (record(charge_nanos=nanos) for nanos in (1, 10, 100, 1_000))
    before_ms = early.admitted_at_ms + 1
    late, both = (record(charge_nanos=one.charge_nanos, admitted_at_ms=before_ms) for one in (late, both))
    await LedgerStore(engine).insert([early, late, excluded, both])
    sums = await LedgerBalances(engine).sum_before(
        [period(Scope.ORGANIZATION, "org_1"), period(Scope.PROJECT, "proj_1", DAY, DAY + 24 * HOUR_MS)],
        before_ms,
        {excluded.request_id, both.request_id, new_request_id()},
    )
    assert sums.periods == [Sums(1, 110, 1)] * 2
    assert sums.left_out == {excluded.request_id: Sums(1, 110, 100)}


async def test_sums_are_of_the_scope_the_model_and_the_period(engine):
    plain = record(charge_nanos=1)
    other_model = record(model="other", charge_nanos=10)
    other_key = record(root_key_id="key_2", charge_nanos=100)
    yesterday = record(admitted_at_ms=DAY - 1, charge_nanos=1_000)
    tomorrow = record(admitted_at_ms=DAY + 24 * HOUR_MS, charge_nanos=10_000)
    records = [plain, other_model, other_key, yesterday, tomorrow]
    await LedgerStore(engine).insert(records)
    periods = [
        period(Scope.KEY, "key_1"),
        period(Scope.KEY, "key_2"),
        period(Scope.ORGANIZATION, "org_1", DAY, DAY + 24 * HOUR_MS),
        period(Scope.ORGANIZATION, "org_1", DAY, DAY + 24 * HOUR_MS, model="other"),
        period(Scope.PROJECT, "proj_1", DAY),
        period(Scope.PROJECT, "proj_1", None, DAY),
        period(Scope.PROJECT, "elsewhere"),
    ]

    async def nanos(before_ms, excluded=()):
        sums = await LedgerBalances(engine).sum_before(periods, before_ms, excluded)
        return [known.charge_nanos for known in sums.periods]

    assert await nanos(DAY + 48 * HOUR_MS) == [11_011, 100, 111, 10, 10_111, 1_000, 0]
    assert await nanos(DAY + 24 * HOUR_MS) == [1_011, 100, 111, 10, 111, 1_000, 0]
    everything = [one.request_id for one in records]
    assert await nanos(DAY + 48 * HOUR_MS, everything) == [0] * 7
    assert await nanos(DAY + 48 * HOUR_MS, [other_model.request_id, yesterday.request_id]) == [
        *(10_001, 100, 101, 0, 10_101, 0, 0)
    ]


async def test_a_request_of_several_attempts_is_left_out_whole(engine):
    first = record(requests=0, charge_nanos=5)
    second = record(request_id=first.request_id, attempt=2, charge_nanos=7)
    await LedgerStore(engine).insert([first, second])
    balances = LedgerBalances(engine)
    whole = [period(Scope.KEY, "key_1")]
    assert await balances.sum_before(whole, DAY * 2, ()) == LedgerSums([Sums(1, 220, 12)], {})
    left_out = {first.request_id: Sums(1, 220, 12)}
    assert await balances.sum_before(whole, DAY * 2, [first.request_id]) == LedgerSums([Sums()], left_out)


async def test_thousands_of_requests_can_be_left_out(engine):
    records = [record() for _ in range(50)]
    await LedgerStore(engine).insert(records)
    excluded = [one.request_id for one in records[1:]] + [new_request_id() for _ in range(2 * CHUNK_IDS)]
    random.shuffle(excluded)
    sums = await LedgerBalances(engine).sum_before([period(Scope.KEY, "key_1")], DAY * 2, excluded)
    assert sums.periods[0].requests == 1
    assert len(sums.left_out) == 49


async def test_sums_are_one_snapshot_while_records_arrive(engine):
    ledger, balances = LedgerStore(engine), LedgerBalances(engine)
    whole = [period(Scope.ORGANIZATION, "org_1"), period(Scope.PROJECT, "proj_1"), period(Scope.KEY, "key_1")]

    async def insert():
        for _ in range(20):
            await ledger.insert([record(usage=Usage(input_tokens=1)) for _ in range(10)])

    inserting = asyncio.ensure_future(insert())
    looks = 0
    while not inserting.done():
        first, *others = (await balances.sum_before(whole, DAY * 2, ())).periods
        assert others == [first, first]
        looks += 1
    await inserting
    assert looks > 1
