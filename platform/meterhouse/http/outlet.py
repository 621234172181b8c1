"""The client's side of one answer: head, data, keep-alive comments, errors in the stream.

Once the client is gone, or the end is written, every write is a no-op. A comment is only written between writes of
the relay, so no event can be torn by one.
"""

import time
from collections.abc import Callable
from typing import Protocol

import msgspec
from starlette.types import Send

from meterhouse.errors import GatewayError
from meterhouse.http.cycle import Cycle
from meterhouse.http.exchange import Exchange
from meterhouse.http.respond import Headers
from meterhouse.http.sse import KEEP_ALIVE_FRAME

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


FailEvent = Callable[[GatewayError, str], bytes]
"""Gives the event that ends a stream with an error; the second argument is the public id of the request."""


class Dialect(Protocol):
    """What a client reads in place of chat completions: one object per answer, which may remember what it said."""

    @property
    def frames(self) -> Callable[[bytes], bytes]:
        """Turns whole events of chat completions into events of the dialect; empty: there is nothing to say.

        It gets every frame of the answer once and in order, up to and with ``data: [DONE]``, and comments, which stay.
        The usage is on a chunk before ``[DONE]`` where the translated request asked for ``include_usage``. What is
        made of the finish, the usage and ``[DONE]`` goes out after the barrier, so the dialect's end is covered by it.
        """
        ...

    @property
    def write_body(self) -> Callable[[bytes], bytes]:
        """Turns an answer that is not streamed, with its usage, into one of the dialect."""
        ...

    def fail(self, error: GatewayError, request_id: str) -> bytes:
        """Return the event that ends a stream with an error, its blank line included."""
        ...


class Outlet(msgspec.Struct, eq=False):
    """Writes an answer to one client. The headers are read at the moment that the head is sent.

    With a dialect, all that is written as chat completions is turned into it here, errors in the stream included.
    """

    _exchange: Exchange
    _send: Send
    _headers: Headers
    _fail_event: FailEvent
    _dialect: Dialect | None = None
    _is_over: bool = False
    is_started: bool = False
    is_gone: bool = False
    sending_since_ns: int | None = None
    wrote_at_ns: int = 0
    unsent: bytes = b""
    """Frames that the client is still owed: they go out after the settlement, with the end or with an error."""

    def speak(self, dialect: Dialect) -> None:
        """Write what comes from now on, which is chat completions, in a dialect."""
        self._dialect = dialect
        self._fail_event = dialect.fail

    def fail_with(self, fail_event: FailEvent) -> None:
        """Say an error in the stream with this event, for an answer that is passed through."""
        self._fail_event = fail_event

    @property
    def cycle(self) -> Cycle | None:
        """What writes more of a stream that has begun with nobody between; None where a dialect is."""
        return None if self._dialect is not None else self._exchange.cycle

    def pass_on(self, data: bytes, *, is_last: bool = False) -> bool:
        """Write more of a stream past the layers, and the head before the first of it; ``data`` is not empty.

        False: nothing was written, and ``write`` is to be awaited. So it is in a dialect, where a layer has to see the
        answer, and where the client has to be waited for, or is gone.
        """
        exchange = self._exchange
        cycle = exchange.cycle
        if cycle is None or self.is_gone or self._is_over or self._dialect is not None:
            return False
        is_edge = self._send is exchange.reply
        if self.is_started:
            if (is_last and not is_edge) or not cycle.put(data, more_body=not is_last):
                return False
        elif is_edge and cycle.is_ready:
            self.is_started = True
            cycle.begin_stream(exchange.begin_answer(200, self._take_head()), data, more_body=not is_last)
        else:
            return False
        self._is_over = is_last
        exchange.is_open_stream = not is_last
        self.wrote_at_ns = time.monotonic_ns()
        return True

    async def write(self, data: bytes, *, is_last: bool = False, is_plain: bool = False) -> None:
        """Send bytes, and the head before the first of them. ``is_plain``: they are the client's own already."""
        if self.is_gone or self._is_over:
            return
        self._is_over = is_last
        if self._dialect is not None and not is_plain:
            data = self._dialect.frames(data)
        self.wrote_at_ns = self.sending_since_ns = time.monotonic_ns()
        try:
            if not self.is_started:
                self.is_started = True
                start = {"type": "http.response.start", "status": 200, "headers": self._take_head(), "body": data}
                start["more_body"] = not is_last
                await self._send(start)
            elif data or is_last:
                await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        finally:
            self.sending_since_ns = None

    def owe(self, data: bytes) -> bool:
        """Keep what comes before the end, to be written with it; False where ``pay`` could not write it before."""
        if self._dialect is not None or self._send is not self._exchange.reply:
            return False
        self.unsent = data
        return True

    def pay(self) -> None:
        """Write what is owed: the end is not there yet."""
        if self.unsent and self.pass_on(self.unsent):
            self.unsent = b""

    async def end(self, data: bytes) -> None:
        """End a stream, behind what its client is still owed."""
        data, self.unsent = self.unsent + data, b""
        if not data or not self.pass_on(data, is_last=True):
            await self.write(data, is_last=True)

    def _take_head(self) -> Headers:
        """Return the headers of a stream, which nobody needs again for as long as it is open."""
        headers = self._headers + STREAM_HEADERS
        self._headers.clear()
        return headers

    def answer_at_once(self, headers: Headers, body: bytes, content_type: bytes) -> bool:
        """Send an answer that is not streamed past the layers, which would only pass it on.

        False: nothing was written, and ``write_whole`` is to be awaited. So it is where a layer has to see the answer,
        and where the client has to be waited for, or is gone.
        """
        exchange = self._exchange
        cycle = exchange.cycle
        if cycle is None or self._send is not exchange.reply or self.is_gone or not cycle.is_ready:
            return False
        if self._dialect is not None:
            body = self._dialect.write_body(body)
        head = exchange.begin_answer(200, [*headers, (b"content-type", content_type)])
        cycle.begin_with(200, head, body, more_body=False)
        return True

    async def write_whole(self, headers: Headers, body: bytes, content_type: bytes) -> None:
        """Send an answer that is not streamed."""
        if self.is_gone:
            return
        if self._dialect is not None:
            body = self._dialect.write_body(body)
        self.sending_since_ns = time.monotonic_ns()
        try:
            head = [*headers, (b"content-type", content_type)]
            start = {"type": "http.response.start", "status": 200, "headers": head, "body": body, "more_body": False}
            await self._send(start)
        finally:
            self.sending_since_ns = None

    async def keep_alive(self) -> None:
        """Send a comment, unless a write is under way."""
        if self.sending_since_ns is None:
            await self.write(KEEP_ALIVE_FRAME, is_plain=True)

    async def fail(self, error: GatewayError) -> None:
        """End a started stream with what was held back of it, one error event and no ``[DONE]`` (design.md 3)."""
        unsent = self._dialect.frames(self.unsent) if self._dialect is not None and self.unsent else self.unsent
        await self.write(unsent + self._fail_event(error, self._exchange.public_id), is_last=True, is_plain=True)
