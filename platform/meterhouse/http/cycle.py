"""One request of a connection and its answer: what ASGI's ``receive`` and ``send`` do.

A ``http.response.start`` may have ``body`` and ``more_body`` as a ``http.response.body`` has them. It then passes every
layer once, and leaves in one write, with a head that is checked as a whole. Other servers, which do not say
``TAKES_BODY``, get the two messages that they know. And a stream may be put on the wire with no layer between
(``begin_stream``, ``put``). Not here: where requests come from (``connection``).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.server import ServerState

from meterhouse.http.flow import Flow
from meterhouse.http.leaving import CLIENT, Leaving
from meterhouse.http.signal import Signal

TAKES_BODY = "meterhouse.takes_body"
"""The key in the scope of a server whose ``http.response.start`` may have a body."""
JOINED_BYTES = 65_536
"""A longer body is not copied to stand behind its head, but written after it."""
_START, _BODY = "http.response.start", "http.response.body"
_OK = 200
_LAST_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n"
"""The last piece of a body in chunks, and their end."""
_WITHOUT_BODY = frozenset({204, 304})
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
"""What may be in no name and no value of a header, of which CR and LF are between them."""
_STATUS = {status: line.removesuffix(b"\r\n") for status, line in STATUS_LINE.items()}
_join_pair = b": ".join
_FAILED = b"Internal Server Error"
_FAILED_HEADERS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"%d" % len(_FAILED)),
    (b"connection", b"close"),
]


class Settling:
    """A connection that can do with less."""

    __slots__ = ()

    def settle_down(self) -> None:
        """Let go of what the next request needs, and the one that is being answered does not."""
        raise NotImplementedError


class Cycle(Leaving):
    """A request and its answer."""

    __slots__ = (
        "_expected_bytes",
        "_is_chunked",
        "_server_state",
        "_transport",
        "access_logger",
        "body",
        "has_news",
        "is_head",
        "keep_alive",
        "more_body",
        "news",
        "on_response",
        "response_complete",
        "response_started",
        "scope",
        "task",
        "waiting_for_100_continue",
    )

    def __init__(
        self,
        scope: Scope,
        transport: asyncio.Transport,
        flow: Flow,
        server_state: ServerState,
        on_response: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.flow = flow
        self._transport = transport
        self._server_state = server_state
        self.on_response = on_response
        self.access_logger: logging.Logger | None = None
        self._watcher = self._subject = None
        self.is_gone = False
        self.task: asyncio.Task[None] | None = None
        """Answers it; None before it began, and once it is over."""
        self.is_head = False
        self.keep_alive = True
        self.waiting_for_100_continue = False
        self.body: bytes | bytearray = b""
        """What came of the request's body and was not received yet."""
        self.more_body = True
        self.has_news = False
        """Whether there is something to be received."""
        self.news: Signal | None = None
        """Made by the first who waits."""
        self.response_started = self.response_complete = False
        self._is_chunked: bool | None = None
        self._expected_bytes = 0
        scope[CLIENT] = self

    def wake(self) -> None:
        """Let whoever waits receive what there is."""
        self.has_news = True
        news, self.news = self.news, None
        if news is not None:
            news.set()

    async def receive(self) -> Message:
        """Return what came of the body, once something has; or that the client is gone, or has its answer."""
        if self.waiting_for_100_continue and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not (self.is_gone or self.response_complete):
            if self.flow.read_paused:
                self.flow.resume_reading()
            if not self.has_news:
                if self.news is None:
                    self.news = Signal()
                await self.news.wait()
            self.has_news = False
        if self.is_gone or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def take_body(self, most_bytes: int) -> bytes | None:
        """Return the request's body where ``receive`` would give all of it at once; None: it is to be received."""
        if self.more_body or not self.has_news or len(self.body) > most_bytes or self.is_gone:
            return None
        if self.waiting_for_100_continue or self.response_complete or self.flow.read_paused:
            return None
        self.has_news = False
        body, self.body = bytes(self.body), b""
        return body

    async def send(self, message: Message) -> None:
        """Send a message of the application.

        Raises:
            RuntimeError: It is not what comes next, or has a header that none may be.
        """
        if self.flow.write_paused and not self.is_gone:
            await self.flow.drain()
        if self.is_gone:
            return
        if message["type"] != (_BODY if self.response_started else _START) or self.response_complete:
            raise RuntimeError(f"'{message['type']}' is not what comes next in an answer.")
        if self.response_started:
            self._go_on(message.get("body", b""), more_body=message.get("more_body", False))
        elif "body" not in message:
            self._begin(message["status"], message.get("headers", []))
        elif self.is_head:
            for part in split(message):
                await self.send(part)
        else:
            self.begin_with(message["status"], message["headers"], message["body"], more_body=message["more_body"])

    @property
    def is_open(self) -> bool:
        """Whether ``put`` would write."""
        return not (self.flow.write_paused or self.is_gone or not self._is_chunked or self.response_complete)

    def put(self, data: bytes, *, more_body: bool = True) -> bool:
        """Write more of an answer that goes on in chunks; says whether it could be: nobody has to wait, or is gone."""
        if self.flow.write_paused or self.is_gone or not self._is_chunked or self.response_complete:
            return False
        self._transport.write((b"%x\r\n%b\r\n" if more_body else _LAST_CHUNKS) % (len(data), data))
        if not more_body:
            self._complete()
        return True

    def settle_down(self) -> None:
        """Have the connection keep little while this answer, which takes its time, is on its way."""
        connection = self._transport.get_protocol()
        if isinstance(connection, Settling):
            connection.settle_down()

    def finish(self, task: "asyncio.Task[None]") -> None:
        """Take note that the request is over, and end an answer that has no end."""
        self._server_state.tasks.discard(task)
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            error = cancelled
        if error is not None or not (self.response_complete or self.is_gone):
            self._end_badly(error)
        self.let_go()

    def let_go(self) -> None:
        """Know neither itself nor its connection any more: what is left is gone without the garbage collector."""
        self.on_response = _do_nothing
        self.task = None
        self.scope.pop(CLIENT, None)

    def _end_badly(self, error: BaseException | None) -> None:
        logger = logging.getLogger("uvicorn.error")
        if error is not None:
            logger.error("Exception in ASGI application\n", exc_info=error)
        else:
            logger.error(
                "ASGI callable returned without %s response.", "completing" if self.response_started else "starting"
            )
        if self.response_started:
            self._transport.close()
            if not (self.response_complete or self.is_gone):
                self.on_response()
        elif not self.is_gone:
            self._begin(500, _FAILED_HEADERS)
            self._go_on(_FAILED, more_body=False)

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the lines of a head without what says where it ends."""
        lines = [_STATUS[status], *map(_join_pair, self._server_state.default_headers), *map(_join_pair, headers)]
        head = b"\r\n".join(lines)
        if len(head) - len(head.translate(None, _CONTROLS)) != 2 * (len(lines) - 1):
            raise RuntimeError("Invalid HTTP header.")
        self.response_started = True
        self.waiting_for_100_continue = False
        if self.access_logger is not None:
            self._log_access(self.access_logger, status)
        return head

    @property
    def is_ready(self) -> bool:
        """Whether an answer can begin now: it did not yet, nobody has to wait, and the client wants all of it."""
        return not (self.flow.write_paused or self.is_gone or self.response_started or self.is_head)

    def begin_stream(self, headers: list[tuple[bytes, bytes]], body: bytes, *, more_body: bool) -> None:
        """Write the head of a stream, which has chunks however short it is, and what comes first of it, or all of it.

        For a cycle that is not ``is_ready``: ``send``. ``body`` is not empty.

        Raises:
            RuntimeError: There is a header that none may be.
        """
        head = self._head(_OK, headers)
        self._is_chunked = True
        close = b"" if self.keep_alive else b"connection: close\r\n"
        chunk = (b"%x\r\n%b\r\n" if more_body else _LAST_CHUNKS) % (len(body), body)
        self._transport.write(b"%b\r\n%btransfer-encoding: chunked\r\n\r\n%b" % (head, close, chunk))
        if not more_body:
            self._complete()

    def begin_with(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, more_body: bool) -> None:
        """Write a head and what comes first of the body, or all of it; for one that is not ``is_ready``: ``send``.

        Raises:
            RuntimeError: There is a header that none may be.
        """
        head = self._head(status, headers)
        close = b"" if self.keep_alive else b"connection: close\r\n"
        if more_body:
            self._is_chunked = True
            first = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._transport.write(b"%b\r\n%btransfer-encoding: chunked\r\n\r\n%b" % (head, close, first))
            return
        if len(body) <= JOINED_BYTES:
            self._transport.write(b"%b\r\n%bcontent-length: %d\r\n\r\n%b" % (head, close, len(body), body))
        else:
            self._transport.write(b"%b\r\n%bcontent-length: %d\r\n\r\n" % (head, close, len(body)))
            self._transport.write(body)
        self._complete()

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Write a head alone; what it says of the body's length holds."""
        head = self._head(status, headers)
        says_close = False
        for name, value in headers:
            if name == b"content-length" and self._is_chunked is None:
                self._expected_bytes, self._is_chunked = int(value), False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self._expected_bytes, self._is_chunked = 0, True
            elif name == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
                self.keep_alive, says_close = False, True
        if not self.keep_alive and not says_close:
            head += b"\r\nconnection: close"
        if self._is_chunked is None and not self.is_head and status not in _WITHOUT_BODY:
            self._is_chunked = True
            head += b"\r\ntransfer-encoding: chunked"
        self._transport.write(head + b"\r\n\r\n")

    def _go_on(self, body: bytes, *, more_body: bool) -> None:
        if self.is_head:
            self._expected_bytes = 0
        elif self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._transport.write(chunk if more_body else chunk + b"0\r\n\r\n")
        else:
            self._expected_bytes -= len(body)
            if self._expected_bytes < 0:
                raise RuntimeError("Response content longer than Content-Length")
            self._transport.write(body)
        if more_body:
            return
        if self._expected_bytes:
            raise RuntimeError("Response content shorter than Content-Length")
        self._complete()

    def _complete(self) -> None:
        self.response_complete = self.has_news = True
        self.body = b""  # what nobody received, which an idle connection would keep
        if self.news is not None:
            self.wake()
        if not self.keep_alive:
            self._transport.close()
        self.on_response()

    def _log_access(self, logger: logging.Logger, status: int) -> None:
        scope: Any = self.scope
        where = get_client_addr(scope), scope["method"], get_path_with_query_string(scope), scope["http_version"]
        logger.info('%s - "%s %s HTTP/%s" %d', *where, status)


def cycle_of(scope: Scope) -> Cycle | None:
    """Return what answers a request, past the layers; None for another server.

    For what only goes on of an answer in chunks: no layer has to see it. Head and end are sent through all of them,
    but for who is given the edge's own ``send`` (``Exchange.reply``): there are none between then.
    """
    found: Cycle | None = scope.get(CLIENT)
    return found


def splitting(send: Send) -> Send:
    """Return a ``send`` for what may have a body in its head, over one that knows ASGI only."""

    async def send_parts(message: Message) -> None:
        parts = split(message) if "body" in message and message["type"] == _START else (message,)
        for part in parts:
            await send(part)

    return send_parts


def split(message: Message) -> tuple[Message, Message]:
    """Return a head that has a body as the two messages of ASGI."""
    body, more_body = message["body"], message["more_body"]
    headers = list(message["headers"])
    if not more_body:
        headers.append((b"content-length", b"%d" % len(body)))
    start = {"type": _START, "status": message["status"], "headers": headers}
    return start, {"type": _BODY, "body": body, "more_body": more_body}


def _do_nothing() -> None:
    """Hear that an answer is complete, whose request is over."""
