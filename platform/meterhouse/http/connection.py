"""A client's connection, as uvicorn's server has it: requests are parsed, begun one after another, and bounded.

It is in the place of uvicorn's own protocol (decision 0041), and uses what that uses: httptools, the server's state and
settings. A request's head is gone through once. Everything that is sent ends here, so this is the one place where a
stalled client is dropped, whoever waits for it; to the request it looks like any client that left. Without it, a
connection that is closed while its client reads nothing would stay open for ever, because closing waits for what is
still to be sent.

It also bounds what uvicorn leaves to a proxy: how long a request's head may take, also the first one, how long it may
be, how often it may name its host, and how many requests may wait for the one before them; and what is no HTTP is
answered in our envelope. Not here: WebSockets, ``limit_concurrency``, ``reset_contextvars`` (nobody sets them).
"""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from meterhouse.errors import GatewayError, Malformed
from meterhouse.http.body import IS_WHOLE
from meterhouse.http.cycle import TAKES_BODY, Cycle, Settling
from meterhouse.http.flow import Flow
from meterhouse.http.head import HEADERS, MAX_HEADERS, check_headers, is_expecting, read_target
from meterhouse.http.patient import NEVER, PatientConnection
from meterhouse.http.respond import render
from meterhouse.http.skeleton import has_more_than

MAX_HEAD_BYTES = 65_536
"""More than nginx lets through (32 KB)."""
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
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_NO_TARGET = (b"", "", b"", b"")


class Connection(PatientConnection, Settling):
    """One connection."""

    __slots__ = (
        "_app_state",
        "_config",
        "_head_bytes",
        "_headers",
        "_held",
        "_idle_since",
        "_is_behind",
        "_is_draining",
        "_is_in_body",
        "_is_in_head",
        "_pairs",
        "_running",
        "_scheme",
        "_server",
        "_server_state",
        "_target",
        "_url",
        "client",
        "parser",
        "pipeline",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        super().__init__(_loop or asyncio.get_running_loop())
        self.parser: httptools.HttpRequestParser | None = None
        """Made by what comes first."""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        """Those of the head that comes, by name; of one that comes more than once the first."""
        self._pairs: list[tuple[bytes, bytes]] | None = None
        """All of them, once one has come twice."""
        self._target = _NO_TARGET
        """The address of the last request, and what it says: most ask for the same one again."""
        self._running: Cycle | None = None
        """The request that is being answered, or was last."""
        self.pipeline: list[Cycle] = []
        """Requests that wait for the one before them, the next one last: few, so that a deque's 760 bytes are too
        many."""
        self._held = b""
        """What came behind a request that waits for the one before it."""
        self._is_in_head = self._is_in_body = False
        self._head_bytes = 0
        self._is_behind = False
        """Whether there is another request before a head in what is parsed now."""
        self._is_draining = False
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
        self._server = get_local_addr(transport)
        self.client = get_remote_addr(transport)
        self._scheme = "https" if is_ssl(transport) else "http"
        found = transport.get_extra_info("socket")
        if found is not None and found.family != socket.AF_UNIX:  # that has a bound of its own
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
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
        try:
            (self.parser or self._make_parser()).feed_data(data)
        except httptools.HttpParserUpgrade:
            _logger().warning("Unsupported upgrade request.")
        except httptools.HttpParserError:
            _logger().warning("Invalid HTTP request received.")
            self._refuse(Malformed("Invalid HTTP request received. Check its form.", code="invalid_request"))
        if self._is_in_head:
            # Where in this a head began behind another request is not known; what comes next is all of the head.
            self._head_bytes += 0 if self._is_behind else len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(_too_large())
        if self._is_in_head or self.cycle is None or self.cycle.response_complete:
            # What came may be no request at all.
            self._expect_head()

    def _make_parser(self) -> httptools.HttpRequestParser:
        parser = self.parser = httptools.HttpRequestParser(self)
        # What comes behind a request that closes the connection is nobody's, and no error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def settle_down(self) -> None:
        """Keep no timer, parser or address while a long answer is on its way and nothing came behind its request."""
        cycle = self.cycle
        if self._is_in_head or cycle is None or cycle.more_body or not cycle.keep_alive:
            return  # a new one would not know what came before
        self.parser = None
        self._url, self._target = b"", _NO_TARGET
        self._let_timer_go()

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._is_in_head, self._is_in_body = True, False
        self._head_bytes = 0
        self._url = b""

    def on_url(self, url: bytes) -> None:
        """Take a piece of the address."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a body are nobody's."""
        if not self._is_in_head:
            return
        name = name.lower()
        if name not in self._headers and self._pairs is None:
            self._headers[name] = value
            return
        if self._pairs is None:
            self._pairs = list(self._headers.items())
        self._pairs.append((name, value))
        self._headers.setdefault(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request, or let it wait for the one before it.

        Raises:
            ValueError: Its head can be read in two ways, or has too many headers; the parser ends at it.
            HttpParserInvalidURLError: Its address is none; as above.
        """
        self._is_in_head, self._is_in_body = False, True
        self._deadline, self._is_waiting_for_head = NEVER, False
        found, parser, url = self._headers, self.parser, self._url
        assert parser is not None  # who calls
        # In most heads each has its own name: what ASGI calls the headers is a view then, and no list is made.
        headers = self._pairs or found.items()
        self._headers, self._pairs = {}, None  # the request has them for itself
        method, is_lasting = parser.get_method(), parser.should_keep_alive()
        # An older version lasts only where a header says so; the parser writes its answer anew for each that asks.
        says_how_long = b"connection" in found or b"proxy-connection" in found
        version = parser.get_http_version() if says_how_long or not is_lasting else "1.1"
        is_usual = version == "1.1" and len(found) == len(headers) <= MAX_HEADERS and b"host" in found
        if not is_usual or b"transfer-encoding" in found or b"expect" in found:
            is_usual = False
            check_headers(headers, version)
        if url != self._target[0]:
            self._target = read_target(url, self._config.root_path)
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._server,
            "client": self.client,
            "scheme": self._scheme,
            "method": "POST" if method == b"POST" else method.decode("ascii"),
            "root_path": self._config.root_path,
            "path": self._target[1],
            "raw_path": self._target[2],
            "query_string": self._target[3],
            "headers": headers,
            HEADERS: found,
            TAKES_BODY: True,
        }
        if self._app_state:
            scope["state"] = self._app_state.copy()
        before = self.cycle
        cycle = self.cycle = Cycle(scope, self.transport, self.flow, self._server_state, self._on_response)
        # What comes behind a head that asks for another protocol is not read as HTTP any more.
        if self._is_draining or version == "1.0" or not is_lasting or parser.should_upgrade():
            cycle.keep_alive = False
        if not is_usual:
            cycle.waiting_for_100_continue = is_expecting(headers)
        cycle.is_head = method == b"HEAD"
        if self._config.access_log and _access_logger().hasHandlers():
            cycle.access_logger = _access_logger()
        if before is None or before.response_complete:
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.insert(0, cycle)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body until it is received; an answer that is over has no need of it."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body
        elif isinstance(cycle.body, bytearray):
            cycle.body += body
        else:
            cycle.body = bytearray(cycle.body + body)
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.has_news = True
        if cycle.news is not None:
            cycle.wake()

    def on_message_complete(self) -> None:
        """Let whoever reads the body know that it is here whole."""
        self._is_in_body, self._is_behind = False, True
        cycle = self.cycle
        if cycle is None:
            return
        cycle.scope[IS_WHOLE] = True
        if not cycle.response_complete:
            cycle.more_body, cycle.has_news = False, True
            if cycle.news is not None:
                cycle.wake()

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


def _too_large() -> GatewayError:
    error = Malformed("The headers are larger than this server reads.", code="request_too_large")
    error.status = 431
    return error


def _logger() -> logging.Logger:
    return logging.getLogger("uvicorn.error")


def _access_logger() -> logging.Logger:
    return logging.getLogger("uvicorn.access")


def connection_type(stall_seconds: float) -> type[Connection]:
    """Return the class of connections whose clients are dropped after so long."""
    return type("Connection", (Connection,), {"__slots__": (), "stall_seconds": stall_seconds})
