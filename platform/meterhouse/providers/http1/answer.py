"""An answer as its connection feeds it: the head, then the bytes of the body until whoever reads takes them.

Invariant: what has arrived is read before a failure is; once the answer is whole, its connection is no more its own.
Not here: how bytes become an answer (``connection``).
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

from meterhouse.errors import UpstreamDown, UpstreamError, UpstreamTimeout
from meterhouse.providers.answer import parse_retry_after
from meterhouse.providers.http_client import CLOSED

MOST_WAITING_BYTES = 131_072
"""What may wait for a slow reader before nothing more is read from the connection; one read of it comes on top."""

_PIECE_BYTES = 48
"""What a piece of a body takes beside its bytes: a body in tiny chunks must not need many times its length."""


class Source(Protocol):
    """The connection that an answer comes over."""

    def resume(self) -> None:
        """Read on, if reading was paused."""
        ...

    def close(self) -> None:
        """Close it at once; the answer hears nothing of that."""
        ...


class Http1Answer:
    """An answer over a connection; see ``providers.answer.Answer``."""

    __slots__ = (
        "_failure",
        "_headers",
        "_is_over",
        "_is_whole",
        "_loop",
        "_parts",
        "_provider",
        "_source",
        "_waiter",
        "_waiting_bytes",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, source: Source, provider: str) -> None:
        self.status = 0
        """0 until the head is there."""
        self._loop = loop
        self._source: Source | None = source
        self._provider = provider
        self._headers: Mapping[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: UpstreamError | None = None
        self._is_whole = False
        self._is_over = False

    # --- fed by the connection

    def begin(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head."""
        self.status = status
        self._headers = headers
        self._wake()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._parts.append(data)
        self._waiting_bytes += len(data) + _PIECE_BYTES
        waiter = self._waiter
        if waiter is not None and not waiter.done():  # as ``_wake``, which would be called for each piece of a read
            waiter.set_result(None)

    @property
    def is_full(self) -> bool:
        """Whether as much waits to be read as may."""
        return self._waiting_bytes > MOST_WAITING_BYTES

    def finish(self) -> None:
        """Note that the body is whole."""
        self._source = None
        self._is_whole = True
        self._wake()

    def fail(self, kind: type[UpstreamError], text: str, detail: str = "") -> None:
        """Note that nothing more will come; the text goes on from the provider's name."""
        self._source = None
        self._failure = kind(f"The provider {self._provider} {text}.", detail=detail)
        self._wake()

    # --- read by the caller

    async def wait_for_head(self) -> None:
        """Return when the head is there, whatever becomes of the body; raises what came instead."""
        if not self.status and self._failure is None:
            await self._wait()
        if not self.status and self._failure is not None:
            raise self._failure

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty when there is none."""
        return self.header(b"content-type").partition(";")[0].strip().lower()

    @property
    def retry_after_seconds(self) -> float | None:
        """How long the upstream asks to wait; None when it does not."""
        milliseconds, value = self.header(b"retry-after-ms"), self.header(b"retry-after")
        return parse_retry_after(milliseconds or None, value or None, time.time())

    def header(self, name: bytes) -> str:
        """Return a header of the answer, empty when there is none."""
        return self._headers.get(name, b"").decode("latin-1")

    async def read(self) -> bytes:
        """Return the next bytes as they come, ``b""`` at the end; raises as ``Answer.read``."""
        while True:
            if self._is_over:
                raise self._failure or UpstreamDown(CLOSED)
            if self._parts:
                return self._take()
            if self._failure is not None:
                raise self._failure
            if self._is_whole:
                return b""
            # As in ``_wait``, without a coroutine more for each event of a stream.
            waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None

    async def read_all(self, limit_bytes: int, *, timeout_seconds: float | None = None) -> bytes:
        """Return the rest of the body; raises as ``Answer.read_all``."""
        try:
            if timeout_seconds is None:
                return await self._read_all(limit_bytes)
            async with asyncio.timeout(timeout_seconds):
                return await self._read_all(limit_bytes)
        except TimeoutError as failure:
            raise UpstreamTimeout(
                f"The provider {self._provider} did not answer in time.", detail=type(failure).__name__
            ) from failure
        finally:
            self.release()

    async def _read_all(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            parts.append(data)
            size += len(data)
            if size > limit_bytes:
                raise UpstreamDown(f"The provider {self._provider} answered with more than {limit_bytes} bytes.")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def abort(self) -> None:
        """Close the connection at once; a reader that waits is woken with UpstreamDown."""
        if not self._is_over:
            self._is_over = True
            self._parts.clear()
            source, self._source = self._source, None
            if source is not None:
                source.close()
            self._wake()

    def release(self) -> None:
        """End the answer; a connection that is not through with it is of no use to another."""
        self.abort()

    def _take(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._waiting_bytes = 0
        if self._source is not None:
            self._source.resume()
        return data

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
