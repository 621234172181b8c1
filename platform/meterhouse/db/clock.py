"""The time by which an installation decides: PostgreSQL's, so that hosts whose clocks differ agree.

A process asks now and then and counts on by its monotonic clock, which nobody sets. Invariant: once the database has
answered, setting this machine's clock changes nothing here. Until then the machine's own has to do. Not here: the
windows and periods of limits, which go by Redis, and the stamps of records, which are made in SQL.
"""

from time import monotonic_ns, time_ns

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import reading

LONGEST_ANSWER_MS = 1_000
"""An answer that took longer says too little of when it was given, and is left unused."""


class DatabaseClock:
    """Implements ``metering.Clock``. Call ``synchronize`` at the start and now and then."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._ahead_ms: int | None = None
        """How far the database's clock is ahead of this process's monotonic one; None before it first answered."""

    def now_ms(self) -> int:
        """Return Unix milliseconds."""
        if self._ahead_ms is None:
            return time_ns() // 1_000_000
        return self._ahead_ms + monotonic_ns() // 1_000_000

    async def synchronize(self) -> None:
        """Ask the database for the time.

        Raises:
            StoreDown: It cannot be asked; the clock goes on as before.
        """
        async with reading(self._engine) as connection:
            asked_ms = monotonic_ns() // 1_000_000
            now = await connection.scalar(
                sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")
            )
            took_ms = monotonic_ns() // 1_000_000 - asked_ms
        if now is not None and took_ms <= LONGEST_ANSWER_MS:
            self._ahead_ms = int(now) - asked_ms - took_ms // 2
