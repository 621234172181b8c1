"""Opens a SQLite file the way that the ledger needs it: durable commits, and no thread left behind by a failure.

Invariant: a connection has every pragma or does not exist. Not here: SQLAlchemy.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiosqlite

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    # Without it INSERT OR REPLACE deletes a row without asking the triggers that refuse a DELETE.
    "PRAGMA recursive_triggers = ON",
)
_CHUNK_ROWS = 64
_RETRY_SECONDS = 0.01


async def open_file(path: str, busy_timeout_seconds: float) -> aiosqlite.Connection:
    """Open or create a file; raises sqlite3.Error when it cannot be used."""
    connection = _FileConnection(path, busy_timeout_seconds)
    await connection
    if connection.failure is not None:
        await connection.close()
        raise connection.failure
    return connection


class WritersTurn:
    """Has the writers of one engine write one after the other, in the order in which they came.

    SQLite takes one writer at a time; another one looks again ten times a second and may be overtaken each time, for
    which it keeps a connection that readers could use. A process that gets too little of a processor would take its own
    slowness for a lock of somebody else's.
    """

    def __init__(self, wait_seconds: float) -> None:
        self._lock = asyncio.Lock()
        self._wait_seconds = wait_seconds

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for the turn and keep it for the body; raises TimeoutError."""
        async with asyncio.timeout(self._wait_seconds):
            await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()


class _FileConnection(aiosqlite.Connection):
    """Opens in its own thread; a failure waits in ``failure``.

    aiosqlite 0.22 does not wait for its thread when opening raises: where the event loop ends soon after, the
    thread ends with a traceback. So opening never raises, and whoever opened closes properly.
    """

    def __init__(self, path: str, busy_timeout_seconds: float) -> None:
        super().__init__(self._open, iter_chunk_size=_CHUNK_ROWS)
        # A process that forgets to close may still end.
        self._thread.daemon = True
        self._path = path
        # The timeout comes first, so that the other pragmas wait for a lock as well.
        self._pragmas = (f"PRAGMA busy_timeout = {round(busy_timeout_seconds * 1_000)}", *_PRAGMAS)
        self._busy_timeout_seconds = busy_timeout_seconds
        self.failure: sqlite3.Error | None = None

    def _open(self) -> sqlite3.Connection:
        give_up_at = time.monotonic() + self._busy_timeout_seconds
        while True:
            try:
                return self._open_file()
            except sqlite3.Error as error:
                # SQLite does not apply its timeout where two connections turn a new file to WAL at once.
                if not _is_busy(error) or time.monotonic() > give_up_at:
                    self.failure = error
                    return sqlite3.connect(":memory:")
            time.sleep(_RETRY_SECONDS)

    def _open_file(self) -> sqlite3.Connection:
        # Without an isolation level the driver says neither BEGIN nor COMMIT by itself: it would not begin before
        # a SELECT, so there would be no snapshot.
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            for pragma in self._pragmas:
                connection.execute(pragma)
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _is_busy(error: sqlite3.Error) -> bool:
    # The low byte is the kind of error, the rest says more of it; an error of Python's driver itself has no code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
