"""Pages of the ledger's records, the newest first, for whoever looks at them one by one.

Not here: sums (``db.reports``), writing (``db.ledger``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import reading
from meterhouse.db.ledger import record_of
from meterhouse.db.paging import MAX_PAGE, Page
from meterhouse.db.reports import ID_TIME_MARGIN_MS, id_at, of_keys
from meterhouse.db.tables import usage_record
from meterhouse.usage import UsageRecord


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """One record, as what a page begins behind."""

    request_id: str
    """32 hexadecimal characters."""
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordQuery:
    """Which records; None is no condition."""

    organization_id: str | None = None
    project_id: str | None = None
    key_id: str | None = None
    """With its client tokens."""
    root_key_id: str | None = None
    """Beside ``key_id``: the first of its chain, by which there is an index."""
    request_id: str | None = None
    from_ms: int | None = None
    """Admitted at or after it."""
    to_ms: int | None = None
    """Admitted before it."""


class RecordStore:
    """Reads records. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list_records(self, query: RecordQuery, after: RecordPlace | None, limit: int) -> Page[UsageRecord]:
        """Return a page of records, the newest first, behind one that was seen.

        Where nothing says whose they are, the newest is the one with the newest request id, else the last admitted.
        """
        async with reading(self._engine) as connection:
            conditions, order = _conditions(query)
            if after is not None:
                values = (await connection.execute(_select_place(query, after, order))).one_or_none()
                if values is None:
                    return Page([], has_more=False)
                seen = [sa.literal(value, column.type) for value, column in zip(values, order, strict=True)]
                conditions.append(sa.tuple_(*order) < sa.tuple_(*seen))
            limit = min(limit, MAX_PAGE)
            newest_first = [column.desc() for column in order]
            statement = sa.select(usage_record).where(*conditions).order_by(*newest_first).limit(limit + 1)
            rows = (await connection.execute(statement)).mappings().all()
        return Page([record_of(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _conditions(query: RecordQuery) -> tuple[list[sa.ColumnElement[bool]], list[sa.Column[Any]]]:
    """Return the conditions of a query and what its rows are in the order of."""
    columns = usage_record.c
    names = ("organization_id", "project_id", "root_key_id", "request_id")
    given = {name: value for name in names if (value := getattr(query, name)) is not None}
    conditions: list[sa.ColumnElement[bool]] = [columns[name] == value for name, value in given.items()]
    if query.key_id is not None:
        conditions.append(of_keys(columns.key_id, [query.key_id]))
    if query.from_ms is not None:
        conditions.append(columns.admitted_at_ms >= query.from_ms)
    if query.to_ms is not None:
        conditions.append(columns.admitted_at_ms < query.to_ms)
    if given or query.key_id is not None:
        return conditions, [columns.admitted_at_ms, columns.request_id, columns.attempt]
    # No index has the time alone, but the primary key begins with it, and finds the partitions besides.
    if query.from_ms is not None:
        conditions.append(columns.request_id >= id_at(query.from_ms - ID_TIME_MARGIN_MS))
    if query.to_ms is not None:
        conditions.append(columns.request_id < id_at(query.to_ms + ID_TIME_MARGIN_MS))
    return conditions, [columns.request_id, columns.attempt]


def _select_place(
    query: RecordQuery, after: RecordPlace, order: Sequence[sa.Column[Any]]
) -> sa.Select[*tuple[Any, ...]]:
    """Select where a record is in an order; one of somebody else is nowhere."""
    columns = usage_record.c
    statement = sa.select(*order).where(columns.request_id == after.request_id, columns.attempt == after.attempt)
    if query.organization_id is not None:
        statement = statement.where(columns.organization_id == query.organization_id)
    return statement
