"""How many requests were refused, by the hour: those that have no record in the ledger.

Approximate, and never billed from: a process that dies takes its last second of them along. Not here: counting
(``http.refusals``).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.balances import total
from meterhouse.db.engine import insert_rows, reading, writing
from meterhouse.db.reports import MAX_ROWS, BucketSums, Group, KeyOf, ReportQuery, of_keys
from meterhouse.db.tables import HOUR_MS, REFUSAL_KEY_COLUMNS, refusal_hour

_ADD = (
    f"ON CONFLICT ({', '.join(REFUSAL_KEY_COLUMNS)}) DO UPDATE SET requests = refusal_hour.requests + excluded.requests"
)


class Refused(NamedTuple):
    """What is counted together, in the order of the primary key."""

    organization_id: str
    hour_ms: int
    project_id: str
    key_id: str
    model: str
    """Empty for a name that is not listed: whoever makes names up makes no rows."""
    error_owner: str
    error_code: str


class RefusalStore:
    """Adds and sums up. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine, max_rows: int = MAX_ROWS) -> None:
        self._engine = engine
        self._max_rows = max_rows

    async def add(self, counts: Mapping[Refused, int]) -> None:
        """Add to what is there; in the order of the primary key, so that two writers cannot deadlock."""
        rows = [(*place, counts[place]) for place in sorted(counts)]
        async with writing(self._engine) as connection:
            await insert_rows(connection, refusal_hour, (*REFUSAL_KEY_COLUMNS, "requests"), rows, _ADD)

    def can_group_by(self, groups: Sequence[Group]) -> bool:
        """Return whether a refused request has all of these."""
        return all(name in refusal_hour.c for name in groups)

    async def read(self, query: ReportQuery) -> list[BucketSums] | None:
        """Sum up the hours that a span touches, by bucket and group; None where that is more rows than a report has.

        A query that groups by what a refused request has not (a provider, an outcome) finds nothing.
        """
        columns = refusal_hour.c
        if not self.can_group_by(query.group_by):
            return []
        bucket = (columns.hour_ms - columns.hour_ms % query.width_ms).label("bucket_ms")
        groups = [_named(name, columns[name]).label(f"by_{name}") for name in query.group_by]
        statement = sa.select(bucket, *groups, total(columns.requests)).where(
            columns.hour_ms >= query.start_ms // HOUR_MS * HOUR_MS,
            columns.hour_ms < query.end_ms,
            *(_only(name, values) for name, values in query.only.items()),
        )
        if query.organization_id is not None:
            statement = statement.where(columns.organization_id == query.organization_id)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(statement.group_by(bucket, *groups).limit(self._max_rows + 1))).all()
        if len(rows) > self._max_rows:
            return None
        return [BucketSums(int(row[0]), tuple(row[1:-1]), (int(row[-1]),)) for row in rows]


def _named(name: Group, column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    return KeyOf(column) if name == "key_id" else column


def _only(name: Group, values: Sequence[str]) -> sa.ColumnElement[bool]:
    column = refusal_hour.c[name]
    return of_keys(column, values) if name == "key_id" else column.in_(values)
