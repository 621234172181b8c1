"""An answer as its connection feeds it: the head, then the bytes of the body until whoever reads takes them.

Invariant: what has arrived is read before a failure is; once the answer is whole, its connection is no more its own.
Not here: how bytes become an answer (``connection``).
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from meterhouse.errors import GatewayError, UpstreamDown, UpstreamError, UpstreamTimeout
from meterhouse.providers.answer import Take, parse_retry_after
from meterhouse.providers.http_client import CLOSED

MOST_WAITING_BYTES = 131_072
"""What may wait for a slow reader before nothing more is read from the connection; one read of it comes on top."""

PIECE_COST_BYTES = 48
"""What a piece of a body takes beside its bytes: a body in tiny chunks must not need many times its length."""


_USUAL_TYPES = {
    b"application/json": "application/json",
    b"application/json; charset=utf-8": "application/json",
    b"text/event-stream": "text/event-stream",
    b"text/event-stream; charset=utf-8": "text/event-stream",
}
"""What most answers are, read already."""


class Source(Protocol):
    """The connection that an answer comes over."""

    is_paused: bool
    """Whether nothing more is read from it until what has come was taken."""

    def resume(self) -> None:
        """Read on, if reading was paused."""
        ...

    def close(self) -> None:
        """Close it at once; the answer hears nothing of that."""
        ...


class Http1Answer(msgspec.Struct, eq=False):
    """An answer over a connection; see ``providers.answer.Answer``. A struct, because one is made for each request."""

    loop: asyncio.AbstractEventLoop
    source: Source | None
    """None once it has nothing to do with this answer any more."""
    provider: str
    wants_whole: bool = False
    """Whether who waits for the head would only wait for the body then: he is woken once, with all of it."""
    status: int = 0
    """0 until the head is there."""
    headers: Mapping[bytes, bytes] = {}
    parts: list[bytes] = []
    """What has come of the body and was not read; the connection adds to it, to ``waiting_bytes``, and wakes."""
    waiting_bytes: int = 0
    waiter: asyncio.Future[None] | None = None
    """Of who waits for the head, or for more of the body."""
    take: Take | None = None
    """Of who waits for more of the body: gets it first."""
    failure: GatewayError | None = None
    """What came instead of the head, or of the rest of the body."""
    is_whole: bool = False
    """Whether all of the body has come."""
    is_over: bool = False
    """Whether it was read to its end, or nobody reads on."""

    def __repr__(self) -> str:
        """Show nothing of the answer: a prompt's text may be in it."""
        return f"<{type(self).__name__}>"

    # --- fed by the connection

    def finish(self) -> None:
        """Note that the body is whole."""
        self.source = None
        self.is_whole = True
        self._wake()

    def fail(self, kind: type[UpstreamError], text: str, detail: str = "") -> None:
        """Note that nothing more will come; the text goes on from the provider's name."""
        self.source = None
        self.failure = kind(f"The provider {self.provider} {text}.", detail=detail)
        self._wake()

    def refuse(self, refusal: GatewayError) -> None:
        """Note why the request was never sent."""
        self.source = None
        self.failure = refusal
        self._wake()

    # --- read by the caller

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty when there is none."""
        written = self.headers.get(b"content-type", b"")
        if written in _USUAL_TYPES:
            return _USUAL_TYPES[written]
        return written.decode("latin-1").partition(";")[0].strip().lower()

    @property
    def retry_after_seconds(self) -> float | None:
        """How long the upstream asks to wait; None when it does not."""
        milliseconds, value = self.header(b"retry-after-ms"), self.header(b"retry-after")
        return parse_retry_after(milliseconds or None, value or None, time.time())

    def header(self, name: bytes) -> str:
        """Return a header of the answer, empty when there is none."""
        return self.headers.get(name, b"").decode("latin-1")

    async def read(self, take: Take | None = None) -> bytes:
        """Return the next bytes as they come, ``b""`` at the end; ``take`` and what it raises: as ``Answer.read``."""
        while True:
            if self.is_over:
                raise self.failure or UpstreamDown(CLOSED)
            if self.parts:
                return self.take_arrived()
            if self.failure is not None:
                raise self.failure
            if self.is_whole:
                return b""
            waiter = self.waiter = self.loop.create_future()
            self.take = take
            try:
                await waiter
            finally:
                self.waiter = self.take = None

    def take_arrived(self) -> bytes:
        """Return what has come of the body and was not read."""
        data = b"".join(self.parts)  # a single one itself
        self.parts.clear()
        self.waiting_bytes = 0
        source = self.source
        if source is not None and source.is_paused:
            source.resume()
        return data

    async def read_all(self, limit_bytes: int, *, timeout_seconds: float | None = None) -> bytes:
        """Return the rest of the body; raises as ``Answer.read_all``."""
        body = self.take_whole(limit_bytes)
        if body is not None:
            return body
        try:
            if timeout_seconds is None:
                return await self._read_all(limit_bytes)
            async with asyncio.timeout(timeout_seconds):
                return await self._read_all(limit_bytes)
        except TimeoutError as failure:
            raise UpstreamTimeout(
                f"The provider {self.provider} did not answer in time.", detail=type(failure).__name__
            ) from failure
        finally:
            self.abort()

    def take_whole(self, limit_bytes: int) -> bytes | None:
        """Return the rest of the body where there is nothing to wait for, and then nothing to close."""
        if not self.is_whole or self.is_over or self.waiting_bytes > limit_bytes:
            return None
        self.is_over = True
        parts, self.parts = self.parts, []
        return b"".join(parts)

    async def _read_all(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        left = limit_bytes

        def keep(data: bytes) -> bool:
            """Take a piece as it comes: nobody has to be woken for each."""
            nonlocal left
            left -= len(data)
            parts.append(data)
            return left >= 0

        while data := await self.read(keep):
            if not keep(data):
                raise UpstreamDown(f"The provider {self.provider} answered with more than {limit_bytes} bytes.")
        return b"".join(parts)

    def abort(self) -> None:
        """Close the connection at once; a reader that waits is woken with UpstreamDown."""
        if not self.is_over:
            self.is_over = True
            self.parts.clear()
            source, self.source = self.source, None
            if source is not None:  # or there is nothing that anybody waits for
                source.close()
                self._wake()

    release = abort
    """A connection that is not through with its answer is of no use to another."""

    def _wake(self) -> None:
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
