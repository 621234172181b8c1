"""What comes from a client becomes requests: by the parser or, where a head is said again, without it.

A head is gone through once. Invariant: where a message ends is decided by the parser, or by the length that a known
head says; whenever a head is looked for without the parser, that has read whole messages only. Not here: which request
waits for which, and what is sent (``connection``).
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Any, ClassVar

import httptools
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from meterhouse.errors import GatewayError, Malformed
from meterhouse.http.again import KnownHead
from meterhouse.http.body import IS_WHOLE
from meterhouse.http.cycle import TAKES_BODY, Cycle
from meterhouse.http.head import HEADERS, MAX_HEADERS, check_headers, is_expecting, note_client, read_target
from meterhouse.http.patient import NEVER, PatientConnection

MAX_HEAD_BYTES = 65_536
"""More than nginx lets through (32 KB)."""
LEARNING = 4
"""A head that is said again so many times has paid for learning another."""
MOST_CREDIT = 2 * LEARNING
_ASGI = {"version": "3.0", "spec_version": "2.3"}
NO_TARGET = (b"", "", b"", b"")


class ReadingConnection(PatientConnection):
    """A connection as far as it is read."""

    believes_proxy: ClassVar[bool] = False
    """Whether nobody but a proxy can connect, so that what it says of its client's address holds."""

    __slots__ = (
        "_app_state",
        "_config",
        "_credit",
        "_head_bytes",
        "_headers",
        "_is_behind",
        "_is_draining",
        "_is_in_body",
        "_is_in_head",
        "_known",
        "_missing_bytes",
        "_pairs",
        "_scheme",
        "_server",
        "_server_state",
        "_target",
        "_url",
        "client",
        "parser",
        "pipeline",
    )

    _server: tuple[str, int | None] | None
    _scheme: str
    client: tuple[str, int] | None

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
        self._target = NO_TARGET
        """The address of the last request, and what it says: most ask for the same one again."""
        self._known: KnownHead | None = None
        """The head of an earlier request."""
        self._credit = MOST_CREDIT
        """What is left for learning: two heads, and more once heads are said again."""
        self._missing_bytes = 0
        """What is to come of the body behind a known head."""
        self.pipeline: list[Cycle] = []
        """Requests that wait for the one before them, the next one last: few, so that a deque's 760 bytes are too
        many."""
        self._is_in_head = self._is_in_body = False
        self._head_bytes = 0
        self._is_behind = False
        """Whether there is another request before a head in what is parsed now."""
        self._is_draining = False

    def _start(self, cycle: Cycle) -> None:
        """Begin to answer a request."""
        raise NotImplementedError

    def _refuse(self, error: GatewayError) -> None:
        """Answer outside any request, and close."""
        raise NotImplementedError

    def _on_response(self) -> None:
        """Go on once an answer is complete, or was broken off."""
        raise NotImplementedError

    def _parse(self, data: bytes) -> None:
        """Read on, and see to it that a head ends."""
        before, self._is_behind = self.cycle, self._is_in_body
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
        elif self._credit >= LEARNING and before is not None and self.cycle is not before:
            self._learn(data)

    def _make_parser(self) -> httptools.HttpRequestParser:
        parser = self.parser = httptools.HttpRequestParser(self)
        # What comes behind a request that closes the connection is nobody's, and no error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _learn(self, data: bytes) -> None:
        """Know the head again that begins what came: a client that asks a second time will ask a third."""
        cycle = self.cycle
        if cycle is not None and cycle.keep_alive:
            self._credit -= LEARNING
            self._known = KnownHead.learn(data, self._target, cycle.scope)

    def _begin_again(self, known: KnownHead, data: bytes) -> bool:
        """Begin the request that came, if nothing else is on its way and its head is known."""
        before = self.cycle
        if before is None or not (before.response_complete and before.keep_alive):
            return False
        if self._is_in_head or self._is_in_body or (found := known.read(data)) is None:
            return False
        headers, body, self._missing_bytes = found
        self._target = known.target
        if self._credit < MOST_CREDIT:
            self._credit += 1
        cycle = self._make_cycle("POST", "1.1", headers.items(), headers)
        if self._missing_bytes:
            self.on_body(body)
        else:
            cycle.scope[IS_WHOLE] = True
            cycle.body, cycle.more_body, cycle.has_news = body, False, True
        self._start(cycle)
        return True

    def _go_on_with_body(self, data: bytes) -> bytes:
        """Take what comes of the body behind a known head; returns what is behind it."""
        body, rest = data[: self._missing_bytes], data[self._missing_bytes :]
        self._missing_bytes -= len(body)
        self.on_body(body)
        if not self._missing_bytes:
            self.on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._expect_head()
        return rest

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
        before = self.cycle
        cycle = self._make_cycle("POST" if method == b"POST" else method.decode("ascii"), version, headers, found)
        # What comes behind a head that asks for another protocol is not read as HTTP any more.
        if version == "1.0" or not is_lasting or parser.should_upgrade():
            cycle.keep_alive = False
        if not is_usual:
            cycle.waiting_for_100_continue = is_expecting(headers)
        cycle.is_head = method == b"HEAD"
        if before is None or before.response_complete:
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.insert(0, cycle)

    def _make_cycle(
        self, method: str, version: str, headers: Collection[tuple[bytes, bytes]], found: dict[bytes, bytes]
    ) -> Cycle:
        """Return the request whose head has come, to the address of ``_target``."""
        self._deadline, self._is_waiting_for_head = NEVER, False
        _, path, raw_path, query = self._target
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._server,
            "client": self.client,
            "scheme": self._scheme,
            "method": method,
            "root_path": self._config.root_path,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            HEADERS: found,
            TAKES_BODY: True,
        }
        if self.believes_proxy:
            note_client(scope, found)
        if self._app_state:
            scope["state"] = self._app_state.copy()
        cycle = self.cycle = Cycle(scope, self.transport, self.flow, self._server_state, self._on_response)
        if self._is_draining:
            cycle.keep_alive = False
        if self._config.access_log and _access_logger().hasHandlers():
            cycle.access_logger = _access_logger()
        return cycle

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


def _too_large() -> GatewayError:
    error = Malformed("The headers are larger than this server reads.", code="request_too_large")
    error.status = 431
    return error


def _logger() -> logging.Logger:
    return logging.getLogger("uvicorn.error")


def _access_logger() -> logging.Logger:
    return logging.getLogger("uvicorn.access")
