"""What every request passes: its context, and the bound of its body. Pure ASGI classes, so that streams stay streams.

``RequestContext`` is the request edge: the one place where an unexpected exception becomes a 500.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meterhouse.errors import (
    BodyTooLarge,
    BodyTooSlow,
    GatewayError,
    Malformed,
    Overloaded,
    UnsupportedMedia,
)
from meterhouse.http.cycle import TAKES_BODY, cycle_of, splitting
from meterhouse.http.exchange import CLIENT_CLOSED_STATUS, SCOPE_NAME, UNKNOWN_ROUTE, Exchange, Observer
from meterhouse.http.guard import ClientGone
from meterhouse.http.head import HEADERS
from meterhouse.http.leaving import CLIENT
from meterhouse.http.respond import OPENAI_ENVELOPE, Envelope, send_error
from meterhouse.ids import REQUEST_PREFIX, IdSource
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.traces import Tracing

_KEPT_OF_SCOPE = ("type", "headers", CLIENT, SCOPE_NAME)
FREE_BYTES = 65_536
"""A body that is no longer is not counted: as many of them as there may be requests are no burden."""


class RequestContext:
    """Gives each request its id and trace, its headers, its error rendering and its one line in the log.

    Errors have the shape of the wire that is behind it, also those from before the wire saw the request.
    """

    def __init__(
        self, app: ASGIApp, observer: Observer, tracing: Tracing, envelope: Envelope = OPENAI_ENVELOPE
    ) -> None:
        self._app = app
        self._observer = observer
        self._tracing = tracing
        self._envelope = envelope
        self._ids = IdSource()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        traceparent = (scope.get(HEADERS) or first_headers(scope)).get(b"traceparent")
        client, began_ns = scope.get("client"), time.time_ns()
        request_id = self._ids.new_request_id(began_ns)
        cycle = cycle_of(scope)
        scope[SCOPE_NAME] = exchange = Exchange(
            request_id,
            REQUEST_PREFIX + request_id,
            self._tracing.new_trace(None if traceparent is None else str(traceparent, "latin-1")),
            scope["method"],
            client[0] if client else None,
            time.monotonic_ns(),
            began_ns,
            other_id_header=self._envelope.request_id_header,
            cycle=cycle,
        )
        onward = send if TAKES_BODY in scope else splitting(send)

        def reply(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = exchange.begin_answer(message["status"], message.get("headers", ()))
                exchange.is_open_stream = message.get("more_body", True) and _is_event_stream(message)
            elif exchange.is_open_stream:
                exchange.is_open_stream = message.get("more_body", False)
            return onward(message)

        if cycle is not None and send == cycle.send:
            exchange.reply = reply
        try:
            await self._app(scope, receive, reply)
        except ClientGone:
            exchange.status = exchange.status or CLIENT_CLOSED_STATUS
        except GatewayError as error:
            exchange.error = error
            await self._fail(reply, exchange, error)
        except Exception as error:  # noqa: BLE001 - the request edge: anything unforeseen is a 500 and a page
            exchange.error = GatewayError("The server had an error. Try again; if it stays, tell the operator.")
            get_logger().error(Event.REQUEST_FAILED, request_id=exchange.public_id, exc_info=error)
            await self._fail(reply, exchange, exchange.error)
        finally:
            if exchange.route == UNKNOWN_ROUTE:
                exchange.route = route_of(scope)
            self._observer.finish(exchange)
            exchange.let_go()

    async def _fail(self, send: Send, exchange: Exchange, error: GatewayError) -> None:
        """Say what went wrong: as the answer, or as the last event of a stream that has begun (design.md 3)."""
        if not exchange.status:
            await send_error(send, error, self._envelope, exchange.public_id)
        elif exchange.is_open_stream:
            await send({"type": "http.response.body", "body": self._envelope.event(error, exchange.public_id)})


class BodyMemory:
    """How many bytes of long bodies are in this process now, and how many may be."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def grow(self, count: int) -> None:
        """Count bytes that came.

        Raises:
            Overloaded: There is no room for them.
        """
        if self.held_bytes + count > self._limit_bytes:
            detail = f"{self.held_bytes} bytes of bodies are held"
            raise Overloaded(
                "This server reads as many long requests as it can just now. Try again in a moment.", detail=detail
            )
        self.held_bytes += count

    def shrink(self, count: int) -> None:
        """Count bytes as gone."""
        self.held_bytes -= count


class BodyLimit:
    """Counts the bytes of every body as they come; a Content-Length is not trusted.

    A body that says that it is short is none of the memory's business: the server reads no more of it than it says.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit_bytes: int,
        memory: BodyMemory,
        seconds: float | None = None,
        long_paths: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Take the bounds.

        Args:
            app: what is behind.
            limit_bytes: of one body.
            memory: of all bodies together.
            seconds: for how long a body may come; None: whoever reads it sees to that.
            long_paths: where another limit holds, in bytes.
        """
        self._app = app
        self._limit_bytes = limit_bytes
        self._long_paths = long_paths
        self._memory = memory
        self._seconds = seconds

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle a request.

        Raises:
            BodyTooLarge: The body is, or says it is, longer than the limit.
            BodyTooSlow: It did not come in time.
            Overloaded: There is no memory for it.
            UnsupportedMedia: The body is compressed.
        """
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        headers = scope.get(HEADERS) or first_headers(scope)
        declared = headers.get(b"content-length", b"")
        declared_bytes = int(declared) if declared.isdigit() else None
        limit_bytes = self._long_paths.get(scope["path"], self._limit_bytes) if self._long_paths else self._limit_bytes
        if declared_bytes is not None and declared_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        if b"content-encoding" in headers and (headers[b"content-encoding"] or b"identity").lower() != b"identity":
            raise UnsupportedMedia("Compressed request bodies are not read. Send the body without Content-Encoding.")
        if declared_bytes is not None and declared_bytes <= FREE_BYTES and self._seconds is None:
            return self._app(scope, receive, send)
        return self._pass_long(scope, _Intake(self._memory, receive, send, limit_bytes, self._seconds), limit_bytes)

    async def _pass_long(self, scope: Scope, intake: "_Intake", limit_bytes: int) -> None:
        try:
            await self._app(scope, intake.receive, intake.send)
        except BodyTooLarge:
            raise _too_large(limit_bytes) from None
        finally:
            intake.let_go()


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request body is larger than {limit_bytes} bytes. Send less, or ask the operator for more."
    )


class _Intake:
    """One body that may be long: counted until the answer begins, when nobody needs it any more."""

    def __init__(
        self, memory: BodyMemory, receive: Receive, send: Send, limit_bytes: int, seconds: float | None
    ) -> None:
        self._memory = memory
        self._receive = receive
        self._send = send
        self._limit_bytes = limit_bytes
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._received = self._held = 0
        self._is_whole = False

    async def receive(self) -> Message:
        message = await self._next()
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self._received += count
            self._is_whole = not message.get("more_body", False)
            if self._received > self._limit_bytes:
                raise BodyTooLarge("")
            self._memory.grow(count)
            self._held += count
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.let_go()
        await self._send(message)

    def let_go(self) -> None:
        held, self._held = self._held, 0
        self._memory.shrink(held)

    async def _next(self) -> Message:
        if self._deadline is None or self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            raise BodyTooSlow("The request body did not arrive in time. Send it again.") from None


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header's value, or None; the first one counts."""
    value = (scope.get(HEADERS) or first_headers(scope)).get(name)
    return None if value is None else str(value, "latin-1")


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the request's headers by name; of one that came more than once the first counts. Made once a request."""
    found: dict[bytes, bytes] | None = scope.get(HEADERS)
    if found is None:
        found = scope[HEADERS] = dict(reversed(scope["headers"]))
    return found


def let_go_headers(scope: Scope) -> None:
    """Forget a request's headers once its answer has begun: they can be some kilobytes of each that is open.

    And with them all that says where it went: a dictionary does not shrink but by being made anew.
    """
    scope["headers"] = []
    kept = {name: scope[name] for name in _KEPT_OF_SCOPE if name in scope}
    scope.clear()
    scope.update(kept)


def credential_of(scope: Scope) -> str | None:
    """Return a request's credential as the value of an ``Authorization`` header: that one's, or ``x-api-key``'s.

    Raises:
        Malformed: It has both, and they are not the same: nobody is to guess who is meant.
    """
    headers: dict[bytes, bytes] = scope.get(HEADERS) or first_headers(scope)
    authorization, key = headers.get(b"authorization"), headers.get(b"x-api-key")
    if key is None:
        return None if authorization is None else str(authorization, "latin-1")
    if authorization is not None and authorization.partition(b" ")[2].strip() != key.strip():
        raise Malformed(
            "Two different API keys were sent, in Authorization and in x-api-key. Send one of them.",
            code="ambiguous_credentials",
        )
    return f"Bearer {key.decode('latin-1')}"


def _is_event_stream(head: Message) -> bool:
    for name, value in head["headers"]:
        if name == b"content-type":
            return bool(value.startswith(b"text/event-stream"))
    return False


def route_of(scope: Scope) -> str:
    """Return the template of the address that was matched, for labels that must stay few."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else UNKNOWN_ROUTE
