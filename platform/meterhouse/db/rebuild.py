"""Compares the hourly projection with the records, and repairs it by what differs.

The difference of a group is taken in one snapshot, in which every record and its share of the projection are either
both or neither; adding it is right whatever shippers add meanwhile. So nothing is locked but the rows that are wrong.
A statement covers a span of whole hours with about so many records, however many an organization has: none outlasts
the bound of the engine.

Invariant: after a repair with nothing shipped the projection is what the records say. Not here: what a record adds
(``db.projection``).
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.engine import insert_rows, reading, write_again
from meterhouse.db.projection import record_key, record_measure
from meterhouse.db.tables import HOUR_KEY_COLUMNS, HOUR_MS, MEASURE_COLUMNS, usage_hour, usage_record
from meterhouse.errors import Conflict

LOCK = 0x6D68_6275_696C
"""The advisory lock of whoever repairs ("mhbuil"): a difference must not be added twice."""
SPAN_RECORDS = 100_000
"""About how many records one statement sums up; more where one hour has more."""
_ADD = f"ON CONFLICT ({', '.join(HOUR_KEY_COLUMNS)}) DO UPDATE SET " + ", ".join(
    f"{name} = usage_hour.{name} + excluded.{name}" for name in MEASURE_COLUMNS
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A group of the projection that disagrees with the records: by how much they are above it."""

    group: Mapping[str, str | int]
    measures: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an organization's time that is compared at once; None: from the beginning, or to the end."""

    organization_id: str
    from_ms: int | None = None
    to_ms: int | None = None


class Projection:
    """The hourly projection as a whole. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine, span_records: int = SPAN_RECORDS) -> None:
        self._engine = engine
        self._span_records = span_records

    async def compare(self) -> AsyncIterator[Difference]:
        """Give every group that differs from the records, one organization after another."""
        async for span in self._spans():
            async with reading(self._engine) as connection:
                found = await list_differences(connection, span)
            for difference in found:
                yield difference

    async def rebuild(self) -> AsyncIterator[Difference]:
        """Make the projection what the records say, a transaction for each span; gives what was changed.

        A group of which there is no record becomes a row of zeroes: nothing is ever deleted.

        Raises:
            Conflict: Somebody else is rebuilding.
        """
        async for span in self._spans():
            for difference in await write_again(self._engine, partial(_repair, span)):
                yield difference

    async def _spans(self) -> AsyncIterator[Span]:
        """Give all of the time of every organization, one span after another."""
        async for organization_id in self._organizations():
            from_ms: int | None = None
            while True:
                to_ms = await self._find_end(organization_id, from_ms)
                yield Span(organization_id, from_ms, to_ms)
                if to_ms is None:
                    break
                from_ms = to_ms

    async def _find_end(self, organization_id: str, from_ms: int | None) -> int | None:
        """Return the hour at which there are enough records; None when what is left is no more."""
        at = usage_record.c.admitted_at_ms
        statement = sa.select(at).where(usage_record.c.organization_id == organization_id)
        if from_ms is not None:
            statement = statement.where(at >= from_ms)
        async with reading(self._engine) as connection:
            found = await connection.scalar(statement.order_by(at).offset(self._span_records).limit(1))
        if found is None:
            return None
        hour_ms = int(found) - int(found) % HOUR_MS
        return hour_ms if from_ms is None or hour_ms > from_ms else hour_ms + HOUR_MS

    async def _organizations(self) -> AsyncIterator[str]:
        """Give every organization that has a record or a row of the projection, in their order."""
        last = ""
        while True:
            async with reading(self._engine) as connection:
                found = [
                    await connection.scalar(
                        sa.select(sa.func.min(table.c.organization_id)).where(table.c.organization_id > last)
                    )
                    for table in (usage_record, usage_hour)
                ]
            behind = [one for one in found if one is not None]
            if not behind:
                return
            last = min(behind)
            yield last


async def _repair(span: Span, connection: AsyncConnection) -> list[Difference]:
    if not await _try_lock(connection):
        raise Conflict("The projection is being rebuilt by somebody else just now.")
    found = await list_differences(connection, span)
    rows = [
        (
            *(difference.group[name] for name in HOUR_KEY_COLUMNS),
            *(difference.measures.get(name, 0) for name in MEASURE_COLUMNS),
        )
        for difference in found
    ]
    await insert_rows(connection, usage_hour, (*HOUR_KEY_COLUMNS, *MEASURE_COLUMNS), rows, _ADD)
    return found


async def list_differences(connection: AsyncConnection, span: Span | None = None) -> list[Difference]:
    """Compare the projection of a span, or all of it, with the records; none when all is well."""
    from_records = sa.select(
        *(record_key(name).label(name) for name in HOUR_KEY_COLUMNS),
        *(record_measure(name).label(name) for name in MEASURE_COLUMNS),
    )
    from_hours = sa.select(
        *(usage_hour.c[name] for name in HOUR_KEY_COLUMNS),
        *((-usage_hour.c[name]).label(name) for name in MEASURE_COLUMNS),
    )
    if span is not None:
        from_records = from_records.where(*_within(span, usage_record, usage_record.c.admitted_at_ms))
        from_hours = from_hours.where(*_within(span, usage_hour, usage_hour.c.hour_ms))
    both = sa.union_all(from_records, from_hours).subquery()
    sums = {name: sa.func.sum(both.c[name]) for name in MEASURE_COLUMNS}
    keys = [both.c[name] for name in HOUR_KEY_COLUMNS]
    statement = (
        sa.select(*keys, *(total.label(name) for name, total in sums.items()))
        .group_by(*keys)
        .having(sa.or_(*(total != 0 for total in sums.values())))
    )
    width = len(HOUR_KEY_COLUMNS)
    found = [
        Difference(
            group=dict(zip(HOUR_KEY_COLUMNS, row[:width], strict=True)),
            measures={name: int(sum_) for name, sum_ in zip(MEASURE_COLUMNS, row[width:], strict=True) if sum_},
        )
        for row in await connection.execute(statement)
    ]
    # The order in which shippers write, by bytes and not by the database's collation, so that nobody deadlocks.
    return sorted(found, key=lambda difference: tuple(difference.group[name] for name in HOUR_KEY_COLUMNS))


def _within(span: Span, table: sa.Table, at: sa.ColumnElement[int]) -> list[sa.ColumnElement[bool]]:
    conditions = [table.c.organization_id == span.organization_id]
    if span.from_ms is not None:
        conditions.append(at >= span.from_ms)
    if span.to_ms is not None:
        conditions.append(at < span.to_ms)
    return conditions


async def _try_lock(connection: AsyncConnection) -> bool:
    if connection.dialect.name != "postgresql":
        return True
    return bool(await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))))
