"""Finds the usage records that were made without a price.

Not here: what they would have cost (``billing.rerate``).
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import reading
from meterhouse.db.tables import TOKEN_COLUMNS, usage_record
from meterhouse.usage import Usage

PAGE_ROWS = 500
_OWNERS = ("organization_id", "project_id", "root_key_id")
_FACTS = ("attempt", "provider", "upstream_model", "service_tier", "admitted_at_ms")


@dataclass(frozen=True, slots=True)
class UnpricedRecord:
    """An attempt that used tokens and was charged nothing, because its model had no price."""

    request_id: str
    attempt: int
    organization_id: str
    project_id: str
    root_key_id: str
    provider: str
    upstream_model: str
    service_tier: str
    admitted_at_ms: int
    usage: Usage


class UnpricedStore:
    """Reads unpriced records. Raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list_pages(
        self, from_ms: int, to_ms: int, organization_id: str | None = None
    ) -> AsyncIterator[Sequence[UnpricedRecord]]:
        """Yield the records that were admitted from a moment to before another, a page at a time."""
        columns = usage_record.c
        names = ("request_id", *_OWNERS, *_FACTS, *TOKEN_COLUMNS)
        statement = (
            sa.select(*(columns[name] for name in names))
            .where(
                columns.price_id.is_(None),
                columns.attempt > 0,
                columns.input_tokens + columns.output_tokens > 0,
                columns.admitted_at_ms >= from_ms,
                columns.admitted_at_ms < to_ms,
            )
            .order_by(columns.request_id, columns.attempt)
            .limit(PAGE_ROWS)
        )
        if organization_id is not None:
            statement = statement.where(columns.organization_id == organization_id)
        after: tuple[str, int] | None = None
        while True:
            page = statement
            if after is not None:
                is_later = sa.and_(columns.request_id == after[0], columns.attempt > after[1])
                page = statement.where(sa.or_(columns.request_id > after[0], is_later))
            async with reading(self._engine) as connection:
                rows = (await connection.execute(page)).mappings().all()
            if not rows:
                return
            yield [_record_of(row) for row in rows]
            after = rows[-1]["request_id"], rows[-1]["attempt"]


def _record_of(row: sa.RowMapping) -> UnpricedRecord:
    return UnpricedRecord(
        request_id=row["request_id"].replace("-", ""),
        **{name: row[name] for name in (*_OWNERS, *_FACTS)},
        usage=Usage(*(row[name] for name in TOKEN_COLUMNS)),
    )
