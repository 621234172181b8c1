"""The client's side of one answer: head, data, keep-alive comments, errors in the stream.

Once the client is gone, or the end is written, every write is a no-op. A comment is only written between writes of
the relay, so no event can be torn by one.
"""

import time
from collections.abc import Callable
from typing import Protocol

from starlette.types import Message, Send

from meterhouse.errors import GatewayError
from meterhouse.http.respond import Headers, render_event, send_json
from meterhouse.http.sse import KEEP_ALIVE_FRAME

OK = 200
STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Dialect(Protocol):
    """What a client reads in place of OpenAI's wire."""

    def frames(self, data: bytes) -> bytes:
        """Turn whole events into events of the dialect; empty: there is nothing to say."""
        ...

    @property
    def write_body(self) -> Callable[[bytes], bytes]:
        """Turns an answer that is not streamed into one of the dialect."""
        ...


class Outlet:
    """Writes an answer to one client. ``head`` gives the headers at the moment that the head is sent.

    With a dialect, all that is written as OpenAI's is turned into it here, errors in the stream included.
    """

    __slots__ = (
        "_dialect",
        "_head",
        "_is_over",
        "_send",
        "is_gone",
        "is_started",
        "sending_since_ns",
        "unsent",
        "wrote_at_ns",
    )

    def __init__(self, send: Send, head: Callable[[], Headers], dialect: Dialect | None = None) -> None:
        self._send = send
        self._dialect = dialect
        self._head = head
        self._is_over = False
        self.is_started = False
        self.is_gone = False
        self.sending_since_ns: int | None = None
        self.wrote_at_ns = 0
        self.unsent = b""
        """Frames that a failed answer still owes its client: they go out with the error, after the settlement."""

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send bytes, and the head before the first of them."""
        if self.is_gone or self._is_over:
            return
        self._is_over = is_last
        if self._dialect is not None:
            data = self._dialect.frames(data)
        self.wrote_at_ns = self.sending_since_ns = time.monotonic_ns()
        try:
            await self._start()
            if data or is_last:
                await self._send(_body(data, is_last=is_last))
        finally:
            self.sending_since_ns = None

    async def write_whole(self, headers: Headers, body: bytes) -> None:
        """Send an answer that is not streamed."""
        if self.is_gone:
            return
        if self._dialect is not None:
            body = self._dialect.write_body(body)
        self.sending_since_ns = time.monotonic_ns()
        try:
            await send_json(self._send, OK, headers, body)
        finally:
            self.sending_since_ns = None

    async def keep_alive(self) -> None:
        """Send a comment, unless a write is under way."""
        if self.sending_since_ns is None:
            await self.write(KEEP_ALIVE_FRAME)

    async def fail(self, error: GatewayError) -> None:
        """End a started stream with what was held back of it, one error event and no ``[DONE]`` (design.md 3)."""
        await self.write(self.unsent + render_event(error), is_last=True)

    async def _start(self) -> None:
        if not self.is_started:
            self.is_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._head() + STREAM_HEADERS})


def _body(data: bytes, *, is_last: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not is_last}
