"""What every request passes: its context, and the bound of its body. Pure ASGI classes, so that streams stay streams.

``RequestContext`` is the request edge: the one place where an unexpected exception becomes a 500.
"""

import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meterhouse.errors import BodyTooLarge, GatewayError, Malformed, UnsupportedMedia
from meterhouse.http.exchange import CLIENT_CLOSED_STATUS, SCOPE_NAME, UNKNOWN_ROUTE, Exchange, Observer
from meterhouse.http.guard import ClientGone
from meterhouse.http.respond import OPENAI_ENVELOPE, Envelope, send_error
from meterhouse.ids import new_request_id, public_request_id
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.traces import Tracing

_HEADERS = "meterhouse.headers"
OPENAI_VERSION = (b"openai-version", b"2020-10-01")


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = self._open(scope)
        is_open_stream = False

        async def reply(message: Message) -> None:
            nonlocal is_open_stream
            if message["type"] == "http.response.start":
                _complete_head(exchange, message, self._envelope.request_id_header)
                is_open_stream = _is_event_stream(message)
            else:
                is_open_stream = is_open_stream and message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, reply)
        except ClientGone:
            exchange.status = exchange.status or CLIENT_CLOSED_STATUS
        except GatewayError as error:
            exchange.error = error
            await self._fail(reply, exchange, error, is_open_stream=is_open_stream)
        except Exception as error:  # noqa: BLE001 - the request edge: anything unforeseen is a 500 and a page
            exchange.error = GatewayError("The server had an error. Try again; if it stays, tell the operator.")
            get_logger().error(Event.REQUEST_FAILED, request_id=public_request_id(exchange.request_id), exc_info=error)
            await self._fail(reply, exchange, exchange.error, is_open_stream=is_open_stream)
        finally:
            if exchange.route == UNKNOWN_ROUTE:
                exchange.route = route_of(scope)
            self._observer.finish(exchange)

    def _open(self, scope: Scope) -> Exchange:
        traceparent = header(scope, b"traceparent")
        client = scope.get("client")
        exchange = Exchange(
            request_id=new_request_id(),
            trace=self._tracing.new_trace(traceparent),
            method=scope["method"],
            address=client[0] if client else None,
            started_ns=time.monotonic_ns(),
            began_ns=time.time_ns(),
        )
        scope[SCOPE_NAME] = exchange
        return exchange

    async def _fail(self, send: Send, exchange: Exchange, error: GatewayError, *, is_open_stream: bool) -> None:
        """Say what went wrong: as the answer, or as the last event of a stream that has begun (design.md 3)."""
        request_id = public_request_id(exchange.request_id)
        if not exchange.status:
            await send_error(send, error, self._envelope, request_id)
        elif is_open_stream:
            await send({"type": "http.response.body", "body": self._envelope.event(error, request_id)})


class BodyLimit:
    """Counts the bytes of every body as they come; a Content-Length is not trusted."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request.

        Raises:
            BodyTooLarge: The body is, or says it is, longer than the limit.
            UnsupportedMedia: The body is compressed.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = header(scope, b"content-length")
        if declared is not None and declared.isdecimal() and int(declared) > self._limit_bytes:
            raise self._too_large()
        if (header(scope, b"content-encoding") or "identity").lower() != "identity":
            raise UnsupportedMedia("Compressed request bodies are not read. Send the body without Content-Encoding.")
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit_bytes:
                    raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The request body is larger than {self._limit_bytes} bytes. Send less, or ask the operator for more."
        )


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header's value, or None; the first one counts."""
    value = first_headers(scope).get(name)
    return None if value is None else str(value, "latin-1")


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the request's headers by name; of one that came more than once the first counts. Made once a request."""
    found: dict[bytes, bytes] | None = scope.get(_HEADERS)
    if found is None:
        found = scope[_HEADERS] = dict(reversed(scope["headers"]))
    return found


def credential_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return a request's credential as the value of an ``Authorization`` header: that one's, or ``x-api-key``'s.

    Raises:
        Malformed: It has both, and they are not the same: nobody is to guess who is meant.
    """
    authorization, key = headers.get(b"authorization"), headers.get(b"x-api-key")
    if key is None:
        return None if authorization is None else str(authorization, "latin-1")
    if authorization is not None and authorization.partition(b" ")[2].strip() != key.strip():
        raise Malformed(
            "Two different API keys were sent, in Authorization and in x-api-key. Send one of them.",
            code="ambiguous_credentials",
        )
    return f"Bearer {key.decode('latin-1')}"


def _complete_head(exchange: Exchange, message: Message, other_id_header: bytes | None) -> None:
    exchange.status = message["status"]
    elapsed_ms = (time.monotonic_ns() - exchange.started_ns) // 1_000_000
    request_id = public_request_id(exchange.request_id).encode()
    headers = [
        *message.get("headers", ()),
        (b"x-request-id", request_id),
        (b"openai-processing-ms", str(elapsed_ms).encode()),
        OPENAI_VERSION,
    ]
    if other_id_header is not None:
        headers.append((other_id_header, request_id))
    if exchange.principal is not None:
        headers.append((b"openai-organization", exchange.principal.organization_id.encode()))
    message["headers"] = headers


def _is_event_stream(head: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in head["headers"])


def route_of(scope: Scope) -> str:
    """Return the template of the address that was matched, for labels that must stay few."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else UNKNOWN_ROUTE
