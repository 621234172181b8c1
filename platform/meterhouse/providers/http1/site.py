"""Where a provider is: one scheme, host and port, its addresses, and the connections that stand to it.

Invariant: what is checked is what is connected to: where only public addresses may be, the very addresses that are
handed to the socket have been looked at. Not here: how many connections there may be (``pool``).
"""

import asyncio
import socket
import ssl
from ipaddress import ip_address
from typing import Any

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType
from yarl import URL

from meterhouse.errors import UpstreamDown, UpstreamError, UpstreamTimeout
from meterhouse.providers.address import is_public
from meterhouse.providers.http1.connection import Connection
from meterhouse.providers.http1.late_watch import Patience
from meterhouse.providers.http1.pool import Pool
from meterhouse.providers.http_client import HAPPY_EYEBALLS_SECONDS

ADDRESS_SECONDS = 10.0
"""How long the addresses of a name are believed."""
KERNEL_BYTES = 262_144
"""What the kernel may take of an answer that nobody reads, before its provider is held up. Left to itself it takes some
megabytes of each, and a few hundred such use up what all connections of the machine share."""

_FAILURES: tuple[tuple[type[BaseException], type[UpstreamError], str], ...] = (
    (TimeoutError, UpstreamTimeout, "could not be connected to in time"),
    (socket.gaierror, UpstreamDown, "could not be found by its name"),
    (ssl.SSLError, UpstreamDown, "could not be connected to securely"),
    (OSError, UpstreamDown, "could not be connected to"),
    (RuntimeError, UpstreamDown, "could not be connected to"),
    (ValueError, UpstreamDown, "has an address that cannot be used"),
)
"""The first row whose type fits decides. uvloop raises RuntimeError for some sockets that are gone.

The look-up of a name that cannot be encoded raises UnicodeError, a ValueError.
"""
_FAILURE_TYPES = tuple(row[0] for row in _FAILURES)


class Site:
    """A scheme, host and port, and the connections to it that idle."""

    def __init__(self, pool: Pool, url: URL, *, is_public_only: bool) -> None:
        host = url.raw_host or ""
        self._pool = pool
        self._is_secure = url.scheme == "https"
        self._host = host.rstrip(".") + "." if host.endswith("..") else host
        self._port = url.port or 0
        self._is_public_only = is_public_only
        self.idle: dict[Connection, None] = {}
        """The connections to it that idle; the pool's to fill and to empty."""
        self._addresses: list[AddrInfoType] = []
        self._believed_until_seconds = 0.0
        self._lookup: asyncio.Task[None] | None = None

    # --- new connections

    async def lease(self, provider: str, timeout_seconds: float) -> Connection:
        """Return a connection for one request: wait for a slot, look the name up, connect, and trust.

        Raises:
            UpstreamDown: There is none to be had, or the pool is closed.
            UpstreamTimeout: There was none in time.
        """
        pool = self._pool
        try:
            with Patience(pool.late_watch, pool.loop.time() + timeout_seconds):
                await pool.take_slot()
                try:
                    return pool.take_idle(self.idle, pool.loop.time()) or pool.lease(await self._connect())
                except BaseException:
                    pool.free_slot()
                    raise
        except _FAILURE_TYPES as failure:
            raise _translate(failure, provider) from failure

    async def _connect(self) -> Connection:
        """Connect to the first address that answers; one that cannot be trusted is left out and the others tried."""
        pool = self._pool
        pool.make_room()
        if not self._addresses or pool.loop.time() >= self._believed_until_seconds:
            await self._find_addresses()
        addresses = self._addresses
        tls = await pool.tls() if self._is_secure else None
        if len(addresses) == 1 and not any(addresses[0][4][2:]):
            # With nothing to choose, and no scope that a text would lose, the loop connects by itself: without an
            # object of Python's for the socket, and a turn sooner.
            host, port = addresses[0][4][:2]
            return await self._set_up(tls, host=str(host), port=port)
        while True:
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS, interleave=1
            )
            try:
                peer = sock.getpeername()[0]
            except OSError:
                sock.close()
                raise
            try:
                return await self._set_up(tls, sock=sock)
            except OSError:
                others = [row for row in addresses if row[4][0] != peer]
                if not others or len(others) == len(addresses):
                    raise
                addresses = others

    async def _set_up(self, tls: ssl.SSLContext | None, **place: Any) -> Connection:
        """Make a connection to a host and port, or over a socket that is connected."""
        connection = Connection(self._pool, self.idle)
        try:
            transport, _ = await self._pool.loop.create_connection(
                lambda: connection, **place, ssl=tls, server_hostname=self._host.rstrip(".") if tls else None
            )
            if tls is not None:
                # While paused uvloop reads on, up to a limit, and drops what it has when the peer ends the connection.
                transport.set_read_buffer_limits(high=1, low=0)  # type: ignore[attr-defined]  # of TLS transports
            self._pool.check_open()
            if not connection.is_usable:
                raise ConnectionResetError("closed as soon as it was made")
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        except BaseException:
            connection.close()
            raise
        return connection

    # --- addresses

    async def _find_addresses(self) -> None:
        """Look up where the host is; whoever asks during a look-up waits for the same one."""
        if self._lookup is None:
            self._lookup = self._pool.loop.create_task(self._look_up())
            self._pool.lookups.add(self._lookup)
            self._lookup.add_done_callback(self._end_lookup)
        lookup = self._lookup
        try:
            await asyncio.shield(lookup)
        except asyncio.CancelledError:
            if lookup.cancelled():
                self._pool.check_open()
            raise

    async def _look_up(self) -> None:
        loop = self._pool.loop
        try:
            found: list[AddrInfoType] = [_literal(self._host, self._port)]
        except ValueError:
            rows = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            found = list(rows)
        if self._is_public_only and not (found and all(is_public(str(row[4][0])) for row in found)):
            raise socket.gaierror(f"{self._host} leads to an address that is not public")
        self._addresses = found
        self._believed_until_seconds = loop.time() + ADDRESS_SECONDS

    def _end_lookup(self, lookup: "asyncio.Task[None]") -> None:
        self._lookup = None
        self._pool.lookups.discard(lookup)
        if not lookup.cancelled():
            lookup.exception()  # whoever asked may be gone; that is no reason for a line in the log


def _literal(host: str, port: int) -> AddrInfoType:
    """Return the row of an address that is written out; raises ValueError for a name."""
    address = ip_address(host)
    if address.version == 6:  # noqa: PLR2004
        return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


def _translate(failure: BaseException, provider: str) -> UpstreamError:
    """Turn a failure to connect into ours; the public text names the provider, never an address."""
    kind, text = next((kind, text) for row, kind, text in _FAILURES if isinstance(failure, row))
    return kind(f"The provider {provider} {text}.", detail=f"{type(failure).__name__}: {failure}")
