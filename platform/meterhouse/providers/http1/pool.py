"""Connections for use: idle ones of the same address first, else a new one, never more at a time than the bound.

Invariant: a slot belongs to whoever asked for it until it belongs to a leased connection, and comes back when that
idles or closes, whatever is cancelled in between; who waits for a slot waits in turn. Two sites never share a
connection, and an address that must be public is another site than the same one that need not be.
Not here: what travels on a connection (``connection``), where a name leads to (``site``).
"""

import asyncio
import ssl
from collections import deque

from meterhouse.errors import UpstreamDown
from meterhouse.providers.http1.connection import Connection
from meterhouse.providers.http1.late_watch import LateWatch
from meterhouse.providers.http_client import IDLE_CONNECTION_SECONDS, STOPPING


class Pool:
    """The connections of a process to all providers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most_connections: int) -> None:
        self.loop = loop
        self.lookups: set[asyncio.Task[None]] = set()
        """Look-ups of names that are under way."""
        self.late_watch = LateWatch(loop)
        self.in_use = 0
        self.is_closed = False
        self._most = most_connections
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._leased: dict[Connection, None] = {}
        self._idle: dict[Connection, None] = {}
        """By the time since which they idle, of all sites."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def close(self) -> None:
        """Close every connection, and refuse whoever waits for one or asks from now on."""
        self.is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(UpstreamDown(STOPPING, detail="the upstream client is closed"))
        for connection in tuple(self._idle):
            connection.close()
        for connection in tuple(self._leased):
            connection.lose(UpstreamDown, "was hung up on: the server is stopping")
        if not self.late_watch.waiting:  # who is still connecting can be late still
            self.late_watch.close()
        for lookup in self.lookups:
            lookup.cancel()
        await asyncio.gather(*self.lookups, asyncio.sleep(0), return_exceptions=True)

    def check_open(self) -> None:
        """Raise UpstreamDown once the pool is closed."""
        if self.is_closed:
            raise UpstreamDown(STOPPING, detail="the upstream client is closed")

    # --- slots

    async def take_slot(self) -> None:
        """Take a slot, in turn.

        Raises:
            UpstreamDown: The pool is closed.
        """
        self.check_open()
        if self.in_use < self._most and not self._waiters:
            self.in_use += 1
            return
        waiter = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self.free_slot()  # it was ours already
            raise

    def free_slot(self) -> None:
        """Give a slot back: to who has waited longest, if anybody does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.in_use -= 1

    # --- connections

    def try_lease(self, idle: dict[Connection, None], now_seconds: float) -> Connection | None:
        """Lease one of these that idle; None when there is none, or others wait for a slot."""
        if not idle or self._waiters or self.in_use >= self._most or self.is_closed:
            return None
        connection = self.take_idle(idle, now_seconds)
        if connection is not None:
            self.in_use += 1
        return connection

    def take_idle(self, idle: dict[Connection, None], now_seconds: float) -> Connection | None:
        """Lease the one that idles shortest, in a slot that was taken for it; old ones are closed on the way."""
        while idle:
            connection, _ = idle.popitem()
            if connection.idle_since_seconds > now_seconds - IDLE_CONNECTION_SECONDS and connection.is_usable:
                connection.is_idle = False
                connection.is_leased = True
                del self._idle[connection]
                self._leased[connection] = None
                return connection
            connection.close()
        return None

    def lease(self, connection: Connection) -> Connection:
        """Make a new connection the owner of a slot that was taken for it."""
        connection.is_leased = True
        self._leased[connection] = None
        return connection

    def make_room(self) -> None:
        """Close the connection that idles longest, if a further one would be one too many."""
        if self._idle and self.in_use + len(self._idle) > self._most:
            next(iter(self._idle)).close()

    def keep(self, connection: Connection) -> None:
        """Take a connection back: it idles, and its slot is free."""
        if self.is_closed:
            connection.close()
            return
        now = self.loop.time()
        connection.idle_among[connection] = None
        del self._leased[connection]
        connection.is_leased = False
        connection.is_idle = True
        connection.idle_since_seconds = now
        self._idle[connection] = None
        if self._waiters:
            self.free_slot()
        else:
            self.in_use -= 1
        if self._sweeper is None:
            self._sweeper = self.loop.call_at(now + IDLE_CONNECTION_SECONDS, self._sweep)

    def forget(self, connection: Connection) -> None:
        """Strike a closed connection off."""
        if connection.is_idle:
            connection.is_idle = False
            connection.idle_among.pop(connection, None)
            del self._idle[connection]
        if connection.is_leased:
            connection.is_leased = False
            del self._leased[connection]
            self.free_slot()

    def _sweep(self) -> None:
        """Close what has idled for too long."""
        self._sweeper = None
        limit = self.loop.time() - IDLE_CONNECTION_SECONDS
        for connection in tuple(self._idle):
            if connection.idle_since_seconds > limit:
                due = connection.idle_since_seconds + IDLE_CONNECTION_SECONDS
                self._sweeper = self.loop.call_at(due, self._sweep)
                break
            connection.close()

    async def tls(self) -> ssl.SSLContext:
        """Return the context that verifies providers by the system's authorities; read once, off the event loop."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(_make_tls_context)
        return self._tls


def _make_tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
