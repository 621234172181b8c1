"""The one file that knows the HTTP client: it opens attempts, reads answers, and translates every failure.

Invariant: whatever goes wrong below leaves here as UpstreamDown or UpstreamTimeout; whoever is cancelled while
opening leaves no connection behind; no redirect is followed, no encoded body read, no cookie kept, no header of a
caller forwarded that is not on the list. Not here: what an answer means (relay, refusal), timeouts between events.
"""

import asyncio
import functools
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractStreamWriter, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.payload import Payload
from multidict import CIMultiDict
from yarl import URL

from meterhouse import __version__
from meterhouse.errors import UpstreamDown, UpstreamError, UpstreamTimeout
from meterhouse.providers.address import is_public
from meterhouse.providers.answer import Answer, Opener, parse_retry_after
from meterhouse.providers.provider import Endpoint

MAX_CONNECTIONS = 20_000
"""More wait for a connection, at most for the connect timeout."""
IDLE_CONNECTION_SECONDS = 4.0
"""Below the 5 s after which uvicorn closes (vLLM, SGLang): a request on a connection that closes under it fails."""
MAX_HEADER_LINE_BYTES = 8_190
MAX_HEADERS = 128
FORWARDED_HEADERS = ("traceparent", "tracestate", "content-type")
VERSION_HEADERS = ("anthropic-version", "anthropic-beta")
"""Forwarded only where the provider's row has a version of its own, which they stand in place of."""
OK = 200

_CLOSED = "The connection was closed by us."
_TARGETS_LIMIT = 1_024

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


class Upstream:
    """Opens attempts; one per process, entered in its event loop. The simulator's attempts touch no network."""

    def __init__(self, *, simulator: Opener | None = None) -> None:
        self._simulator = simulator
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        """By whether only public addresses may be connected to: two pools and two caches of names that never meet."""
        self._targets: dict[tuple[str, str, str, str | None, bool], _Target] = {}

    async def __aenter__(self) -> Self:
        self._sessions = {False: _open_session(aiohttp.ThreadedResolver()), True: _open_session(PublicResolver())}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; answers that are still read fail with UpstreamDown."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    @property
    def open_connections(self) -> int:
        """Connections in use now; those that idle in the pool do not count."""
        connectors = [session.connector for session in self._sessions.values()]
        return sum(len(found._acquired) for found in connectors if found is not None)  # noqa: SLF001 - aiohttp has no public count

    async def open(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_streamed: bool,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Send a POST and return when the answer's head is there, whatever its status.

        ``headers`` may carry a trace context, a content type other than JSON and, to Anthropic, a version; everything
        else in it is dropped.
        Without ``timeout_seconds`` the head is waited for as long as the provider's row allows.

        Raises:
            UpstreamDown: not reached, or what came is no usable HTTP (a redirect, an encoded body, no HTTP at all).
            UpstreamTimeout: no connection, or no head, in time.
        """
        if endpoint.provider.wire == "simulator":
            if self._simulator is None:
                raise UpstreamDown("The simulator is switched off.")
            return await self._simulator.open(endpoint, path, body, is_streamed=is_streamed)
        timeouts = endpoint.provider.timeouts
        seconds = timeout_seconds or (timeouts.first_token_seconds if is_streamed else timeouts.total_seconds)
        target = self._target(endpoint, path, is_streamed=is_streamed)
        return await self._send(
            "POST", endpoint, target, _Body(body), _with_forwarded(target.headers, headers), seconds
        )

    async def fetch(
        self, endpoint: Endpoint, path: str, *, timeout_seconds: float, limit_bytes: int
    ) -> tuple[int, bytes]:
        """GET a small document: (status, body). The timeout holds for the whole of it.

        Raises:
            UpstreamDown: as ``open``, or the body is longer than the limit.
            UpstreamTimeout: not all of it came in time.
        """
        deadline = time.monotonic() + timeout_seconds
        target = self._target(endpoint, path, is_streamed=False)
        answer = await self._send("GET", endpoint, target, None, target.headers, timeout_seconds)
        body = await answer.read_all(limit_bytes, timeout_seconds=max(0.001, deadline - time.monotonic()))
        return answer.status, body

    async def _send(
        self,
        method: str,
        endpoint: Endpoint,
        target: "_Target",
        body: "_Body | None",
        headers: CIMultiDict[str],
        seconds: float,
    ) -> "_NetworkAnswer":
        session = self._sessions.get(endpoint.is_public_only)
        if session is None:
            raise UpstreamDown("The server is stopping.", detail="the upstream client is not open")
        provider = endpoint.provider.name
        try:
            async with asyncio.timeout(seconds):
                response = await session.request(
                    method, target.url, data=body, headers=headers, allow_redirects=False, timeout=target.timeout
                )
        except _FAILURE_TYPES as failure:
            raise translate_failure(failure, provider) from failure
        answer = _NetworkAnswer(response, provider)
        try:
            _check_usable(response, provider)
        except UpstreamDown:
            answer.abort()
            raise
        return answer

    def _target(self, endpoint: Endpoint, path: str, *, is_streamed: bool) -> "_Target":
        key = (endpoint.provider.name, endpoint.base_url, path, endpoint.credential, is_streamed)
        target = self._targets.get(key)
        if target is None:
            if len(self._targets) >= _TARGETS_LIMIT:
                self._targets.clear()
            try:
                target = _Target(endpoint, path, is_streamed=is_streamed)
            except ValueError as failure:
                raise translate_failure(failure, endpoint.provider.name) from failure
            self._targets[key] = target
        return target


class _Target:
    """What is the same for every attempt at an endpoint, made once."""

    __slots__ = ("headers", "timeout", "url")

    def __init__(self, endpoint: Endpoint, path: str, *, is_streamed: bool) -> None:
        row = endpoint.provider
        self.url = URL(endpoint.base_url + path)
        self.timeout = aiohttp.ClientTimeout(
            total=None,
            connect=row.timeouts.connect_seconds,
            sock_connect=row.timeouts.connect_seconds,
            sock_read=None,
        )
        self.headers = CIMultiDict(row.extra_headers)
        self.headers["accept"] = "text/event-stream, application/json" if is_streamed else "application/json"
        self.headers["accept-encoding"] = "identity"
        self.headers["content-type"] = "application/json"
        self.headers["user-agent"] = f"meterhouse/{__version__}"
        if endpoint.credential is not None:
            self.headers[row.credential_header] = row.credential_prefix + endpoint.credential


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

    async def read(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        if self._is_over:
            raise UpstreamDown(_CLOSED)
        try:
            return await self._read()
        except _FAILURE_TYPES as failure:
            if self._is_over:
                raise UpstreamDown(_CLOSED) from failure
            self._failure = translate_failure(failure, self._provider)
            arrived = self._take_arrived()
            self.abort()
            if arrived:
                return arrived
            raise self._failure from failure

    def _take_arrived(self) -> bytes:
        """Return what had come before the connection broke: it may hold the usage. aiohttp would drop it."""
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

    def abort(self) -> None:
        self._is_over = True
        self._response.close()

    def release(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._response.release()


def _with_forwarded(base: CIMultiDict[str], headers: Mapping[str, str] | None) -> CIMultiDict[str]:
    if not headers:
        return base
    merged = base.copy()
    for name in FORWARDED_HEADERS + (VERSION_HEADERS if VERSION_HEADERS[0] in base else ()):
        value = headers.get(name)
        if value is not None and value.isascii() and value.isprintable():
            merged[name] = value
    return merged


def _check_usable(response: aiohttp.ClientResponse, provider: str) -> None:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UpstreamDown(
            f"The provider {provider} encoded its answer, which was not asked for.",
            detail=f"content-encoding {encoding[:40]}",
        )
    if response.status < OK or 300 <= response.status < 400:  # noqa: PLR2004 - HTTP's classes
        raise UpstreamDown(
            f"The provider {provider} redirects; its base URL must be the final one.",
            detail=f"status {response.status}",
        )
