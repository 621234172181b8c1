"""The heartbeat table: which workers there are, on whatever host, and when each was seen last.

Invariant: every time is the database's, so that hosts whose clocks differ agree on who is silent. Not here: what is
made of it (``fleet``).
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.engine import insert_into, reading, writing
from meterhouse.db.tables import worker

_SAID = ("id", "host", "journal_id", "unshipped_records", "is_leaving")
_NOW_MS = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
}


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker says of itself."""

    id: str
    host: str
    journal_id: str
    unshipped_records: int
    is_leaving: bool = False
    """It serves nothing any more, and its journal is not all in SQL."""
    is_cut_off: bool = False
    """It has reservations in Redis and cannot reach Redis to renew them."""
    cut_off: tuple[str, ...] = ()
    """The organizations of which it has those; none where it does not say, and then it may be any."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker of the table."""

    heartbeat: Heartbeat
    started_at_ms: int
    silent_ms: int
    """How long ago it was seen last, when the table was read."""


class WorkerStore:
    """Reads and writes the table. Every method is one transaction and raises StoreDown when there is none."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Say that a worker is alive now; the first time makes its row."""
        async with writing(self._engine) as connection:
            now_ms = _now_ms(connection)
            statement = insert_into(connection, worker).values(
                id=heartbeat.id,
                host=heartbeat.host,
                journal_id=heartbeat.journal_id,
                started_at_ms=now_ms,
                seen_at_ms=now_ms,
                unshipped_records=heartbeat.unshipped_records,
                is_leaving=heartbeat.is_leaving,
                is_cut_off=heartbeat.is_cut_off,
                cut_off=list(heartbeat.cut_off) or None,
            )
            changed = ("journal_id", "seen_at_ms", "unshipped_records", "is_leaving", "is_cut_off", "cut_off")
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["id"], set_={name: statement.excluded[name] for name in changed}
                )
            )

    async def list_workers(self) -> list[Worker]:
        """Return all rows, by id."""
        async with reading(self._engine) as connection:
            statement = sa.select(worker, (_now_ms(connection) - worker.c.seen_at_ms).label("silent_ms"))
            result = await connection.execute(statement.order_by(worker.c.id))
            return [
                Worker(
                    Heartbeat(
                        **{name: row[name] for name in _SAID},
                        is_cut_off=row["is_cut_off"],
                        cut_off=tuple(row["cut_off"] or ()),
                    ),
                    row["started_at_ms"],
                    row["silent_ms"],
                )
                for row in result.mappings()
            ]

    async def remove(self, worker_id: str) -> None:
        """Forget a worker; nothing happens if it is not there."""
        await self._remove(worker.c.id == worker_id)

    async def remove_journal(self, journal_id: str) -> None:
        """Forget the worker that a journal belonged to: the ledger has all of it, so nothing of it is missed."""
        await self._remove(worker.c.journal_id == journal_id)

    async def remove_silent(self, silent_ms: int) -> None:
        """Forget the workers that were seen last longer ago than this."""
        async with writing(self._engine) as connection:
            await connection.execute(sa.delete(worker).where(worker.c.seen_at_ms < _now_ms(connection) - silent_ms))

    async def _remove(self, condition: sa.ColumnElement[bool]) -> None:
        async with writing(self._engine) as connection:
            await connection.execute(sa.delete(worker).where(condition))


def _now_ms(connection: AsyncConnection) -> sa.ColumnElement[int]:
    return sa.literal_column(_NOW_MS[connection.dialect.name], sa.BigInteger)
