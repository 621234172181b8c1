"""One answer on its way out: uvicorn's own cycle, which also takes head and body in one message.

A ``http.response.start`` may have ``body`` and ``more_body`` as a ``http.response.body`` has them. It then passes every
layer once, and leaves in one write, with a head that is checked as a whole instead of header by header. A server that
says nothing of it (``TAKES_BODY``) gets the two messages that it knows. Everything else is uvicorn's.
"""

from collections.abc import Coroutine
from typing import Any

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

TAKES_BODY = "meterhouse.takes_body"
"""The key in the scope of a server whose ``http.response.start`` may have a body."""
JOINED_BYTES = 65_536
"""A longer body is not copied to stand behind its head, but written after it."""
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
"""What may be in no name and no value of a header, of which CR and LF are between them."""


class Cycle(RequestResponseCycle):
    """A request and its answer."""

    def send(self, message: Message) -> Coroutine[Any, Any, None]:  # type: ignore[override]  # Starlette's type of it
        """Send a message of the application.

        Raises:
            RuntimeError: It is not what comes next, or has a header that none may be.
        """
        if "body" not in message or message["type"] != "http.response.start":
            return super().send(message)  # type: ignore[arg-type]
        return self._send_both(message)

    async def _send_both(self, message: Message) -> None:
        is_usual = not (self.response_started or self.access_log or self.scope["method"] == "HEAD")
        if is_usual and not (self.flow.write_paused or self.disconnected):
            self._write(message)
            return
        for part in split(message):
            await super().send(part)  # type: ignore[arg-type]

    def _write(self, message: Message) -> None:
        body, more_body = message["body"], message["more_body"]
        lines = [name + b": " + value for name, value in (*self.default_headers, *message["headers"])]
        if not self.keep_alive:
            lines.append(b"connection: close")
        lines.append(b"transfer-encoding: chunked" if more_body else b"content-length: %d" % len(body))
        head = STATUS_LINE[message["status"]] + b"\r\n".join(lines)
        if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(lines):
            raise RuntimeError("Invalid HTTP header.")
        self.response_started = True
        self.waiting_for_100_continue = False
        self.chunked_encoding = more_body
        if more_body:
            self.transport.write(b"%b\r\n\r\n%x\r\n%b\r\n" % (head, len(body), body) if body else head + b"\r\n\r\n")
            return
        if len(body) <= JOINED_BYTES:
            self.transport.write(head + b"\r\n\r\n" + body)
        else:
            self.transport.write(head + b"\r\n\r\n")
            self.transport.write(body)
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def splitting(send: Send) -> Send:
    """Return a ``send`` for what may have a body in its head, over one that knows ASGI only."""

    async def send_parts(message: Message) -> None:
        parts = split(message) if "body" in message and message["type"] == "http.response.start" else (message,)
        for part in parts:
            await send(part)

    return send_parts


def split(message: Message) -> tuple[Message, Message]:
    """Return a head that has a body as the two messages of ASGI."""
    body, more_body = message["body"], message["more_body"]
    headers = list(message["headers"])
    if not more_body:
        headers.append((b"content-length", b"%d" % len(body)))
    start = {"type": "http.response.start", "status": message["status"], "headers": headers}
    return start, {"type": "http.response.body", "body": body, "more_body": more_body}
