"""Sums of the ledger by buckets of time: what usage, costs and plots are read from.

A span is read from the hourly projection where its buckets are made of whole hours, and from the records for minutes
and for what is left over at its two ends; all of it in one snapshot. So the cost of a month does not grow with the
number of requests.

Invariant: every sum is an integer, and the buckets of a span add up to what the ledger has of it, however it is cut.
Not here: what a report looks like (``admin``), sums that a limit counts (``db.balances``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from meterhouse.db.balances import Source, total
from meterhouse.db.engine import reading
from meterhouse.db.tables import DURATION_COLUMNS, HOUR_MS, adjustment, key, usage_hour, usage_record

MAX_ROWS = 20_000
"""Most rows of one part of a report; beyond it the span has to be cut."""
ID_TIME_MARGIN_MS = HOUR_MS
"""A request is admitted at most so long before or after its id was made."""

Group = Literal[
    "organization_id",
    "project_id",
    "key_id",
    "model",
    "provider",
    "operation",
    "service_tier",
    "outcome",
    "error_owner",
]

RECORDS = "records"
"""A measure: how many records there are, which is how many attempts ended, and requests that reached no provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportQuery:
    """What to sum, from a moment to before another, and how finely."""

    start_ms: int
    end_ms: int
    width_ms: int
    """Buckets begin at multiples of it since 1970, in UTC; the first and the last one are cut to the span."""
    measures: Sequence[str]
    """Names of ``MEASURE_COLUMNS``, or ``RECORDS``."""
    group_by: Sequence[Group] = ()
    organization_id: str | None = None
    """None: everybody's."""
    only: Mapping[Group, Sequence[str]] = field(default_factory=dict)
    """Columns and the values that count; a key stands for its client tokens too, and is grouped with them."""
    never: Mapping[Group, Sequence[str]] = field(default_factory=dict)
    """Columns and the values that do not count."""


@dataclass(frozen=True, slots=True)
class BucketSums:
    """The sums of one group in one bucket, in the order of the query's words."""

    bucket_ms: int
    """Where the whole bucket begins."""
    group: tuple[str, ...]
    sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdjustmentSums:
    """What adjustments change in a bucket, by project and, where they name one, by the first key of a chain."""

    bucket_ms: int
    organization_id: str
    project_id: str
    root_key_id: str | None
    nanos: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a query found; None where it was more than ``MAX_ROWS`` rows."""

    rows: list[BucketSums] | None
    adjustments: list[AdjustmentSums]


class KeyOf(FunctionElement[str]):
    """The key of what a record names: itself, or what stands before the dot of a client token's id."""

    inherit_cache = True
    name = "key_of"
    type = sa.Text()


@compiles(KeyOf)
def _key_of(element: KeyOf, compiler: SQLCompiler, **options: Any) -> str:
    return f"split_part({compiler.process(element.clauses, **options)}, '.', 1)"


@compiles(KeyOf, "sqlite")
def _key_of_sqlite(element: KeyOf, compiler: SQLCompiler, **options: Any) -> str:
    column = compiler.process(element.clauses, **options)
    return f"substr({column}, 1, instr({column} || '.', '.') - 1)"


def of_keys(column: sa.ColumnElement[str], ids: Sequence[str]) -> sa.ColumnElement[bool]:
    """Match what keys used, with their client tokens; a token's own id matches what was used with it."""
    return sa.or_(column.in_(ids), KeyOf(column).in_(ids))


class ReportStore:
    """Reads reports. Every method is one snapshot and raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine, max_rows: int = MAX_ROWS) -> None:
        self._engine = engine
        self._max_rows = max_rows

    async def read(self, query: ReportQuery, *, has_adjustments: bool = False) -> Report:
        """Sum a span by bucket and group, in the order of both; adjustments beside, where they are asked for.

        Adjustments know no model, operation or provider: of a query's filters they obey organization, project and key.
        They name the first key of a chain of rotations, and count for each of its keys.
        """
        found: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        corrections: list[AdjustmentSums] = []
        async with reading(self._engine) as connection:
            for source, part in _cut(query):
                result = await connection.execute(_statement(source, part).limit(self._max_rows + 1))
                for row in result:
                    group = tuple(row[1 : 1 + len(query.group_by)])
                    sums = found.setdefault((int(row[0]), group), [0] * len(query.measures))
                    for i, value in enumerate(row[1 + len(query.group_by) :]):
                        sums[i] += int(value)
                if len(found) > self._max_rows:
                    return Report(None, [])
            if has_adjustments:
                corrections = await _read_adjustments(connection, query, self._max_rows + 1)
                if len(corrections) > self._max_rows:
                    return Report(None, [])
        rows = [BucketSums(*place, tuple(found[place])) for place in sorted(found)]
        return Report(rows, corrections)


def _cut(query: ReportQuery) -> Iterator[tuple[Source, ReportQuery]]:
    """Divide a span into what the projection has and what only the records have; leave out what is empty."""
    first_hour_ms = -(-query.start_ms // HOUR_MS) * HOUR_MS
    behind_hours_ms = query.end_ms // HOUR_MS * HOUR_MS
    if query.width_ms % HOUR_MS or first_hour_ms >= behind_hours_ms:
        if query.start_ms < query.end_ms:
            yield Source.of_records(), query
        return
    yield Source.of(None, None), replace(query, start_ms=first_hour_ms, end_ms=behind_hours_ms)
    for start_ms, end_ms in ((query.start_ms, first_hour_ms), (behind_hours_ms, query.end_ms)):
        if start_ms < end_ms:
            yield Source.of_records(), replace(query, start_ms=start_ms, end_ms=end_ms)


def _statement(source: Source, query: ReportQuery) -> sa.Select[*tuple[Any, ...]]:
    columns = source.table.c
    bucket = (source.at - source.at % query.width_ms).label("bucket_ms")
    groups = [_group(columns[name]).label(f"by_{name}") for name in query.group_by]
    sums = [total(_measure(source, name)).label(f"sum_{i}") for i, name in enumerate(query.measures)]
    statement = sa.select(bucket, *groups, *sums).where(source.at >= query.start_ms, source.at < query.end_ms)
    if query.organization_id is not None:
        statement = statement.where(columns.organization_id == query.organization_id)
    elif source.table is usage_record:
        # No index has the time alone, but the primary key begins with it, and finds the partitions besides.
        statement = statement.where(
            columns.request_id >= id_at(query.start_ms - ID_TIME_MARGIN_MS),
            columns.request_id < id_at(query.end_ms + ID_TIME_MARGIN_MS),
        )
    statement = statement.where(*(_only(columns[name], values) for name, values in query.only.items()))
    statement = statement.where(*(columns[name].not_in(values) for name, values in query.never.items()))
    return statement.group_by(bucket, *groups)


def _group(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    return KeyOf(column) if column.key == "key_id" else column


def _only(column: sa.ColumnElement[str], values: Sequence[str]) -> sa.ColumnElement[bool]:
    return of_keys(column, values) if column.key == "key_id" else column.in_(values)


def _measure(source: Source, name: str) -> sa.ColumnElement[int]:
    if name != RECORDS:
        return source.measure(name)
    if source.table is usage_hour:  # each record is in one bucket of the histogram of durations
        return sum((usage_hour.c[column] for column in DURATION_COLUMNS[1:]), start=usage_hour.c[DURATION_COLUMNS[0]])
    return sa.literal(1)


async def _read_adjustments(connection: AsyncConnection, query: ReportQuery, limit: int) -> list[AdjustmentSums]:
    columns = adjustment.c
    at = columns.period_start_ms
    bucket = (at - at % query.width_ms).label("bucket_ms")
    groups = (columns.organization_id, columns.project_id, columns.root_key_id)
    # An adjustment of the first moment of 1970 names no period: it is something paid ahead, and corrects no charge.
    named = sa.select(bucket, *groups, total(columns.nanos)).where(at > 0)
    statement = named.where(at >= query.start_ms, at < query.end_ms)
    if query.organization_id is not None:
        statement = statement.where(columns.organization_id == query.organization_id)
    if "project_id" in query.only:
        statement = statement.where(columns.project_id.in_(query.only["project_id"]))
    if "key_id" in query.only:
        ids = query.only["key_id"]
        first = sa.select(key.c.root_key_id).where(key.c.id.in_(ids))
        statement = statement.where(sa.or_(columns.root_key_id.in_(ids), columns.root_key_id.in_(first)))
    rows = await connection.execute(statement.group_by(bucket, *groups).order_by(bucket, *groups).limit(limit))
    return [AdjustmentSums(int(row[0]), row[1], row[2], row[3], int(row[4])) for row in rows]


def id_at(milliseconds: int) -> str:
    """Return the lowest request id of a millisecond."""
    return f"{min(max(0, milliseconds), 2**48 - 1):012x}{0:020x}"
