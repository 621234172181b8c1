"""The client on aiohttp: the other one behind the same setting, and the one that lean clients are measured against.

Invariant: whatever goes wrong below leaves here as UpstreamDown or UpstreamTimeout; whoever is cancelled while
opening leaves no connection behind; no cookie is kept. Not here: what holds for both clients (``http_client``).
"""

import asyncio
import functools
import socket
import time
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractStreamWriter, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.payload import Payload
from multidict import CIMultiDict
from yarl import URL

from meterhouse.errors import UpstreamDown, UpstreamError, UpstreamTimeout
from meterhouse.providers.address import is_public
from meterhouse.providers.answer import Take, parse_retry_after
from meterhouse.providers.http_client import (
    CLOSED,
    IDLE_CONNECTION_SECONDS,
    MAX_CONNECTIONS,
    MAX_HEADER_LINE_BYTES,
    MAX_HEADERS,
    STOPPING,
    Clearance,
    Targets,
    check_usable,
    forwarded,
)
from meterhouse.providers.provider import Endpoint

_FAILURES: tuple[tuple[type[BaseException], type[UpstreamError], str], ...] = (
    (aiohttp.ConnectionTimeoutError, UpstreamTimeout, "could not be connected to in time"),
    (TimeoutError, UpstreamTimeout, "did not answer in time"),
    (aiohttp.ClientConnectorDNSError, UpstreamDown, "could not be found by its name"),
    (aiohttp.ClientSSLError, UpstreamDown, "could not be connected to securely"),
    (aiohttp.ServerFingerprintMismatch, UpstreamDown, "could not be connected to securely"),
    (aiohttp.ClientConnectorError, UpstreamDown, "could not be connected to"),
    (aiohttp.ServerDisconnectedError, UpstreamDown, "closed the connection without an answer"),
    (aiohttp.ClientPayloadError, UpstreamDown, "ended its answer early"),
    (aiohttp.ClientResponseError, UpstreamDown, "did not speak HTTP"),
    (aiohttp.InvalidURL, UpstreamDown, "has an address that cannot be used"),
    (aiohttp.ClientError, UpstreamDown, "broke the connection"),
    (OSError, UpstreamDown, "broke the connection"),
    (RuntimeError, UpstreamDown, "broke the connection"),
    (ValueError, UpstreamDown, "has an address that cannot be used"),
)
"""The first row whose type fits decides. aiohttp raises RuntimeError when it reads from a connection that is gone.

The look-up of a name that cannot be encoded raises UnicodeError, a ValueError.
"""
_FAILURE_TYPES = tuple({row[0] for row in _FAILURES})
_QUOTES_THE_ANSWER = (aiohttp.ClientPayloadError, aiohttp.ClientResponseError)
"""Their texts show the bytes that were no HTTP, which may be a part of an answer; the log must never have those."""


def translate_failure(failure: BaseException, provider: str) -> UpstreamError:
    """Turn a failure of the HTTP client into ours; the public text names the provider, never an address."""
    for kind, error, text in _FAILURES:
        if isinstance(failure, kind):
            detail = type(failure).__name__
            if not isinstance(failure, _QUOTES_THE_ANSWER):
                detail = f"{detail}: {failure}"
            elif failure.__cause__ is not None:
                detail = f"{detail} from {type(failure.__cause__).__name__}"
            return error(f"The provider {provider} {text}.", detail=detail)
    raise TypeError(f"{type(failure).__name__} is no failure of the HTTP client") from failure


class AiohttpClient:
    """An HTTP/1.1 client; see ``providers.http_client.HttpClient``."""

    def __init__(self) -> None:
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        """By whether only public addresses may be connected to: two pools and two caches of names that never meet."""
        self._targets = Targets(_Target)

    @property
    def open_connections(self) -> int:
        """Connections in use now; those that idle do not count."""
        connectors = [session.connector for session in self._sessions.values()]
        return sum(len(found._acquired) for found in connectors if found is not None)  # noqa: SLF001 - aiohttp has no public count

    async def open(self) -> None:
        """Open a session for any address, and one for public addresses only."""
        self._sessions = {False: _open_session(aiohttp.ThreadedResolver()), True: _open_session(PublicResolver())}

    async def close(self) -> None:
        """Close every connection; answers that are still read fail with UpstreamDown."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def post(  # noqa: PLR0913 - what a request is made of, and when it may leave
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_streamed: bool,
        headers: Mapping[str, str] | None,
        seconds: float,
        clearance: Clearance | None = None,
    ) -> "_NetworkAnswer":
        """Send a body and return when the answer's head is there; raises as ``HttpClient.post``."""
        if clearance is not None:
            clearance.insist()
        target = self._targets.of(endpoint, path, is_streamed=is_streamed)
        merged = target.headers
        if headers:
            merged = merged.copy()
            merged.update(forwarded(merged, headers))
        return await self._send(endpoint, target, _Body(body), merged, seconds)

    async def get(self, endpoint: Endpoint, path: str, *, seconds: float) -> "_NetworkAnswer":
        """Ask for a document; raises as ``HttpClient.post``."""
        target = self._targets.of(endpoint, path, is_streamed=False)
        return await self._send(endpoint, target, None, target.headers, seconds)

    async def _send(
        self,
        endpoint: Endpoint,
        target: "_Target",
        body: "_Body | None",
        headers: CIMultiDict[str],
        seconds: float,
    ) -> "_NetworkAnswer":
        session = self._sessions.get(endpoint.is_public_only)
        if session is None:
            raise UpstreamDown(STOPPING, detail="the upstream client is not open")
        provider, method = endpoint.provider.name, "GET" if body is None else "POST"
        try:
            async with asyncio.timeout(seconds):
                response = await session.request(
                    method, target.url, data=body, headers=headers, allow_redirects=False, timeout=target.timeout
                )
        except _FAILURE_TYPES as failure:
            raise translate_failure(failure, provider) from failure
        answer = _NetworkAnswer(response, provider)
        try:
            check_usable(response.status, response.headers.get("content-encoding", ""), provider)
        except UpstreamDown:
            answer.abort()
            raise
        return answer


class _Target:
    """What is the same for every request to an address."""

    __slots__ = ("headers", "timeout", "url")

    def __init__(self, endpoint: Endpoint, url: URL, headers: dict[str, str]) -> None:
        timeouts = endpoint.provider.timeouts
        self.url = url
        self.timeout = aiohttp.ClientTimeout(
            total=None, connect=timeouts.connect_seconds, sock_connect=timeouts.connect_seconds, sock_read=None
        )
        self.headers = CIMultiDict(headers)


class PublicResolver(aiohttp.ThreadedResolver):
    """Leads no name to an address that is not public: what is checked is what is connected to."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up."""
        found = await super().resolve(host, port, family)
        if not found or not all(is_public(result["host"]) for result in found):
            raise OSError(f"{host} leads to an address that is not public")
        return found


def _open_session(resolver: aiohttp.ThreadedResolver) -> aiohttp.ClientSession:
    """Open a client; a ThreadedResolver has nothing that must be closed."""
    connector = aiohttp.TCPConnector(
        limit=MAX_CONNECTIONS, keepalive_timeout=IDLE_CONNECTION_SECONDS, resolver=resolver
    )
    kind: type[ResponseHandler] = _Connection
    connector._factory = functools.partial(kind, loop=asyncio.get_running_loop())  # noqa: SLF001 - no public way; see _Connection
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        max_line_size=MAX_HEADER_LINE_BYTES,
        max_field_size=MAX_HEADER_LINE_BYTES,
        max_headers=MAX_HEADERS,
        skip_auto_headers=("User-Agent",),
    )


class _Body(Payload):
    """A body that is bytes already. aiohttp's own class warns above 1 MB, where it need not."""

    def __init__(self, value: bytes) -> None:
        super().__init__(value, content_type="application/json")
        self._size = len(value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the whole body."""
        await writer.write(self._value)


class _Connection(ResponseHandler):
    """Ends a body that broke. With its C parser aiohttp 3.14 tells nobody of a chunk size that is none.

    The connection is closed then, but whoever reads would wait for ever.
    """

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell the reader of an unfinished body."""
        payload = self._payload
        super().connection_lost(exc)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("the connection ended inside the body"))


class _NetworkAnswer:
    """An answer that comes over a connection."""

    __slots__ = ("_failure", "_is_over", "_provider", "_read", "_response", "status")

    def __init__(self, response: aiohttp.ClientResponse, provider: str) -> None:
        self.status = response.status
        self._response = response
        self._read = response.content.readany
        self._provider = provider
        self._is_over = False
        self._failure: UpstreamError | None = None

    @property
    def content_type(self) -> str:
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def retry_after_seconds(self) -> float | None:
        headers = self._response.headers
        return parse_retry_after(headers.get("retry-after-ms"), headers.get("retry-after"), time.time())

    async def read(self, take: Take | None = None) -> bytes:  # noqa: ARG002 - the protocol's own signature
        if self._failure is not None:
            raise self._failure
        if self._is_over:
            raise UpstreamDown(CLOSED)
        try:
            return await self._read()
        except _FAILURE_TYPES as failure:
            if self._is_over:
                raise UpstreamDown(CLOSED) from failure
            self._failure = translate_failure(failure, self._provider)
            # What had come before the connection broke: it may hold the usage. aiohttp would drop it.
            arrived = self._read_nowait()
            self.abort()
            if arrived:
                return arrived
            raise self._failure from failure

    def take_arrived(self) -> bytes:
        return b"" if self._is_over or self._failure is not None else self._read_nowait()

    def _read_nowait(self) -> bytes:
        content = self._response.content
        return content._read_nowait(-1)  # noqa: SLF001 - the public way refuses once the connection broke

    async def read_all(self, limit_bytes: int, *, timeout_seconds: float | None = None) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(timeout_seconds):
                while data := await self.read():
                    parts.append(data)
                    size += len(data)
                    if size > limit_bytes:
                        raise UpstreamDown(
                            f"The provider {self._provider} answered with more than {limit_bytes} bytes."
                        )
        except TimeoutError as failure:
            raise translate_failure(failure, self._provider) from failure
        finally:
            self.release()
        return b"".join(parts)

    def take_whole(self, limit_bytes: int) -> bytes | None:  # noqa: ARG002 - the protocol's own signature
        return None

    def abort(self) -> None:
        self._is_over = True
        self._response.close()

    def release(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._response.release()
