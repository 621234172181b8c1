"""Sums over the ledger: what quotas and budgets count, now, or before a moment and without some requests.

Invariant: all sums of one call are read in one snapshot, and from the hourly projection where a period is whole
hours, so that their cost does not grow with the number of requests. Not here: writing (``db.ledger``), and what the
sums are compared with.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.engine import reading
from meterhouse.db.projection import record_measure
from meterhouse.db.tables import (
    CREDIT_PERIOD_MS,
    DAY_MS,
    HOUR_MS,
    RERATED_ID_PREFIX,
    adjustment,
    usage_hour,
    usage_record,
)
from meterhouse.metering import LedgerSums, Period, Scope, Sums

YOUNG_MS = 15 * 60_000
"""After so long the meter has been told of a correction, or will not be: as long as it remembers which it was told."""
MOST_YOUNG = 1_000
"""Of the corrections of an organization in that time, the newest; for others a comparison may be off until the next."""
CHUNK_IDS = 10_000
"""Request ids in one statement of SQLite, which takes 32,766 variables; PostgreSQL gets them as one array."""

_SCOPE_COLUMNS = {
    Scope.ORGANIZATION: "organization_id",
    Scope.PROJECT: "project_id",
    Scope.KEY: "root_key_id",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where to sum from: the projection when a time span is whole hours, else the records."""

    table: sa.Table
    at: sa.ColumnElement[int]

    @classmethod
    def of(cls, start_ms: int | None, end_ms: int | None) -> "Source":
        """Choose for a span of Unix milliseconds; None is unbounded on that side."""
        if all(moment is None or moment % HOUR_MS == 0 for moment in (start_ms, end_ms)):
            return cls(usage_hour, usage_hour.c.hour_ms)
        return cls.of_records()

    @classmethod
    def of_records(cls) -> "Source":
        """Sum from the records, whatever the span."""
        return cls(usage_record, usage_record.c.admitted_at_ms)

    def measure(self, name: str) -> sa.ColumnElement[int]:
        """Return what a row of the table adds to a measure of ``MEASURE_COLUMNS``."""
        return usage_hour.c[name] if self.table is usage_hour else record_measure(name)


def total(expression: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Return the sum of an expression, 0 over no rows."""
    return sa.func.coalesce(sa.func.sum(expression), 0)


async def sum_period(connection: AsyncConnection, period: Period) -> Sums:
    """Sum what a quota or budget counts, with the adjustments that name its period and no model."""
    return await _sum(connection, period)


class LedgerBalances:
    """Answers what the meter reconciles with. Every method is one transaction and raises StoreDown without one."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def sum_before(self, periods: Sequence[Period], before_ms: int, excluded: Collection[str]) -> LedgerSums:
        """Sum each period as far as it was admitted before a moment, without some requests; all in one snapshot.

        Adjustments count whenever they were made.

        Args:
            periods: quotas' and budgets'; those of whole hours cost the least.
            before_ms: Unix ms near now: what was admitted at or after it is looked at row by row.
            excluded: request ids (32 hexadecimal characters) that do not count; most of them may have no record.
                What the ledger has of each that has one is told beside.
        """
        async with reading(self._engine) as connection:
            sums = [await _sum(connection, period, before_ms) for period in periods]
            rows = await _find_excluded(connection, before_ms, excluded)
            young = await _list_young_corrections(connection, periods, before_ms - YOUNG_MS)
        left_out: dict[str, Sums] = {}
        for row in rows:
            request_id = row["request_id"].replace("-", "")
            known = left_out.get(request_id, Sums())
            left_out[request_id] = Sums(*(getattr(known, name) + row[name] for name in _NAMES))
        remaining = [_without(known, period, rows) for known, period in zip(sums, periods, strict=True)]
        return LedgerSums(remaining, left_out, tuple(young))


class _Shape(NamedTuple):
    """What the statement of a sum depends on, but for its parameters: owner, token, model, start, end, before."""

    scope: Scope
    is_of_hours: bool
    has_start: bool
    has_end: bool
    has_model: bool
    has_before: bool
    has_token: bool


_Part = sa.Select[int, int, int]
_NAMES = ("requests", "total_tokens", "charge_nanos")


async def _sum(connection: AsyncConnection, period: Period, before_ms: int | None = None) -> Sums:
    limit = period.limit
    start_ms, end_ms = period.start_ms, period.end_ms
    is_of_hours = Source.of(start_ms, end_ms).table is usage_hour
    owner, token = limit.owner_and_token
    values = {"start": start_ms, "end": end_ms, "model": limit.model, "before": before_ms, "token": token}
    shape = _Shape(limit.scope, is_of_hours, *(value is not None for value in values.values()))
    given = {name: value for name, value in values.items() if value is not None}
    row = (await connection.execute(_statement(shape), {"owner": owner, **given})).one()
    return Sums(*map(int, row))


@cache  # of few shapes; making the statement takes ten times as long as running it
def _statement(shape: _Shape) -> _Part:
    source = Source.of(None, None) if shape.is_of_hours else Source.of_records()
    parts = [_used(source, shape)]
    if not shape.has_model and not shape.has_token:  # an adjustment knows no models, and corrects no token
        corrected = _labelled(sa.literal(0), total(adjustment.c.tokens), total(adjustment.c.nanos))
        is_correction = adjustment.c.period_start_ms != CREDIT_PERIOD_MS  # what is prepaid raises a limit instead
        parts.append(corrected.where(is_correction, *_within(adjustment, adjustment.c.period_start_ms, shape)))
    if shape.has_before:
        late = Source.of_records()
        parts.append(_used(late, shape, sign=-1).where(late.at >= _parameter("before")))
    together = sa.union_all(*parts).subquery()
    return _labelled(*(total(together.c[name]) for name in _NAMES))


def _used(source: Source, shape: _Shape, sign: int = 1) -> _Part:
    tokens = source.measure("input_tokens") + source.measure("output_tokens")
    used = _labelled(
        sign * total(source.measure("requests")), sign * total(tokens), sign * total(source.measure("charge_nanos"))
    ).where(*_within(source.table, source.at, shape))
    return used.where(source.table.c.model == sa.bindparam("model", type_=sa.Text)) if shape.has_model else used


def _labelled(*measures: sa.ColumnElement[int]) -> _Part:
    requests, tokens, nanos = (measure.label(name) for measure, name in zip(measures, _NAMES, strict=True))
    return sa.select(requests, tokens, nanos)


def _within(table: sa.Table, moment: sa.ColumnElement[int], shape: _Shape) -> Iterator[sa.ColumnElement[bool]]:
    yield table.c[_SCOPE_COLUMNS[shape.scope]] == sa.bindparam("owner", type_=sa.Text)
    if shape.has_token:
        yield table.c.key_id == sa.bindparam("token", type_=sa.Text)
    if shape.has_start:
        yield moment >= _parameter("start")
    if shape.has_end:
        yield moment < _parameter("end")


def _parameter(name: str) -> sa.BindParameter[int]:
    return sa.bindparam(name, type_=sa.BigInteger)


async def _find_excluded(connection: AsyncConnection, before_ms: int, excluded: Collection[str]) -> list[sa.RowMapping]:
    """Return the records of these requests that were admitted before a moment; few, of ids that may be many."""
    columns = usage_record.c
    statement = sa.select(
        *(columns[name] for name in _SCOPE_COLUMNS.values()),
        columns.key_id,
        columns.request_id,
        columns.model,
        columns.admitted_at_ms,
        columns.requests,
        (columns.input_tokens + columns.output_tokens).label("total_tokens"),
        columns.charge_nanos,
    ).where(columns.admitted_at_ms < before_ms)
    rows: list[sa.RowMapping] = []
    for condition in _conditions(connection, sorted(excluded)):
        rows.extend((await connection.execute(statement.where(condition))).mappings())
    return rows


async def _list_young_corrections(
    connection: AsyncConnection, periods: Sequence[Period], since_ms: int
) -> Sequence[str]:
    """Return the ids of the newest corrections that count in any of these periods' limits, as the meter is told them.

    Of records that are charged later it is told by key and day of a page, under the least id of those.
    """
    owners: dict[str, set[str]] = {}
    for period in periods:
        owners.setdefault(_SCOPE_COLUMNS[period.limit.scope], set()).add(period.limit.owner_and_token[0])
    columns = adjustment.c
    own = sa.case((columns.id.startswith(RERATED_ID_PREFIX, autoescape=True), ""), else_=columns.id)
    day = columns.period_start_ms // DAY_MS
    statement = (
        sa.select(sa.func.min(columns.id))
        .where(
            sa.or_(*(columns[name].in_(sorted(ids)) for name, ids in owners.items())),
            columns.created_at_ms >= since_ms,
            columns.period_start_ms != CREDIT_PERIOD_MS,
        )
        .group_by(columns.created_at_ms, columns.project_id, columns.root_key_id, day, own)
        .order_by(columns.created_at_ms.desc())
        .limit(MOST_YOUNG)
    )
    return list((await connection.execute(statement)).scalars())


def _conditions(connection: AsyncConnection, ids: Sequence[str]) -> Iterator[sa.ColumnElement[bool]]:
    column = usage_record.c.request_id
    if not ids:
        return
    if connection.dialect.name == "postgresql":
        array = sa.bindparam("ids", ids, type_=postgresql.ARRAY(column.type))
        # The bounds leave partitions out that no id can be in.
        yield sa.and_(column == sa.any_(array), column.between(ids[0], ids[-1]))
        return
    for start in range(0, len(ids), CHUNK_IDS):
        yield column.in_(ids[start : start + CHUNK_IDS])


def _without(sums: Sums, period: Period, rows: Sequence[sa.RowMapping]) -> Sums:
    counted = [row for row in rows if _counts(row, period)]
    return Sums(
        sums.requests - sum(row["requests"] for row in counted),
        sums.total_tokens - sum(row["total_tokens"] for row in counted),
        sums.charge_nanos - sum(row["charge_nanos"] for row in counted),
    )


def _counts(row: sa.RowMapping, period: Period) -> bool:
    limit = period.limit
    at_ms = row["admitted_at_ms"]
    owner, token = limit.owner_and_token
    return (
        row[_SCOPE_COLUMNS[limit.scope]] == owner
        and token in {None, row["key_id"]}
        and limit.model in {None, row["model"]}
        and (period.start_ms is None or at_ms >= period.start_ms)
        and (period.end_ms is None or at_ms < period.end_ms)
    )
