"""A client's connection, as uvicorn's server has it: requests are begun one after another, and bounded.

It is in the place of uvicorn's own protocol (decision 0041), and uses what that uses: httptools, the server's state and
settings. Everything that is sent ends here, so this is the one place where a stalled client is dropped, whoever waits
for it; to the request it looks like any client that left. Without it, a connection that is closed while its client
reads nothing would stay open for ever, because closing waits for what is still to be sent.

It also bounds what uvicorn leaves to a proxy: how long a request's head may take, also the first one, how long it may
be, how often it may name its host, and how many requests may wait for the one before them; and what is no HTTP is
answered in our envelope. Not here: how what came is read (``reading``), WebSockets, ``limit_concurrency``,
``reset_contextvars`` (nobody sets them).
"""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

from meterhouse.errors import GatewayError
from meterhouse.http.cycle import Cycle, Settling
from meterhouse.http.flow import Flow
from meterhouse.http.reading import NO_TARGET, ReadingConnection
from meterhouse.http.respond import render
from meterhouse.http.skeleton import has_more_than

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


class Connection(ReadingConnection, Settling):
    """One connection."""

    __slots__ = ("_held", "_idle_since", "_running")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._running: Cycle | None = None
        """The request that is being answered, or was last."""
        self._held = b""
        """What came behind a request that waits for the one before it."""
        self._idle_since = 0.0

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
        if self._is_idle() and self.loop.time() - self._idle_since >= idle_seconds:
            self.shutdown()

    def shutdown(self) -> None:
        """Close the connection when its request is over; what its client has not read then is not waited for."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False
        if self.transport.is_closing():
            self._drop_later()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn says it
        """Begin to be idle."""
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # its own protocols are what it knows
        self.transport = transport
        self.flow = Flow(transport)
        # The transport knows its addresses; of its socket they would be asked through an object of Python's for each.
        own, other = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._server = own[:2] if isinstance(own, tuple) else (own, None)
        self.client = other[:2] if isinstance(other, tuple) else None
        self._scheme = "https" if is_ssl(transport) else "http"
        self._idle_since = self.loop.time()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up, and tell the requests that are here that their client is gone."""
        self._server_state.connections.discard(self)
        self._wait_no_more()
        running, self._running = self._running, None
        open_cycles = [one for one in {running, self.cycle} if one is not None and not one.response_complete]
        for cycle in open_cycles:
            cycle.is_gone = True
            cycle.wake()
        for cycle in self.pipeline:  # they never began
            cycle.let_go()
        self.pipeline.clear()
        self._held = b""
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # it knows this connection
        if running is not None and not running.response_complete:
            running.tell()

    def data_received(self, data: bytes) -> None:
        """Read on, up to the first request that has to wait for another; the rest is held."""
        if self._missing_bytes:
            data = self._go_on_with_body(data)
            if not data:
                return
        if self._known is not None and self._begin_again(self._known, data):
            return
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

    def settle_down(self) -> None:
        """Keep no timer, parser or address while a long answer is on its way and nothing came behind its request."""
        cycle = self.cycle
        if self._is_in_head or cycle is None or cycle.more_body or not cycle.keep_alive:
            return  # a new one would not know what came before
        self.parser = self._known = None
        self._url, self._target = b"", NO_TARGET
        self._let_timer_go()

    def _start(self, cycle: Cycle) -> None:
        self._running = cycle
        answering: Coroutine[Any, Any, None] = self._config.loaded_app(cycle.scope, cycle.receive, cycle.send)
        task = cycle.task = self.loop.create_task(answering)
        self._server_state.tasks.add(task)
        task.add_done_callback(cycle.finish)

    def _on_response(self) -> None:
        """Be idle again, or go on with what waited for the answer that is complete now, or was broken off."""
        self._idle_since = self.loop.time()
        self._server_state.total_requests += 1
        if self.transport.is_closing():
            self._drop_later()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start(self.pipeline.pop())
        elif not self._is_waiting_for_head:
            self._deadline = self._idle_since + self._config.timeout_keep_alive
            if self._timer is None or self._timer_at > self._deadline:
                self._set_timer()
        if self._held and not self.pipeline:
            self.flow.is_full = False
            self.data_received(b"")
            self.flow.resume_reading()

    def _refuse(self, error: GatewayError) -> None:
        """Answer outside any request, and close."""
        self._is_in_head = False
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            status, headers, body = render(error)
            lines = [b"%b: %b" % pair for pair in [*headers, (b"connection", b"close")]]
            self.transport.write(b"\r\n".join([b"HTTP/1.1 %d" % status + b" Refused", *lines, b"", body]))
        self._close()


def bound_unread(listener: socket.socket) -> None:
    """Bound what the kernel takes of an answer that its client does not read, for all who connect from now on.

    A connection inherits it from its listener. A unix socket has a bound of its own.
    """
    if listener.family != socket.AF_UNIX:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)


def connection_type(stall_seconds: float, *, believes_proxy: bool) -> type[Connection]:
    """Return the class of connections whose clients are dropped after so long; see ``believes_proxy``."""
    own = {"__slots__": (), "stall_seconds": stall_seconds, "believes_proxy": believes_proxy}
    return type("Connection", (Connection,), own)
