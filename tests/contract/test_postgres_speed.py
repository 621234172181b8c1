"""How fast the ledger drains into PostgreSQL over one connection, and how long a month's percentiles take to read."""

import time

import pytest
import sqlalchemy as sa

from fakes.ledger import DAY, record
from fakes.store import MovingClock
from meterhouse.admin.breakdown import BreakdownParams, read_breakdown
from meterhouse.admin.usage import UsageParts
from meterhouse.db.engine import close, open_engine, writing
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.refusals import RefusalStore
from meterhouse.db.reports import ReportStore
from meterhouse.db.tables import HOUR_KEY_COLUMNS, HOUR_MS, MEASURE_COLUMNS

BATCHES = 5
BATCH_RECORDS = 1_000
FLOOR_PER_SECOND = 1_500
"""On a busy machine. Quiet, on two cores, with fsync: 18,000 of one key, 8,000 where each has an hourly row."""


@pytest.mark.parametrize("keys", [1, 100, BATCHES * BATCH_RECORDS], ids=lambda keys: f"{keys} keys")
async def test_the_ledger_drains_faster_than_a_worker_fills_it(migrated_database_url, figures, keys):
    engine = open_engine(migrated_database_url, EnginePolicy(connections=1))
    ledger = LedgerStore(engine)
    await ledger.insert([record()])
    names = [f"key_{i % keys}" for i in range(BATCHES * BATCH_RECORDS)]
    records = [record(key_id=name, root_key_id=name) for name in names]
    batches = [records[start : start + BATCH_RECORDS] for start in range(0, len(records), BATCH_RECORDS)]
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        assert await ledger.insert(batch) == BATCH_RECORDS
        seconds.append(time.perf_counter() - started)
    per_second = BATCH_RECORDS / min(seconds)
    figures(**{f"ledger_records_per_second_of_{keys}_keys": per_second})
    assert per_second > FLOOR_PER_SECOND
    assert await ledger.rebuild_check() == []
    await close(engine)


HOURS, KEYS = 30 * 24, 100
REQUESTS_PER_ROW = 1_000
MOST_SECONDS = 10
"""On a busy machine."""


@pytest.mark.slow_fault
async def test_percentiles_of_a_month_cost_the_same_for_any_number_of_requests(migrated_database_url, figures):
    """72 million requests of a hundred keys, as the projection has them."""
    engine = open_engine(migrated_database_url, EnginePolicy(connections=1))
    texts = ("'org_1'", f"{DAY} + CAST(hour AS BIGINT) * {HOUR_MS}", "'proj_1'", *["'key_' || key"] * 2, *["'gpt'"] * 6)
    values = (*texts, *[str(REQUESTS_PER_ROW)] * len(MEASURE_COLUMNS))
    columns = ", ".join((*HOUR_KEY_COLUMNS, *MEASURE_COLUMNS))
    series = f"generate_series(0, {HOURS - 1}) AS hour, generate_series(1, {KEYS}) AS key"
    async with writing(engine) as connection:
        await connection.execute(
            sa.text(f"INSERT INTO usage_hour ({columns}) SELECT {', '.join(values)} FROM {series}")
        )
        await connection.execute(sa.text("ANALYZE usage_hour"))
    parts = UsageParts(ReportStore(engine), RefusalStore(engine), MovingClock(DAY))
    for by in ("model", "key"):
        params = BreakdownParams(start_time=DAY // 1000, end_time=(DAY + HOURS * HOUR_MS) // 1000, by=by)
        started = time.perf_counter()
        found = await read_breakdown(parts, params, None)
        seconds = time.perf_counter() - started
        assert found.total.requests == HOURS * KEYS * REQUESTS_PER_ROW
        assert found.total.first_token.count == HOURS * KEYS * REQUESTS_PER_ROW * 20
        figures(**{f"seconds_of_a_month_of_percentiles_by_{by}": seconds})
        assert seconds < MOST_SECONDS
    await close(engine)
