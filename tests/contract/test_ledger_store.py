import asyncio
import sqlite3
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from fakes.ledger import DAY, HOUR, period, record, rows_of
from fakes.store import opened_store, taken_away
from meterhouse.db.engine import writing
from meterhouse.db.ledger import Adjustment, LedgerStore, UsageQuery
from meterhouse.db.tables import HOUR_MS, usage_hour, usage_record
from meterhouse.errors import StoreDown
from meterhouse.ids import new_request_id
from meterhouse.metering import Scope, Sums
from meterhouse.money import Meterable
from meterhouse.usage import Exactness, Outcome, Usage


@pytest.fixture
async def ledger(engine):
    return LedgerStore(engine, now_ms=lambda: HOUR + 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
async def file_engine(path):
    """For what only a file can suffer."""
    async with opened_store(path) as engine:
        yield engine


@pytest.fixture
async def file_ledger(file_engine):
    return LedgerStore(file_engine)


# --- writing


async def test_a_record_comes_back_as_it_was_written(ledger):
    whole = record(
        usage=Usage(*range(1, 8)),
        charges=tuple((kind.value, i) for i, kind in enumerate(Meterable, 1)),
        charge_nanos=28,
        outcome=Outcome.CUT,
        exactness=Exactness.COUNTED,
        is_suspect=True,
        overrun_nanos=7,
    )
    bare = record(
        request_id=whole.request_id,
        attempt=2,
        price_id=None,
        charges=(),
        charge_nanos=0,
        time_to_first_token_ms=None,
        is_streamed=False,
    )
    assert await ledger.insert([bare, whole]) == 2
    assert await ledger.find_records(whole.request_id) == [whole, bare]
    assert await ledger.find_records(new_request_id()) == []


ODD_TEXTS = (
    "",
    " ",
    "NULL",
    "null",
    '"',
    '","',
    "\\",
    '\\"',
    "{}",
    "{a,b}",
    ",",
    "a\nb\t",
    "'",
    "$1",
    "é\U0001f30a",
    "\x1f",
    "a ",
)


async def test_any_text_comes_back_as_it_was_written(ledger):
    """Alone and in one batch with all others: a column of a batch travels as one text."""
    records = [record(model=text, error_code=text[::-1], price_id=text) for text in ODD_TEXTS]
    bare = record(model="plain", price_id=None, time_to_first_token_ms=None)
    assert await ledger.insert([*records, bare]) == len(records) + 1
    alone = [record(model=text, price_id=None if text else text) for text in ODD_TEXTS]
    for one in alone:
        assert await ledger.insert([one]) == 1
    for one in (*records, bare, *alone):
        assert await ledger.find_records(one.request_id) == [one]
    assert await ledger.rebuild_check() == []


@pytest.mark.parametrize("text", ODD_TEXTS)
async def test_what_all_rows_of_a_batch_say_comes_back_as_it_was_written(ledger, text):
    """It travels once, beside an empty column."""
    same = {"model": text, "error_code": text, "price_id": None, "time_to_first_token_ms": None}
    records = [record(**same, is_suspect=True, exactness=Exactness.ASSUMED, overrun_nanos=-1) for _ in range(3)]
    assert await ledger.insert(records) == 3
    for one in records:
        assert await ledger.find_records(one.request_id) == [one]
    assert await ledger.rebuild_check() == []


async def test_what_is_offered_again_is_taken_for_new_but_once(ledger, engine):
    """A replay of days would otherwise fill PostgreSQL's log with one error after another."""
    failures = []
    sa.event.listen(engine.sync_engine, "handle_error", failures.append)
    batches = [[record() for _ in range(3)] for _ in range(4)]
    assert [await ledger.insert(batch) for batch in batches] == [3, 3, 3, 3]
    assert failures == []
    assert [await ledger.insert(batch) for batch in batches] == [0, 0, 0, 0]
    assert [await ledger.insert([record()]) for _ in range(2)] == [1, 1]
    assert [type(failure.sqlalchemy_exception) for failure in failures] == [exc.IntegrityError]
    assert await ledger.rebuild_check() == []


async def test_a_record_is_stamped_with_the_time_of_writing(engine, ledger, is_postgres):
    """PostgreSQL's clock, which all workers share, or this process's, which is here one that stands still."""
    before_ms = time.time_ns() // 1_000_000
    await ledger.insert([record()])
    [row] = await rows_of(engine, usage_record)
    if is_postgres:
        assert before_ms <= row["recorded_at_ms"] <= time.time_ns() // 1_000_000
    else:
        assert row["recorded_at_ms"] == HOUR + 5


async def test_writing_again_changes_nothing(engine, ledger):
    records = [record() for _ in range(3)]
    assert await ledger.insert(records) == 3
    before = await rows_of(engine, usage_hour)
    assert await ledger.insert(records) == 0
    assert await ledger.insert([*records, record()]) == 1
    assert await ledger.insert([]) == 0
    after = await rows_of(engine, usage_hour)
    assert ([row["requests"] for row in before], [row["requests"] for row in after]) == ([3], [4])


async def test_one_batch_with_a_record_twice_counts_it_once(ledger):
    twice = record()
    assert await ledger.insert([twice, record(request_id=twice.request_id, charge_nanos=5), twice]) == 1
    assert await ledger.find_records(twice.request_id) == [twice]
    assert await ledger.rebuild_check() == []


async def test_two_writers_at_once_write_each_record_once(ledger):
    records = [record(model=f"m{i % 7}") for i in range(60)]
    counts = await asyncio.gather(*(ledger.insert(part) for part in (records[:40], records[20:], records[::-1])))
    assert sum(counts) == 60
    assert await ledger.rebuild_check() == []
    assert await ledger.sum_period(period(Scope.KEY, "key_1")) == Sums(60, 60 * 110, 60_000)


async def test_a_batch_larger_than_one_statement_is_written_whole_and_fast(ledger, is_postgres):
    await ledger.insert([record()])
    records = [record(key_id=f"key_{i}", root_key_id=f"key_{i}") for i in range(1_000)]
    # 35 ms of SQLite, of this process's own time, and 100 ms of PostgreSQL on a quiet machine; the bound only catches
    # a change of kind.
    clock, most_seconds = (time.perf_counter, 3) if is_postgres else (time.process_time, 0.5)
    started = clock()
    assert await ledger.insert(records) == 1_000
    assert clock() - started < most_seconds
    assert (await ledger.sum_period(period(Scope.ORGANIZATION, "org_1"))).requests == 1_001
    assert await ledger.rebuild_check() == []


async def test_a_batch_is_written_whole_or_not_at_all(engine, ledger):
    async with writing(engine) as connection:
        await connection.execute(sa.text("ALTER TABLE usage_hour RENAME TO usage_hour_aside"))
    with pytest.raises(StoreDown):
        await ledger.insert([record()])
    async with writing(engine) as connection:
        await connection.execute(sa.text("ALTER TABLE usage_hour_aside RENAME TO usage_hour"))
    assert await rows_of(engine, usage_record) == []
    assert await ledger.insert([record()]) == 1


async def test_what_no_text_of_a_database_can_hold_does_not_stop_the_ledger(ledger):
    """A provider names the served model, and PostgreSQL has no NUL."""
    hostile = record(served_model="gpt\0evil", error_code="\0")
    assert await ledger.insert([record(), hostile]) == 2
    [found] = await ledger.find_records(hostile.request_id)
    assert (found.served_model, found.error_code) == ("gpt\ufffdevil", "\ufffd")
    assert await ledger.insert([hostile]) == 0


async def test_a_charge_of_an_unknown_component_is_refused_rather_than_lost(engine, ledger):
    with pytest.raises(KeyError):
        await ledger.insert([record(charges=(("telepathy", 1_000),))])
    assert await rows_of(engine, usage_record) == []


# --- sums


async def test_a_period_sums_its_owner_and_its_time(ledger):
    await ledger.insert(
        [
            record(admitted_at_ms=HOUR - 1),
            record(),
            record(key_id="key_2", admitted_at_ms=HOUR + HOUR_MS - 1),
            record(root_key_id="key_3", key_id="key_3"),
            record(project_id="proj_2"),
            record(organization_id="org_2", project_id="proj_3", root_key_id="key_4"),
            record(admitted_at_ms=HOUR + HOUR_MS),
        ]
    )
    span = (HOUR, HOUR + HOUR_MS)
    counts = {
        (Scope.KEY, "key_1"): 3,
        (Scope.KEY, "key_2"): 0,
        (Scope.PROJECT, "proj_1"): 3,
        (Scope.ORGANIZATION, "org_1"): 4,
        (Scope.ORGANIZATION, "nobody"): 0,
    }
    for (scope, scope_id), count in counts.items():
        assert await ledger.sum_period(period(scope, scope_id, *span)) == Sums(count, 110 * count, 1_000 * count)


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "count"),
    [
        (None, None, 4),
        (HOUR, None, 3),
        (None, HOUR, 1),
        (HOUR, HOUR + HOUR_MS, 2),
        (HOUR + 10, HOUR + HOUR_MS, 1),
        (HOUR, HOUR + 11, 2),
        (HOUR + 10, HOUR + 10, 0),
    ],
)
async def test_a_period_starts_inclusive_ends_exclusive_and_need_not_be_whole_hours(ledger, start_ms, end_ms, count):
    moments = (HOUR - 1, HOUR, HOUR + 10, HOUR + HOUR_MS)
    await ledger.insert([record(admitted_at_ms=moment) for moment in moments])
    assert (await ledger.sum_period(period(Scope.KEY, "key_1", start_ms, end_ms))).requests == count


async def test_a_limit_of_one_model_sums_that_model(ledger):
    await ledger.insert([record(), record(), record(model="other")])
    asked = [period(Scope.PROJECT, "proj_1", model=model) for model in ("gpt", "other", "none", None)]
    assert [sums.requests for sums in await ledger.sum_periods(asked)] == [2, 1, 0, 3]


async def test_adjustments_move_the_sums_of_their_period(ledger):
    await ledger.insert([record()])
    credit = Adjustment("adj_1", "org_1", "proj_1", "key_1", HOUR, -400, -10, "credit", HOUR)
    assert await ledger.insert_adjustment(credit)
    assert not await ledger.insert_adjustment(credit)
    assert await ledger.insert_adjustment(replace(credit, id="adj_2", root_key_id=None, nanos=5, tokens=0))
    assert await ledger.insert_adjustment(replace(credit, id="adj_3", period_start_ms=HOUR + HOUR_MS, nanos=7_000))
    span = (HOUR, HOUR + HOUR_MS)
    asked = [
        period(Scope.KEY, "key_1", *span),
        period(Scope.PROJECT, "proj_1", *span),
        period(Scope.ORGANIZATION, "org_1", *span),
        period(Scope.ORGANIZATION, "org_1", *span, model="gpt"),
        period(Scope.ORGANIZATION, "org_1"),
    ]
    assert await ledger.sum_periods(asked) == [
        Sums(1, 100, 600),
        Sums(1, 100, 605),
        Sums(1, 100, 605),
        Sums(1, 110, 1_000),
        Sums(1, 90, 7_605),
    ]


async def test_several_periods_are_summed_at_one_moment(ledger, engine):
    """Each batch adds one record to each of two keys, so no snapshot may show them apart."""
    done = asyncio.Event()

    async def write():
        for _ in range(20):
            await ledger.insert([record(), record(key_id="key_2", root_key_id="key_2")])
        done.set()

    async def read():
        seen = []
        while not done.is_set():
            seen.append(await ledger.sum_periods([period(Scope.KEY, "key_1"), period(Scope.KEY, "key_2")]))
        return seen

    seen, _ = await asyncio.gather(read(), write())
    assert len(seen) > 1
    assert all(first == second for first, second in seen)


async def test_sums_are_answered_by_an_index(file_engine):
    wanted = {
        "SELECT 1 FROM usage_hour WHERE organization_id = 'o' AND hour_ms >= 5": "(organization_id=? AND hour_ms>?)",
        "SELECT 1 FROM usage_hour WHERE project_id = 'p' AND hour_ms >= 5": "(project_id=? AND hour_ms>?)",
        "SELECT 1 FROM usage_hour WHERE root_key_id = 'k' AND hour_ms >= 5": "(root_key_id=? AND hour_ms>?)",
        "SELECT 1 FROM usage_hour WHERE hour_ms >= 5": "(hour_ms>?)",
        "SELECT duration_ms FROM usage_record WHERE organization_id = 'o' AND admitted_at_ms > 5": "admitted_at_ms>?",
        "SELECT duration_ms FROM usage_record WHERE project_id = 'o' AND admitted_at_ms > 5": "admitted_at_ms>?",
        "SELECT duration_ms FROM usage_record WHERE root_key_id = 'o' AND admitted_at_ms > 5": "admitted_at_ms>?",
        "SELECT nanos FROM adjustment WHERE root_key_id = 'o' AND period_start_ms > 5": "period_start_ms>?",
    }
    async with file_engine.connect() as connection:
        for query, plan in wanted.items():
            rows = await connection.execute(sa.text(f"EXPLAIN QUERY PLAN {query}"))
            [detail] = [row.detail for row in rows]
            assert detail.startswith("SEARCH")
            assert plan in detail


async def test_usage_is_grouped_as_asked(ledger):
    await ledger.insert(
        [
            record(),
            record(model="other", key_id="key_2"),
            record(key_id="key_2", attempt=0, requests=0, usage=Usage(), charge_nanos=0, charges=()),
            record(admitted_at_ms=DAY + 24 * HOUR_MS, organization_id="org_2"),
        ]
    )

    async def requests_by(*words, **changes):
        rows = await ledger.usage_by(UsageQuery(words, DAY, DAY + 48 * HOUR_MS, **changes))
        return {row.group: (row.requests, row.attempts) for row in rows}

    assert await requests_by("day") == {(DAY,): (2, 2), (DAY + 24 * HOUR_MS,): (1, 1)}
    assert await requests_by("hour", organization_id="org_1") == {(HOUR,): (2, 2)}
    assert await requests_by("key", "model", project_id="proj_1", organization_id="org_1") == {
        ("key_1", "gpt"): (1, 1),
        ("key_2", "gpt"): (0, 0),
        ("key_2", "other"): (1, 1),
    }
    assert await requests_by("organization", "project", "provider", key_id="key_1") == {
        ("org_1", "proj_1", "openai"): (1, 1),
        ("org_2", "proj_1", "openai"): (1, 1),
    }
    assert await requests_by("day", key_id="nobody") == {}


@pytest.mark.parametrize("from_ms", [HOUR, HOUR + 1])
async def test_usage_has_the_same_sums_from_the_projection_and_from_the_records(ledger, from_ms):
    await ledger.insert([record(admitted_at_ms=HOUR + 2), record(admitted_at_ms=HOUR + 2, outcome=Outcome.CUT)])
    [row] = await ledger.usage_by(UsageQuery(("hour", "organization"), from_ms, HOUR + HOUR_MS))
    assert row.group == (HOUR, "org_1")
    assert row.usage == Usage(input_tokens=200, cached_input_tokens=80, output_tokens=20, reasoning_tokens=10)
    assert (row.requests, row.attempts, row.charge_nanos) == (2, 2, 2_000)


async def test_usage_without_a_group_is_one_row(ledger):
    await ledger.insert([record(), record(model="other")])
    [row] = await ledger.usage_by(UsageQuery((), HOUR, HOUR + HOUR_MS))
    assert (row.group, row.requests) == ((), 2)


async def test_a_value_is_never_taken_for_sql(ledger):
    nasty = "'; DROP TABLE usage_record; --"
    await ledger.insert([record(model=nasty, organization_id=nasty)])
    [row] = await ledger.usage_by(UsageQuery(("model",), HOUR, HOUR + HOUR_MS, organization_id=nasty))
    assert row.group == (nasty,)


# --- what is there stays


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE usage_record SET charge_nanos = 0",
        "DELETE FROM usage_record",
        "INSERT OR REPLACE INTO usage_record SELECT * FROM usage_record",
        "UPDATE adjustment SET nanos = 0",
        "DELETE FROM adjustment",
        "INSERT OR REPLACE INTO adjustment SELECT * FROM adjustment",
    ],
)
async def test_the_ledger_is_append_only(file_engine, file_ledger, statement):
    ledger = file_ledger
    await ledger.insert([record()])
    await ledger.insert_adjustment(Adjustment("adj_1", "org_1", "proj_1", None, HOUR, 1, 1, "why", HOUR))
    with pytest.raises(exc.IntegrityError, match="append-only"):
        async with writing(file_engine) as connection:
            await connection.execute(sa.text(statement))
    assert (await ledger.sum_period(period(Scope.ORGANIZATION, "org_1"))) == Sums(1, 111, 1_001)


# --- when the database is away


async def test_without_a_database_every_method_is_store_down(file_engine, file_ledger, path):
    ledger = file_ledger
    await ledger.insert([record()])
    async with taken_away(file_engine, path):
        for call in (
            ledger.insert([record()]),
            ledger.sum_period(period(Scope.KEY, "key_1")),
            ledger.find_records(new_request_id()),
            ledger.usage_by(UsageQuery(("day",), HOUR, HOUR + 1)),
            ledger.rebuild_check(),
            ledger.insert_adjustment(Adjustment("adj_1", "org_1", "proj_1", None, HOUR, 1, 1, "why", HOUR)),
        ):
            with pytest.raises(StoreDown) as caught:
                await call
            assert "unable to open database file" in caught.value.detail
            assert "database file" not in caught.value.message
    assert await ledger.insert([record()]) == 1


async def test_a_locked_file_is_store_down_for_writers_and_open_for_readers(file_ledger, path):
    ledger = file_ledger
    await ledger.insert([record()])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreDown) as caught:
        await ledger.insert([record()])
    assert "database is locked" in caught.value.detail
    assert (await ledger.sum_period(period(Scope.KEY, "key_1"))).requests == 1
    other.close()
    assert await ledger.insert([record()]) == 1


async def test_a_file_that_is_no_database_is_store_down(file_engine, file_ledger, path):
    async with taken_away(file_engine, path):
        path.rmdir()
        path.write_bytes(b"this is no database, but long enough to be taken for one" * 100)
        with pytest.raises(StoreDown):
            await file_ledger.insert([record()])
        path.unlink()
        path.mkdir()


# The pool drops the connection of a cancelled write to the collector, of which Python 3.13 warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_cancelled_write_leaves_the_store_usable(ledger):
    records = [record() for _ in range(500)]
    writing_task = asyncio.create_task(ledger.insert(records))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    writing_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing_task
    written = await ledger.insert(records)
    assert written in {0, 500}
    assert (await ledger.sum_period(period(Scope.KEY, "key_1"))).requests == 500
    assert await ledger.rebuild_check() == []
