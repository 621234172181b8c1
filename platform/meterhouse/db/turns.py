"""Whose turn it is, in SQL: of all processes one does a thing at a time, and how far exports are.

Invariant: a turn ends by itself, so that a process that dies holds nothing up for longer than it had asked for; what is
done in a turn must bear that another process begins when it takes too long. Not here: what is done.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import insert_into, reading, writing
from meterhouse.db.tables_billing import export_cursor, turn


class TurnStore:
    """Gives turns and keeps cursors. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def take(self, name: str, holder: str, now_ms: int, for_ms: int) -> bool:
        """Take a turn or go on with it; False while it is another's."""
        async with writing(self._engine) as connection:
            statement = insert_into(connection, turn).values(name=name, holder=holder, until_ms=now_ms + for_ms)
            statement = statement.on_conflict_do_update(
                index_elements=["name"],
                set_={"holder": holder, "until_ms": now_ms + for_ms},
                where=sa.or_(turn.c.holder == holder, turn.c.until_ms <= now_ms),
            )
            return (await connection.execute(statement.returning(turn.c.name))).first() is not None

    async def read_positions(self, sink: str) -> dict[str, int]:
        """Return how far an export is, by organization (empty where it goes on by time)."""
        statement = sa.select(export_cursor.c.organization_id, export_cursor.c.position)
        async with reading(self._engine) as connection:
            rows = await connection.execute(statement.where(export_cursor.c.sink == sink))
            return {row.organization_id: row.position for row in rows}

    async def put_position(self, sink: str, organization_id: str, position: int) -> None:
        """Move an export on; it is never moved back."""
        async with writing(self._engine) as connection:
            statement = insert_into(connection, export_cursor).values(
                sink=sink, organization_id=organization_id, position=position
            )
            statement = statement.on_conflict_do_update(
                index_elements=["sink", "organization_id"],
                set_={"position": position},
                where=export_cursor.c.position < position,
            )
            await connection.execute(statement)

    @asynccontextmanager
    async def moving(self, sink: str, organization_id: str, before: int, behind: int) -> AsyncIterator[bool]:
        """Move an export on from where it was (0: it has not begun); what is done meanwhile is committed with it.

        False where another process has moved it, and then nothing changes. Others wait.
        """
        async with writing(self._engine) as connection:
            begin = insert_into(connection, export_cursor).values(
                sink=sink, organization_id=organization_id, position=before
            )
            await connection.execute(begin.on_conflict_do_nothing(index_elements=["sink", "organization_id"]))
            move = sa.update(export_cursor).where(
                export_cursor.c.sink == sink,
                export_cursor.c.organization_id == organization_id,
                export_cursor.c.position == before,
            )
            moved = await connection.execute(move.values(position=behind).returning(export_cursor.c.position))
            yield moved.first() is not None
