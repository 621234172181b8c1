"""Usage records, periods and rows for tests of the ledger."""

import msgspec
import sqlalchemy as sa

from meterhouse.db.tables import HOUR_MS
from meterhouse.ids import new_request_id
from meterhouse.metering import Kind, Limit, Period, Window
from meterhouse.usage import Exactness, Outcome, Usage, UsageRecord

HOUR = 500_000 * HOUR_MS
"""A whole hour and a whole day of UTC are not the same: this is 08:00."""
DAY = HOUR - HOUR % (24 * HOUR_MS)


def record(**changes):
    plain = UsageRecord(
        request_id=new_request_id(),
        attempt=1,
        requests=1,
        organization_id="org_1",
        project_id="proj_1",
        key_id="key_1",
        root_key_id="key_1",
        model="gpt",
        served_model="gpt-2026",
        provider="openai",
        deployment="openai-1",
        upstream_model="gpt-2026-01",
        operation="chat",
        service_tier="default",
        outcome=Outcome.COMPLETED,
        exactness=Exactness.REPORTED,
        error_owner="",
        error_code="",
        is_streamed=True,
        is_suspect=False,
        usage=Usage(input_tokens=100, cached_input_tokens=40, output_tokens=10, reasoning_tokens=5),
        price_id="price_1",
        charge_nanos=1_000,
        charges=(("input", 600), ("cached_input", 100), ("output", 300)),
        overrun_nanos=0,
        admitted_at_ms=HOUR + 60_000,
        time_to_first_token_ms=120,
        duration_ms=900,
        trace_id="a" * 32,
    )
    return msgspec.structs.replace(plain, **changes)


def period(scope, scope_id, start_ms=None, end_ms=None, model=None):
    return Period(Limit(scope, scope_id, Kind.SPEND, Window.MONTH, 10**9, model=model), start_ms, end_ms)


async def rows_of(engine, table):
    async with engine.connect() as connection:
        return (await connection.execute(sa.select(table))).mappings().all()
