"""Usage records lie in the month of their request id, and the months to come are there before they begin."""

import asyncio
import datetime as dt
import re
from itertools import pairwise

import pytest
import sqlalchemy as sa

from fakes.ledger import record, rows_of
from meterhouse.db.engine import close, open_engine, reading
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.schema import count_default_rows, ensure_partitions
from meterhouse.db.tables import usage_record

BOUNDS = sa.text(
    "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1"
)
PLACES = sa.text("SELECT CAST(request_id AS text), CAST(CAST(tableoid AS regclass) AS text) FROM usage_record")


@pytest.fixture
async def engine(migrated_database_url):
    """With a time zone that is not UTC, which must not matter."""
    engine = open_engine(f"{migrated_database_url}?timezone=Pacific/Auckland")
    yield engine
    await close(engine)


@pytest.fixture
async def ledger(engine):
    return LedgerStore(engine)


def first_of_month(ahead):
    """The beginning of a month in UTC, as many months ahead."""
    now = dt.datetime.now(dt.UTC)
    months = now.year * 12 + now.month - 1 + ahead
    return dt.datetime(months // 12, months % 12 + 1, 1, tzinfo=dt.UTC)


def request_id_at(moment, shift_ms=0):
    """The first request id of a moment, or the last one of a moment before it."""
    milliseconds = round(moment.timestamp() * 1000) + shift_ms
    rest = "7fffbfffffffffffffff" if shift_ms < 0 else "70008000000000000000"
    return f"{milliseconds:012x}{rest}"


def name_of(moment):
    return f"usage_record_{moment:%Y_%m}"


async def bounds_of(engine):
    async with reading(engine) as connection:
        rows = (await connection.execute(BOUNDS)).all()
    return {
        name: [
            dt.datetime.fromtimestamp(int(text[:8] + text[9:13], 16) / 1000, dt.UTC)
            for text in re.findall(r"'([-0-9a-f]{36})'", bound)
        ]
        for name, bound in rows
        if bound != "DEFAULT"
    }


async def places_of(engine):
    async with reading(engine) as connection:
        return {request_id.replace("-", ""): place for request_id, place in (await connection.execute(PLACES)).all()}


async def test_a_migration_makes_last_months_to_three_months_ahead(engine):
    months = [first_of_month(ahead) for ahead in range(-1, 5)]
    expected = {name_of(start): [start, end] for start, end in pairwise(months)}
    assert await bounds_of(engine) == expected
    assert await ensure_partitions(engine) == 0


async def test_partitions_are_made_ahead_of_time_and_once(engine):
    assert max(await asyncio.gather(*(ensure_partitions(engine, 6) for _ in range(3)))) == 3
    assert await ensure_partitions(engine, 6) == 0
    months = [first_of_month(ahead) for ahead in range(-1, 8)]
    assert sorted(await bounds_of(engine)) == [name_of(month) for month in months[:-1]]


async def test_a_record_lies_in_the_month_of_its_request_id(engine, ledger):
    """Whenever it arrives: the month is that of its admission."""
    expected = {}
    for ahead in (-1, 0, 1, 2, 3):
        start = first_of_month(ahead)
        expected[request_id_at(start)] = name_of(start)
        expected[request_id_at(first_of_month(ahead + 1), -1)] = name_of(start)
    assert await ledger.insert([record(request_id=request_id) for request_id in expected]) == len(expected)
    assert await places_of(engine) == expected
    assert await count_default_rows(engine) == 0


async def test_a_record_of_no_month_is_kept_found_and_counted(engine, ledger):
    early, late = request_id_at(first_of_month(-2)), request_id_at(first_of_month(5))
    assert await ledger.insert([record(request_id=early), record(request_id=late), record()]) == 3
    assert await ledger.insert([record(request_id=late)]) == 0
    assert await count_default_rows(engine) == 2
    assert len(await ledger.find_records(late)) == 1
    assert await ensure_partitions(engine, 6) == 2
    assert name_of(first_of_month(5)) not in await bounds_of(engine)
    assert await ledger.insert([record(request_id=request_id_at(first_of_month(6)))]) == 1
    assert await count_default_rows(engine) == 2


async def test_nobody_waits_for_a_new_partition(engine, ledger):
    is_done = asyncio.Event()

    async def write():
        written = 0
        while not is_done.is_set():
            batch = [record() for _ in range(20)]
            written += await ledger.insert(batch)
            assert len(await ledger.find_records(batch[0].request_id)) == 1
        return written

    async def make():
        made = 0
        for months_ahead in range(4, 25):
            made += await ensure_partitions(engine, months_ahead)
        is_done.set()
        return made

    written, made = await asyncio.gather(write(), make())
    assert made == 21
    assert written == len(await rows_of(engine, usage_record)) > 0


async def test_a_sum_of_a_month_reads_its_partition_by_an_index(engine):
    wanted = {
        "SELECT 1 FROM usage_hour WHERE project_id = 'p' AND hour_ms >= 5": "usage_hour_by_project",
        "SELECT 1 FROM usage_hour WHERE root_key_id = 'k' AND hour_ms >= 5": "usage_hour_by_root_key",
        "SELECT 1 FROM usage_hour WHERE organization_id = 'o' AND hour_ms >= 5": "usage_hour_pkey",
        "SELECT 1 FROM usage_hour WHERE hour_ms >= 5": "usage_hour_by_hour",
        "SELECT nanos FROM adjustment WHERE root_key_id = 'o' AND period_start_ms > 5": "adjustment_by_root_key",
    }
    async with reading(engine) as connection:
        await connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        for query, index in wanted.items():
            plan = "\n".join((await connection.execute(sa.text(f"EXPLAIN {query}"))).scalars())
            assert index in plan
            assert "Index Cond" in plan
        start = request_id_at(first_of_month(1))
        plan = (
            await connection.execute(sa.text(f"EXPLAIN SELECT 1 FROM usage_record WHERE request_id = '{start}'"))
        ).scalars()
        plan = "\n".join(plan)
    assert f"{name_of(first_of_month(1))}_pkey" in plan
    assert plan.count("usage_record_") == 2
