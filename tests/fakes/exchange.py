"""One request and the means to answer it in every way that a socket allows, each step noted in the ground truth.

Invariant: an event is noted in the same step of the event loop in which its last byte is written, just before, so the
log is never behind what a client can have seen. A client that leaves cancels the script wherever it waits.
Not here: what to say (scripts), how it is spelled (wires).
"""

import asyncio
import email
import json
import socket
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from itertools import cycle
from typing import Any, NoReturn, Protocol

from fakes.plan import Plan
from fakes.truth import GroundTruth
from fakes.words import find_marker, prompt_tokens

ODD_SIZES = (1, 2, 3, 61, 5, 127, 7, 31, 11, 251)
REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}
BEFORE_RESET_SECONDS = 0.02

Note = tuple[str, dict[str, Any]]
"""An event for the ground truth and what is told of it."""


class Over(Exception):
    """The answer ended early, as the script wanted."""


@dataclass(frozen=True)
class Request:
    """An HTTP request, whole."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    raw_body: bytes
    connection: int

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the body, or the fields of its form; empty when it is neither."""
        content_type = self.headers.get("content-type", "")
        if content_type.startswith("multipart/"):
            return read_form(content_type, self.raw_body)
        try:
            body = json.loads(self.raw_body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def is_ollama(self) -> bool:
        """Whether it speaks Ollama's own wire."""
        return self.path.startswith("/api/")

    @property
    def is_anthropic(self) -> bool:
        """Whether it speaks Anthropic's wire."""
        return self.path.startswith("/v1/messages")

    @property
    def is_streamed(self) -> bool:
        """Whether a stream was asked for; Ollama's default is yes."""
        return bool(self.body.get("stream", self.is_ollama))

    def describe(self) -> dict[str, Any]:
        """What the ground truth keeps of it: names of headers only, but for the credential."""
        body = self.body
        limits = ("max_tokens", "max_completion_tokens")
        return {
            "method": self.method,
            "path": self.path,
            "connection": self.connection,
            "model": body.get("model", ""),
            "marker": find_marker(body),
            "prompt_tokens": prompt_tokens(body),
            "is_streamed": self.is_streamed,
            "fields": sorted(body),
            "limits": {name: body[name] for name in limits if name in body},
            "stream_options": body.get("stream_options"),
            "options": body.get("options"),
            "user": body.get("user"),
            "header_names": sorted(self.headers),
            "authorization": self.headers.get("authorization"),
            "body_bytes": len(self.raw_body),
        }


def read_form(content_type: str, body: bytes) -> dict[str, Any]:
    """Return the fields of a form as texts, a file's bytes as latin-1."""
    message = email.message_from_bytes(b"content-type: " + content_type.encode() + b"\r\n\r\n" + body)
    fields = {}
    for part in message.get_payload():
        assert isinstance(part, Message)
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        fields[str(name)] = content.decode("latin-1")
    return fields


class Gates(Protocol):
    """What holds answers back until a test lets them go."""

    async def hold(self, name: str, count: int) -> None:
        """Wait for the release."""
        ...


@dataclass(frozen=True)
class Socket:
    """A connection as far as an answer needs it."""

    transport: asyncio.Transport
    can_write: asyncio.Event


class Exchange:
    """A request with its answer; scripts call these methods in order."""

    def __init__(self, request: Request, number: int, link: Socket, truth: GroundTruth, gates: Gates) -> None:
        self.request = request
        self.number = number
        self.plan = Plan()
        self.output_tokens = 0
        self.keeps_alive = True
        self._link = link
        self._truth = truth
        self._gates = gates
        self._pending: list[tuple[bytes, tuple[Note, ...]]] = []
        self._has_first_byte = False
        self._framing = "chunked"
        self._sizes = cycle(ODD_SIZES)
        self._deflate: Any = None

    def note(self, event: str, **fields: Any) -> None:
        """Write an event of this attempt into the ground truth."""
        self._truth.note(self.number, event, **fields)

    async def hold(self, where: str) -> None:
        """Wait at a gate."""
        await self.flush()
        self.note("held", where=where)
        await self._gates.hold(self.plan.name, self.plan.count)
        self.note("released", where=where)

    async def pause(self, milliseconds: float) -> None:
        """Let time pass, with everything sent that is pending; 0 does nothing."""
        if milliseconds > 0:
            await self.flush()
            await asyncio.sleep(milliseconds / 1000)

    async def forever(self) -> NoReturn:
        """Say nothing more and keep the connection until the client leaves."""
        await self.flush()
        await asyncio.Event().wait()
        raise Over

    async def write(self, data: bytes, notes: Iterable[Note] = ()) -> None:
        """Put bytes on the socket as they are, in pieces if the plan says so; the notes go with the last piece."""
        position = 0
        while self.plan.cut:
            size = next(self._sizes) if self.plan.cut < 0 else self.plan.cut
            if position + size >= len(data):
                break
            await self._write(data[position : position + size], ())
            position += size
            await asyncio.sleep(0.0005)
        await self._write(data[position:], notes)

    async def _write(self, data: bytes, notes: Iterable[Note]) -> None:
        if self._link.transport.is_closing():
            # The connection's own callback notes that the client left and cancels this task.
            await asyncio.Event().wait()
        if data and not self._has_first_byte:
            self._has_first_byte = True
            self.note("first_byte")
        for name, fields in notes:
            self.note(name, **fields)
        self._link.transport.write(data)
        await self._link.can_write.wait()
        # An answer without pauses must not keep the loop from seeing that its client left.
        await asyncio.sleep(0)

    async def head(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
        """Send status line and headers; without a length the body is chunked or ends with the connection."""
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Fake')}", "date: Fri, 20 Nov 2026 00:00:00 GMT"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append(f"x-request-id: fake-{self.number}")
        if length is not None:
            self._framing = "length"
            lines.append(f"content-length: {length}")
        elif self.plan.framing == "close":
            self._framing = "close"
            self.keeps_alive = False
            lines.append("connection: close")
        else:
            self._framing = "chunked"
            lines.append("transfer-encoding: chunked")
        if self.plan.gzip and length is None:
            self._deflate = zlib.compressobj(wbits=31)
            lines.append("content-encoding: gzip")
        await self.write("\r\n".join(lines).encode() + b"\r\n\r\n", [("head", {"status": status})])

    def frame(self, data: bytes) -> bytes:
        """Turn a piece of the body into the bytes on the wire."""
        if self._deflate:
            data = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        if self._framing != "chunked" or not data:
            return data
        return f"{len(data):x}\r\n".encode() + data + b"\r\n"

    async def emit(self, event: bytes, *notes: Note) -> None:
        """Send an event and note it; several go out in one write when the plan batches."""
        self._pending.append((event, notes))
        if len(self._pending) >= self.plan.batch:
            await self.flush()

    async def token(self, event: bytes, kind: str, *notes: Note) -> None:
        """Send an event that carries one output token."""
        self.output_tokens += 1
        await self.emit(event, ("token", {"kind": kind, "count": self.output_tokens}), *notes)

    async def flush(self) -> None:
        """Send what is pending in one write."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        data = b"".join(event for event, _ in pending)
        data = data.replace(b"\n", b"\r\n") if self.plan.crlf else data
        await self.write(self.frame(data), [note for _, notes in pending for note in notes])

    async def half(self, event: bytes) -> None:
        """Send the first half of an event."""
        await self.flush()
        part = event[: len(event) // 2]
        await self.write(self.frame(part), [("half", {"sent_bytes": len(part)})])

    async def end(self) -> None:
        """End the body as HTTP wants it."""
        await self.flush()
        tail = self._deflate.flush() if self._deflate else b""
        self._deflate = None
        tail = self.frame(tail) + b"0\r\n\r\n" if self._framing == "chunked" else tail
        await self.write(tail, [("end", {})])

    async def close(self) -> NoReturn:
        """Close the connection in order (FIN), wherever the body is."""
        await self.flush()
        self.note("closed")
        self.keeps_alive = False
        raise Over

    async def reset(self) -> NoReturn:
        """Reset the connection (RST). What was written before gets a moment to arrive."""
        await self.flush()
        await asyncio.sleep(BEFORE_RESET_SECONDS)
        self.note("reset")
        link: socket.socket = self._link.transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._link.transport.abort()
        self.keeps_alive = False
        raise Over

    async def whole(
        self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None, *notes: Note
    ) -> None:
        """Answer with a body of known length, and end."""
        await self.head(status, {"content-type": content_type, **(headers or {})}, length=len(body))
        await self.write(body, [*notes, ("end", {})])
