"""Pages of a table, oldest row first, continued after the id of the last row that was seen.

Not here: what the rows are.
"""

import sqlalchemy as sa

MAX_PAGE = 1_000


def page(
    statement: sa.Select[*tuple[object, ...]], table: sa.Table, after: str | None, limit: int
) -> sa.Select[*tuple[object, ...]]:
    """Order a statement by creation, start it after a row, and bound it (to ``MAX_PAGE`` at most)."""
    if after is not None:
        anchor = table.alias("anchor")
        created_at_ms = sa.select(anchor.c.created_at_ms).where(anchor.c.id == after).scalar_subquery()
        is_later = table.c.created_at_ms > created_at_ms
        is_later_by_id = sa.and_(table.c.created_at_ms == created_at_ms, table.c.id > after)
        statement = statement.where(sa.or_(is_later, is_later_by_id))
    return statement.order_by(table.c.created_at_ms, table.c.id).limit(min(limit, MAX_PAGE))
