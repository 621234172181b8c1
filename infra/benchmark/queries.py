"""``--ledger N``: how long usage queries take over a month with N requests.

The records are made in PostgreSQL, in order of time over the last 30 days; the projection is made from them by
Meterhouse itself, and Meterhouse's own store asks. A few tenants are large: of a hundred the largest has a tenth.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmark.database import run_as_owner
from benchmark.gateway import run_stores
from benchmark.report import Outcome
from meterhouse.admin.report import Wanted, report_completions, report_costs
from meterhouse.admin.span import Span
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import GroupBy, LedgerStore, UsageQuery
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.rebuild import Projection
from meterhouse.db.reports import ReportStore
from meterhouse.db.tables import HOUR_MS, usage_hour, usage_record
from meterhouse.metering import Kind, Limit, Period, Scope, Window
from stack.place import Place

ORGANIZATIONS, KEYS, MODELS = 100, 5, 3
DAYS = 30
BATCH = 250_000
REPEATS, QUICK_REPEATS = 200, 30
PERCENT = 100
DAY_SECONDS = 86_400
REBUILD_POLICY = EnginePolicy(connections=1, statement_timeout_seconds=60)
TOLD_HOURS = 100_000

VALUES = {
    # A UUIDv7: 48 bits of milliseconds, then the version, the variant and chance.
    "request_id": "(lpad(to_hex(at), 12, '0') || '7' || substr(chance, 1, 3) || '8' || substr(chance, 4, 15))::uuid",
    "attempt": "1",
    "requests": "1",
    "organization_id": "'org_' || organization",
    "project_id": "'proj_' || organization",
    "key_id": "'key_' || organization || '_' || key",
    "root_key_id": "'key_' || organization || '_' || key",
    "model": "'model_' || model",
    "served_model": "'model_' || model",
    "upstream_model": "'model_' || model",
    "provider": "'bench'",
    "deployment": "'bench'",
    "operation": "'chat'",
    "service_tier": "'default'",
    "outcome": "'completed'",
    "exactness": "'reported'",
    "input_tokens": "tokens",
    "output_tokens": "tokens / 4",
    "input_nanos": "tokens * 150",
    "output_nanos": "(tokens / 4) * 600",
    "charge_nanos": "tokens * 150 + (tokens / 4) * 600",
    "admitted_at_ms": "at",
    "recorded_at_ms": "at",
    "time_to_first_token_ms": "tokens % 900",
    "duration_ms": "tokens * 3",
}
ROWS = """
    SELECT i, {start} + ({span}::float8 * i / {count})::bigint AS at, md5(random()::text || i) AS chance,
           floor(power(random(), 2) * {organizations})::int AS organization, floor(random() * {keys})::int AS key,
           floor(random() * {models})::int AS model, (random() * 2000)::int AS tokens
    FROM generate_series({first}, {last}) AS i
"""

Ask = Callable[[LedgerStore, ReportStore, str], Awaitable[object]]
Write = Callable[[ReportStore, Wanted], Awaitable[bytes]]


@dataclass(frozen=True)
class Question:
    """A query that is asked over and over, and what it is in words."""

    name: str
    ask: Ask
    """Asks for an organization."""
    share: float = 1.0
    """How often, to the others."""


def query_ledger(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Fill, project, ask."""
    end_ms = int(time.time() * 1000) // HOUR_MS * HOUR_MS
    start_ms = end_ms - DAYS * 24 * HOUR_MS
    with run_stores(folder) as place:
        began = time.monotonic()
        fill(place, arguments.ledger, start_ms, end_ms)
        filled = time.monotonic()
        asyncio.run(project(place))
        projected = time.monotonic()
        hours = run_as_owner(place, settle)
        repeats = QUICK_REPEATS if arguments.quick else REPEATS
        found = asyncio.run(ask_all(place, make_questions(start_ms, end_ms), repeats))
    tenants = f"{ORGANIZATIONS} organizations with {KEYS} keys and {MODELS} models each"
    lines = [
        f"{arguments.ledger:,} requests of {tenants} over {DAYS} days, written in {filled - began:,.0f} s",
        f"the projection: {hours:,} rows, made in {projected - filled:,.0f} s",
    ]
    width = max(map(len, found))
    lines += [
        f"{name:<{width}}  p50 {times['p50_ms']:7.1f} ms  p95 {times['p95_ms']:7.1f} ms  ({times['times']:.0f} times)"
        for name, times in found.items()
    ]
    figures = {"requests": arguments.ledger, "hours": hours, "fill_seconds": filled - began}
    return Outcome(lines=lines, figures={**figures, "projection_seconds": projected - filled, "queries": found})


def fill(place: Place, count: int, start_ms: int, end_ms: int) -> None:
    """Write the records; says how far it is."""
    columns = [(column.name, VALUES.get(column.name) or _default(column)) for column in usage_record.c]
    names, values = (", ".join(part) for part in zip(*columns, strict=True))
    for first in range(1, count + 1, BATCH):
        last = min(first + BATCH - 1, count)
        source = ROWS.format(
            start=start_ms,
            span=end_ms - start_ms - 1,
            count=count,
            organizations=ORGANIZATIONS,
            keys=KEYS,
            models=MODELS,
            first=first,
            last=last,
        )
        statement = f"INSERT INTO usage_record ({names}) SELECT {values} FROM ({source}) AS made"  # noqa: S608
        run_as_owner(place, partial(_execute, statement))
        print(f"{last:,} of {count:,} records written", file=sys.stderr)


async def _execute(statement: str, connection: Any) -> None:
    await connection.execute(statement)


def _default(column: sa.Column[Any]) -> str:
    if column.nullable:
        return "NULL"
    if isinstance(column.type, sa.Boolean):
        return "false"
    return "''" if isinstance(column.type, sa.Text) else "0"


async def project(place: Place) -> None:
    """Make the projection as ``meterhouse ledger rebuild`` does; says how far it is."""
    engine = open_engine(place.database_url, REBUILD_POLICY)
    made = 0
    try:
        async for _ in Projection(engine).rebuild():
            made += 1
            if made % TOLD_HOURS == 0:
                print(f"{made:,} rows of the projection made", file=sys.stderr)
    finally:
        await close(engine)


async def settle(connection: Any) -> int:
    """Do what PostgreSQL would have done by itself over a month; returns how many rows the projection has."""
    for table in (usage_hour.name, usage_record.name):
        await connection.execute(f"VACUUM (ANALYZE) {table}")
    return int(await connection.fetchval(f"SELECT count(*) FROM {usage_hour.name}"))  # noqa: S608 - our own word


def make_questions(start_ms: int, end_ms: int) -> list[Question]:
    """Return what is asked: a tenant's month in several ways, everybody's, and what a budget of it counts."""
    month = UsageQuery(("day",), start_ms, end_ms)

    def of_one(*words: GroupBy) -> Ask:
        async def ask(store: LedgerStore, _: ReportStore, organization: str) -> object:
            return await store.usage_by(replace(month, group_by=words, organization_id=organization))

        return ask

    def page_of_one(write: Write, *words: str) -> Ask:
        """Ask as the administration API does, up to the bytes of its answer."""
        span = Span(start_ms // 1000, end_ms // 1000, DAY_SECONDS, DAYS + 1)

        async def ask(_: LedgerStore, reports: ReportStore, organization: str) -> object:
            return await write(reports, Wanted(span=span, organization_id=organization, group_by=words))

        return ask

    async def everybody(store: LedgerStore, _: ReportStore, __: str) -> object:
        return await store.usage_by(replace(month, group_by=("organization",)))

    async def budget(store: LedgerStore, _: ReportStore, organization: str) -> object:
        limit = Limit(Scope.ORGANIZATION, organization, Kind.SPEND, Window.MONTH, 1)
        return await store.sum_period(Period(limit, start_ms, end_ms))

    return [
        Question("a month of a tenant by day", of_one("day")),
        Question("a month of a tenant by key and model", of_one("key", "model")),
        Question("a month of a tenant by hour", of_one("hour")),
        Question("what a tenant's monthly budget counts", budget),
        Question("GET usage/completions of a month", page_of_one(report_completions)),
        Question("... by key and model", page_of_one(report_completions, "api_key_id", "model")),
        Question("GET costs of a month", page_of_one(report_costs)),
        Question("... by line item and key", page_of_one(report_costs, "line_item", "api_key_id")),
        Question("a month of everybody by organization", everybody, 0.1),
    ]


async def ask_all(place: Place, questions: list[Question], repeats: int) -> dict[str, dict[str, float]]:
    """Ask everything, each time of a tenant by chance, one after another; returns milliseconds."""
    engine = open_engine(place.database_url)
    found = {}
    try:
        store, reports = LedgerStore(engine), ReportStore(engine)
        for question in questions:
            times = []
            for _ in range(max(int(repeats * question.share), 1)):
                organization = f"org_{random.randrange(ORGANIZATIONS)}"  # noqa: S311 - no secret
                began = time.perf_counter()
                await question.ask(store, reports, organization)
                times.append((time.perf_counter() - began) * 1000)
            times.sort()
            found[question.name] = {
                "p50_ms": times[len(times) // 2],
                "p95_ms": times[len(times) * 95 // PERCENT],
                "times": len(times),
            }
    finally:
        await close(engine)
    return found
