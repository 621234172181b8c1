"""Pages of a key's requests, the newest first, each with the records of its attempts.

Not here: records one by one (``db.records``), sums (``db.reports``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.engine import reading
from meterhouse.db.ledger import record_of
from meterhouse.db.reports import ID_TIME_MARGIN_MS, id_at, of_keys
from meterhouse.db.tables import usage_record
from meterhouse.usage import Outcome, UsageRecord

MOST_LOOKED_AT = 10_000
"""Records that one page looks at for what was asked for: what is rare takes several pages, and no page is dear."""

_NEWEST_FIRST = tuple(usage_record.c[name].desc() for name in ("admitted_at_ms", "request_id", "attempt"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptQuery:
    """Which requests; None is no condition."""

    root_key_id: str
    """The first of the key's chain, by which there is an index."""
    key_id: str
    """With its client tokens; a token's own id is what was asked with it."""
    from_ms: int
    """Admitted at or after it."""
    to_ms: int
    """Admitted before it."""
    model: str | None = None
    outcome: Outcome | None = None
    """Of the last attempt."""


@dataclass(frozen=True, slots=True)
class ReceiptPage:
    """The records of each request that was found, by attempt."""

    requests: Sequence[Sequence[UsageRecord]]
    next_after: str | None
    """The request behind which there may be more; None: there are none. A page can be empty and have one."""


class ReceiptStore:
    """Reads receipts. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine, most_looked_at: int = MOST_LOOKED_AT) -> None:
        self._engine = engine
        self._most_looked_at = most_looked_at

    async def list_receipts(self, query: ReceiptQuery, after: str | None, limit: int) -> ReceiptPage:
        """Return a page behind a request that was seen (32 hexadecimal characters); nothing behind one of others."""
        async with reading(self._engine) as connection:
            looked_at = _looked_at(query)
            if after is not None:
                seen_at_ms = await connection.scalar(_select_place(query, after))
                if seen_at_ms is None:
                    return ReceiptPage([], None)
                looked_at = looked_at.where(_is_behind(seen_at_ms, after))
            found = await connection.scalars(_select_wanted(query, looked_at.limit(self._most_looked_at), limit + 1))
            ids = list(found)
            if len(ids) > limit:
                ids = ids[:limit]
                next_after = ids[-1]
            else:  # the last that was looked at, if that was as many as there may be
                next_after = await connection.scalar(looked_at.offset(self._most_looked_at - 1).limit(1))
            records = await _find_records(connection, ids)
        return ReceiptPage([records[request_id] for request_id in ids], next_after)


def _looked_at(query: ReceiptQuery) -> sa.Select[*tuple[Any, ...]]:
    """Select the records of a chain of keys in a span: what the index gives, in its order."""
    columns = usage_record.c
    wanted = (columns.request_id, columns.attempt, columns.admitted_at_ms, columns.key_id)
    return (
        sa.select(*wanted, columns.model, columns.outcome)
        .where(columns.root_key_id == query.root_key_id)
        .where(columns.admitted_at_ms >= query.from_ms, columns.admitted_at_ms < query.to_ms)
        # These say in which partitions the span lies.
        .where(columns.request_id >= id_at(query.from_ms - ID_TIME_MARGIN_MS))
        .where(columns.request_id < id_at(query.to_ms + ID_TIME_MARGIN_MS))
        .order_by(*_NEWEST_FIRST)
    )


def _select_wanted(
    query: ReceiptQuery, looked_at: sa.Select[*tuple[Any, ...]], limit: int
) -> sa.Select[*tuple[Any, ...]]:
    """Select the ids of the requests that meet a query: of the attempts of one, the last comes first."""
    rows = looked_at.subquery("looked_at")
    order = (rows.c.admitted_at_ms.desc(), rows.c.request_id.desc(), rows.c.attempt.desc())
    in_front = sa.func.lag(rows.c.request_id).over(order_by=order)
    marked = sa.select(rows, in_front.label("in_front")).subquery("marked")
    columns = marked.c
    statement = sa.select(columns.request_id).where(
        sa.or_(columns.in_front.is_(None), columns.in_front != columns.request_id),
        of_keys(columns.key_id, [query.key_id]),
    )
    if query.model is not None:
        statement = statement.where(columns.model == query.model)
    if query.outcome is not None:
        statement = statement.where(columns.outcome == query.outcome.value)
    return statement.order_by(columns.admitted_at_ms.desc(), columns.request_id.desc()).limit(limit)


def _select_place(query: ReceiptQuery, request_id: str) -> sa.Select[*tuple[int]]:
    columns = usage_record.c
    owned = (columns.request_id == request_id, columns.root_key_id == query.root_key_id)
    return sa.select(columns.admitted_at_ms).where(*owned).limit(1)


def _is_behind(seen_at_ms: int, request_id: str) -> sa.ColumnElement[bool]:
    columns = usage_record.c
    place = sa.tuple_(columns.admitted_at_ms, columns.request_id)
    seen = sa.tuple_(sa.literal(seen_at_ms, sa.BigInteger), sa.literal(request_id, columns.request_id.type))
    return sa.and_(columns.admitted_at_ms <= seen_at_ms, place < seen)


async def _find_records(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, list[UsageRecord]]:
    found: dict[str, list[UsageRecord]] = {request_id: [] for request_id in ids}
    if ids:
        columns = usage_record.c
        statement = sa.select(usage_record).where(columns.request_id.in_(ids)).order_by(columns.attempt)
        for row in (await connection.execute(statement)).mappings():
            found[row["request_id"]].append(record_of(row))
    return found
