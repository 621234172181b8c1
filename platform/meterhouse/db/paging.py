"""Pages of a table by creation, continued from the id of a row that was seen (keyset).

What is added or removed in between is neither shown twice nor hides another row. Not here: what the rows are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

MAX_PAGE = 1_000

Row = TypeVar("Row")
Shown = TypeVar("Shown")


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page: the first rows, those behind the row ``after``, or those right in front of the row ``before``."""

    limit: int = 100
    after: str | None = None
    before: str | None = None
    is_newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """A page in the order that was asked for."""

    rows: Sequence[Row]
    has_more: bool
    """Whether there are more rows in the direction that was read: behind it, or in front of it for ``before``."""

    def map(self, show: Callable[[Row], Shown]) -> "Page[Shown]":
        """Return the same page of other things."""
        return Page([show(row) for row in self.rows], self.has_more)


async def fetch_page(
    connection: AsyncConnection,
    statement: sa.Select[*tuple[Any, ...]],
    table: sa.Table,
    page: PageQuery,
    owned: Sequence[sa.ColumnElement[bool]] = (),
) -> Page[sa.RowMapping]:
    """Read a page of a statement.

    Args:
        connection: from ``reading``.
        statement: selects from the table, with every condition; gets its order and its bound here.
        table: has ``id`` and ``created_at_ms``.
        page: which.
        owned: whose rows they are. The row that a page starts from must meet these too, so that nothing is told of
            anybody else's; it need not meet the other conditions, which it may have met when it was listed.
    """
    limit = min(page.limit, MAX_PAGE)
    for anchor, is_start in ((page.after, True), (page.before, False)):
        if anchor is None:
            continue
        seen = sa.select(table.c.created_at_ms).where(table.c.id == anchor, *owned)
        at_ms = await connection.scalar(seen)
        if at_ms is None:
            return Page([], has_more=False)
        statement = statement.where(_is_beyond(table, at_ms, anchor, is_later=is_start != page.is_newest_first))
    is_backwards = page.before is not None and page.after is None
    is_falling = page.is_newest_first != is_backwards
    columns = (table.c.created_at_ms, table.c.id)
    order = [column.desc() if is_falling else column.asc() for column in columns]
    rows = (await connection.execute(statement.order_by(*order).limit(limit + 1))).mappings().all()
    shown = rows[:limit]
    return Page(shown[::-1] if is_backwards else shown, has_more=len(rows) > limit)


def _is_beyond(table: sa.Table, at_ms: int, row_id: str, *, is_later: bool) -> sa.ColumnElement[bool]:
    mine = sa.tuple_(table.c.created_at_ms, table.c.id)
    seen = sa.tuple_(sa.literal(at_ms, sa.BigInteger), sa.literal(row_id, sa.Text))
    return mine > seen if is_later else mine < seen
