"""A tenant with a million rows in the projection: its budgets are learned, and within the bound of whoever asks.

``METERHOUSE_TEST_FAULTS=full pytest -s tests/contract/test_large_organization.py`` prints how long the sums took.
"""

import time

import pytest
import sqlalchemy as sa

from fakes.crew import ORGANIZATION, Crew
from fakes.meter_oracle import KEY, PROJECT
from meterhouse.db.balances import LedgerBalances
from meterhouse.db.engine import close, open_engine, writing
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.tables import HOUR_KEY_COLUMNS, MEASURE_COLUMNS, usage_hour
from meterhouse.limits.learning import LONGEST_SUM_SECONDS
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import Period, Scope
from meterhouse.settings import Settings
from meterhouse.stores import PATIENT_SECONDS, open_patient_engine

ROWS = 1_000_000
HOURS = 24 * 365
FIRST_HOUR_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
TOKENS, NANOS = 7, 3
KEYS = {
    "organization_id": f"'{ORGANIZATION}'",
    "hour_ms": f"{FIRST_HOUR_MS} + (i % {HOURS})::bigint * 3600000",
    "project_id": f"'{PROJECT}'",
    "key_id": f"CASE WHEN i < {HOURS} THEN '{KEY}' ELSE 'key_of_' || i / {HOURS} END",
    "root_key_id": f"CASE WHEN i < {HOURS} THEN '{KEY}' ELSE 'key_of_' || i / {HOURS} END",
    "model": "'gpt-4o'",
    "provider": "'openai'",
    "operation": "'chat'",
    "service_tier": "'default'",
    "outcome": "'completed'",
    "error_owner": "''",
}
MEASURES = {"requests": "1", "input_tokens": str(TOKENS), "charge_nanos": str(NANOS)}
BUDGET = "spend 1000 USD total"
pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(600)]


@pytest.fixture
async def large(migrated_database_url):
    """The database, with an hourly row for each of a hundred keys and each hour of a year."""
    engine = open_engine(migrated_database_url, EnginePolicy(statement_timeout_seconds=500))
    names = (*HOUR_KEY_COLUMNS, *MEASURE_COLUMNS)
    values = ", ".join(KEYS.get(name) or MEASURES.get(name, "0") for name in names)
    rows = f"SELECT {values} FROM generate_series(0, {ROWS - 1}) AS i"
    async with writing(engine) as connection:
        await connection.execute(sa.text(f"INSERT INTO usage_hour ({', '.join(names)}) {rows}"))
    async with writing(engine) as connection:
        await connection.execute(sa.text("ANALYZE usage_hour"))
        count = await connection.scalar(sa.select(sa.func.count()).select_from(usage_hour))
    assert count == ROWS
    await close(engine)
    return migrated_database_url


async def test_its_budgets_are_summed_within_the_learners_bound_and_learned(large, redis_url, tmp_path):
    patient = open_patient_engine(Settings(database_url=large, data=tmp_path))  # what production sums with
    balances, longest_seconds = LedgerBalances(patient), 0.0
    for scope, scope_id, rows in (
        (Scope.ORGANIZATION, ORGANIZATION, ROWS),
        (Scope.PROJECT, PROJECT, ROWS),
        (Scope.KEY, KEY, HOURS),
    ):
        (limit,) = parse_limits(BUDGET, scope, scope_id)
        began = time.perf_counter()
        found = await balances.sum_before([Period(limit, None, None)], FIRST_HOUR_MS * 2, ())
        seconds = time.perf_counter() - began
        assert found.periods[0].charge_nanos == rows * NANOS
        assert found.periods[0].total_tokens == rows * TOKENS
        print(f"a budget of all time of a {scope}: {rows:,} hourly rows summed in {seconds:.2f} s")
        longest_seconds = max(longest_seconds, seconds)
    assert longest_seconds < LONGEST_SUM_SECONDS < PATIENT_SECONDS
    async with Crew(patient, redis_url, tmp_path).hire("one") as one:
        limits = parse_limits(BUDGET, Scope.ORGANIZATION, ORGANIZATION)
        (state,) = await one.meter.list_states(ORGANIZATION, limits)
        assert (state.spent, state.reserved) == (ROWS * NANOS, 0)
        await one.admit(limits)
        (state,) = await one.meter.list_states(ORGANIZATION, limits)
        assert (state.spent, state.reserved) == (ROWS * NANOS, 110)
        assert await one.meter.reconcile() == 0
    await close(patient)
