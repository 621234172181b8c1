"""The client that is fast: requests are one write, answers what the transport's callbacks make of what arrives.

A request on a connection that stands starts no task, sets no timer of its own and makes two objects: the answer, and
the future that waits for its head. Not here: connections (``connection``, ``pool``, ``site``).
"""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from yarl import URL

from meterhouse.errors import UpstreamDown
from meterhouse.providers.http1.answer import Http1Answer
from meterhouse.providers.http1.connection import PIECE_BYTES
from meterhouse.providers.http1.pool import Pool
from meterhouse.providers.http1.site import Site
from meterhouse.providers.http_client import (
    MAX_CONNECTIONS,
    OK,
    STOPPING,
    Clearance,
    StaleConnection,
    Targets,
    check_usable,
    forwarded,
)
from meterhouse.providers.provider import Endpoint

_SITES_LIMIT = 1_024


class _Target:
    """What is the same for every request to an address: where it goes, and its head up to the length of the body."""

    __slots__ = ("connect_seconds", "headers", "line", "post_head", "provider", "site")

    def __init__(self, endpoint: Endpoint, url: URL, headers: dict[str, str], site: Site) -> None:
        self.site = site
        self.provider = endpoint.provider.name
        self.connect_seconds = endpoint.provider.timeouts.connect_seconds
        self.headers = headers
        self.line = f"{url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"
        self.post_head = self.head("POST", headers) + b"Content-Length: "

    def head(self, method: str, headers: Mapping[str, str]) -> bytes:
        """Return a head with these headers, without the empty line that ends it."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"{method} {self.line}{lines}".encode()


class Http1Client:
    """An HTTP/1.1 client; see ``providers.http_client.HttpClient``."""

    def __init__(self, most_connections: int = MAX_CONNECTIONS) -> None:
        self._most_connections = most_connections
        self._pool: Pool | None = None
        self._sites: dict[tuple[str, str, int, bool], Site] = {}
        self._targets = Targets(self._make_target)

    @property
    def open_connections(self) -> int:
        """Connections in use now, or being made; those that idle do not count."""
        return 0 if self._pool is None else self._pool.in_use

    async def open(self) -> None:
        """Be ready to send."""
        self._pool = Pool(asyncio.get_running_loop(), self._most_connections)

    async def close(self) -> None:
        """Close every connection; answers that are still read fail with UpstreamDown."""
        if self._pool is not None:
            await self._pool.close()

    def post(  # noqa: PLR0913 - what a request is made of, and when it may leave
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_streamed: bool,
        headers: Mapping[str, str] | None,
        seconds: float,
        clearance: Clearance | None = None,
    ) -> Coroutine[Any, Any, Http1Answer]:
        """Send a body and return when the answer's head is there; raises as ``HttpClient.post``.

        Of one that is not streamed and has the status 200, when all of it is there, or as much as nobody reads may be.
        """
        target = self._targets.of(endpoint, path, is_streamed=is_streamed)
        head = target.post_head
        if headers:
            head = target.head("POST", {**target.headers, **forwarded(target.headers, headers)}) + b"Content-Length: "
        size = len(body)
        if size <= PIECE_BYTES:
            message, rest = b"%b%d\r\n\r\n%b" % (head, size, body), b""
        else:
            message, rest = b"%b%d\r\n\r\n" % (head, size), body
        return self._send(target, message, rest, seconds, clearance, wants_whole=not is_streamed)

    async def get(self, endpoint: Endpoint, path: str, *, seconds: float) -> Http1Answer:
        """Ask for a document; raises as ``HttpClient.post``.

        It is asked for once more when a connection that had served before turns out to be closed.
        """
        loop = self._opened().loop
        deadline = loop.time() + seconds
        target = self._targets.of(endpoint, path, is_streamed=False)
        head = target.head("GET", target.headers) + b"\r\n"
        try:
            return await self._send(target, head, b"", seconds)
        except StaleConnection:
            return await self._send(target, head, b"", deadline - loop.time())

    async def _send(
        self,
        target: _Target,
        message: bytes,
        rest: bytes,
        seconds: float,
        clearance: Clearance | None = None,
        *,
        wants_whole: bool = False,
    ) -> Http1Answer:
        pool, site = self._pool, target.site
        if pool is None or pool.is_closed:
            raise _stopping()
        loop = pool.loop
        now_seconds = loop.time()
        if clearance is not None and rest:
            clearance.insist()
        connection = pool.try_lease(site.idle, now_seconds)
        if connection is None:
            if clearance is not None:
                clearance.insist()
            connection = await site.lease(target.provider, min(target.connect_seconds, max(0.001, seconds)))
        answer = Http1Answer(loop, connection, target.provider, wants_whole)
        try:
            connection.send(answer, message, rest, now_seconds + seconds, clearance)
            if answer.failure is None:
                answer.waiter = loop.create_future()
                await answer.waiter
                answer.waiter = None
                answer.wants_whole = False
            status = answer.status
            if not status and answer.failure is not None:
                raise answer.failure
            if status != OK or b"content-encoding" in answer.headers:
                check_usable(status, answer.header(b"content-encoding"), target.provider)
        except BaseException:
            answer.abort()
            raise
        return answer

    def _opened(self) -> Pool:
        pool = self._pool
        if pool is None or pool.is_closed:
            raise _stopping()
        return pool

    def _make_target(self, endpoint: Endpoint, url: URL, headers: dict[str, str]) -> _Target:
        place = (url.scheme, url.raw_host or "", url.port or 0, endpoint.is_public_only)
        site = self._sites.get(place)
        if site is None:
            if len(self._sites) >= _SITES_LIMIT:
                self._sites.clear()  # their connections idle out
            site = self._sites[place] = Site(self._opened(), url, is_public_only=endpoint.is_public_only)
        return _Target(endpoint, url, headers, site)


def _stopping() -> UpstreamDown:
    return UpstreamDown(STOPPING, detail="the upstream client is not open")
