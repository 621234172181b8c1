"""A client's connection: uvicorn's own, which also drops a client that does not read, and can be drained.

Everything that is sent ends here, so this is the one place where a stalled client is dropped, whoever waits for it;
to the request it looks like any client that left. Without it, a connection that is closed while its client reads
nothing would stay open for ever, because closing waits for what is still to be sent.

It also bounds what uvicorn leaves to a proxy: how long a request's head may take, also the first one, how long it may
be, how often it may name its host, and how many requests may wait for the one before them; and what is no HTTP is
answered in our envelope.
"""

import asyncio
import socket
from typing import Any, ClassVar

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from meterhouse.errors import GatewayError, Malformed
from meterhouse.http.body import IS_WHOLE
from meterhouse.http.cycle import TAKES_BODY, Cycle
from meterhouse.http.leaving import put_leaving, tell_leaving
from meterhouse.http.respond import render
from meterhouse.http.signal import Signal
from meterhouse.http.skeleton import has_more_than

MAX_HEAD_BYTES = 65_536
"""More than nginx lets through (32 KB)."""
MAX_HEADERS = 256
KERNEL_BYTES = 262_144
"""What the kernel may take of an answer that its client does not read. Left to itself it takes some megabytes, and a
few hundred such clients use up what all connections of the machine share."""
PIECE_BYTES = 4_096
"""So much of what came is parsed before it is seen whether a request has to wait for the one before it. A piece can
hold some 150 requests, and then takes a millisecond; a read of the kernel's, 64 times as much, would take 100."""
FEW_LINES = 64
"""What came in so few lines is parsed at once: it holds twenty requests at most. So does a long body, in one line."""
MAX_HELD_BYTES = 65_536
"""What may wait behind a request that is being answered before nothing more is read; one read of it comes on top."""
_ONCE = frozenset({b"host", b"authorization", b"content-length", b"transfer-encoding", b"content-encoding"})
"""Who reads the first and who reads the last of several must not disagree about these."""


class Flow(FlowControl):
    """uvicorn's, which can be kept from reading on, whoever asks for more."""

    is_full = False

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_writable_event = Signal(is_set=True)  # type: ignore[assignment]  # as far as uvicorn uses it

    def resume_reading(self) -> None:
        """Read on, unless there is no room, or nothing to be read from."""
        if not self.is_full and not self._transport.is_closing():
            super().resume_reading()


class Pipeline(list[tuple[RequestResponseCycle, ASGI3Application]]):
    """Requests that wait for the one before them, the next one last: few, so that a deque's 760 bytes are too many."""

    def appendleft(self, waiting: tuple[RequestResponseCycle, ASGI3Application]) -> None:
        """Let another one wait."""
        self.insert(0, waiting)


class Connection(HttpToolsProtocol):
    """One connection."""

    flow: Flow

    stall_seconds: ClassVar[float] = 30.0
    """How long a client may leave unread what waits for it, once that is more than 64 KB."""

    head_seconds: ClassVar[float] = 10.0
    """How long the head of a request may take, from when the connection was made or the head began."""

    # Python keeps up to 30 attributes in place. Beside uvicorn's these would be too many, and then all of them are in a
    # dictionary, which takes 1,200 bytes more.
    __slots__ = (
        "_drop",
        "_head",
        "_head_bytes",
        "_held",
        "_idle_since",
        "_is_behind",
        "_is_draining",
        "_is_in_body",
        "_is_in_head",
        "_running",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.pipeline = Pipeline()  # type: ignore[assignment]  # as far as uvicorn uses it
        self._drop: asyncio.TimerHandle | None = None
        self._head: asyncio.TimerHandle | None = None
        self._is_in_head = self._is_in_body = False
        self._head_bytes = 0
        self._is_behind = False
        """Whether there is another request before a head in what is parsed now."""
        self._is_draining = False
        self._idle_since = 0.0
        self._running: RequestResponseCycle | None = None
        """The request that is being answered, or was last."""
        self._held = b""
        """What came behind a request that waits for the one before it."""

    def drain(self) -> None:
        """Say with the next head that is sent that the connection is closed after its answer.

        An answer whose head is on its way has not said so: the connection then stays for one more, because a proxy may
        send a request the moment that answer has ended, and would not send it again.
        """
        self._is_draining = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def release(self, idle_seconds: float) -> None:
        """Close the connection if it has been idle for so long."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.loop.time() - self._idle_since >= idle_seconds:
            self.shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn says it
        """Begin to be idle."""
        self._idle_since = self.loop.time()
        found = transport.get_extra_info("socket")
        if found is not None and found.family != socket.AF_UNIX:  # that has a bound of its own
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read on, up to the first request that has to wait for another; the rest is held."""
        if self._held:
            data = self._held + data
        elif len(data) <= PIECE_BYTES and not self.pipeline:
            self._parse(data)
            return
        begin, step = 0, PIECE_BYTES if has_more_than(data, b"\n", FEW_LINES) else len(data)
        while begin < len(data) and not self.pipeline and not self._is_closing_soon():
            self._parse(data[begin : begin + step])
            begin += step
        self._held = data[begin:] if self.pipeline else b""
        if len(self._held) > MAX_HELD_BYTES:
            self.flow.is_full = True
            self.flow.pause_reading()

    def _is_closing_soon(self) -> bool:
        """Whether what comes next is nobody's: the connection is closed, or will be after the last whole request."""
        if self.transport.is_closing():
            return True
        return self.cycle is not None and not self.cycle.keep_alive and not self.cycle.more_body

    def _parse(self, data: bytes) -> None:
        """Read on, and see to it that a head ends."""
        self._is_behind = self._is_in_body
        super().data_received(data)
        if self._is_in_head:
            # Where in this a head began behind another request is not known; what comes next is all of the head.
            self._head_bytes += 0 if self._is_behind else len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(_too_large())
        if self._is_in_head or self.cycle is None or self.cycle.response_complete:
            # uvicorn no longer waits for a next request, although what came may be none.
            self._expect_head()

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._is_in_head = True
        self._is_in_body = False
        self._head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a body are nobody's."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        """Let whoever reads the body know that it is here whole."""
        super().on_message_complete()
        self._is_in_body = False
        self._is_behind = True
        self.scope[IS_WHOLE] = True  # type: ignore[literal-required]  # a key of ours in ASGI's own scope

    def on_response_complete(self) -> None:
        """Be idle again, or go on with what was held."""
        self._idle_since = self.loop.time()
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if self._held and not self.pipeline and not self.transport.is_closing():
            self.flow.is_full = False
            self.data_received(b"")
            self.flow.resume_reading()

    def on_headers_complete(self) -> None:
        """Begin a request.

        Raises:
            ValueError: Its head can be read in two ways, or has too many headers; uvicorn answers 400 then.
        """
        before = self.cycle
        self._is_in_head = False
        self._is_in_body = True
        if self._head is not None:
            self._head.cancel()
            self._head = None
        _check_headers(self.headers, self.parser.get_http_version())
        self.scope[TAKES_BODY] = True  # type: ignore[literal-required]  # a key of ours in ASGI's own scope
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.__class__ = Cycle  # uvicorn does not ask which class it is to make; the request begins later
        if not self.pipeline:
            self._running = self.cycle
        # What comes behind a head that asks for another protocol is not read as HTTP any more.
        if (self._is_draining or self.parser.should_upgrade()) and self.cycle is not None:
            self.cycle.keep_alive = False
        if self.cycle is not before:
            self.cycle.message_event = Signal()  # type: ignore[assignment]  # as far as uvicorn uses it
            put_leaving(self.cycle.scope, self.flow)  # type: ignore[arg-type]  # ASGI's own scope

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._drop_later()

    def resume_writing(self) -> None:
        """Forget that the client did not read."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._keep()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; what its client has not read yet is not waited for without an end."""
        super().timeout_keep_alive_handler()
        self._drop_later()

    def shutdown(self) -> None:
        """Close the connection when its request is over, as above."""
        super().shutdown()
        if self.transport.is_closing():
            self._drop_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        self._keep()
        if self._head is not None:
            self._head.cancel()
            self._head = None
        running, self._running = self._running, None
        if running is not None and running is not self.cycle and not running.response_complete:
            # uvicorn tells the newest request only, which waits for this one.
            running.disconnected = True
            running.message_event.set()
        self.pipeline.clear()
        self._held = b""
        super().connection_lost(exc)
        if running is not None and not running.response_complete:
            tell_leaving(running.scope)  # type: ignore[arg-type]  # ASGI's own scope

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read."""
        self._refuse(Malformed(f"{msg} Check its form.", code="invalid_request"))

    def _refuse(self, error: GatewayError) -> None:
        """Answer outside any request, and close."""
        self._is_in_head = False
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            status, headers, body = render(error)
            lines = [b"%b: %b" % pair for pair in [*headers, (b"connection", b"close")]]
            self.transport.write(b"\r\n".join([b"HTTP/1.1 %d" % status + b" Refused", *lines, b"", body]))
        self.transport.close()
        self._drop_later()

    def _expect_head(self) -> None:
        if self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.head_seconds, self._end_waiting)

    def _end_waiting(self) -> None:
        """Close a connection on which no head has come in time."""
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
            self._drop_later()

    def _drop_later(self) -> None:
        if self._drop is None:
            self._drop = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def _keep(self) -> None:
        if self._drop is not None:
            self._drop.cancel()
            self._drop = None


def _check_headers(headers: list[tuple[bytes, bytes]], version: str) -> None:
    if len(headers) > MAX_HEADERS:
        raise ValueError("too many headers")
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _ONCE:
            if name in seen:
                raise ValueError("a header is there twice")
            seen.add(name)
            if name == b"transfer-encoding" and (value.lower() != b"chunked" or version != "1.1"):
                raise ValueError("a transfer coding that is not read")
    if version == "1.1" and b"host" not in seen:
        raise ValueError("no host is named")


def _too_large() -> GatewayError:
    error = Malformed("The headers are larger than this server reads.", code="request_too_large")
    error.status = 431
    return error


def connection_type(stall_seconds: float) -> type[Connection]:
    """Return the class of connections whose clients are dropped after so long."""
    return type("Connection", (Connection,), {"stall_seconds": stall_seconds})
