"""Connections of the deploy test's clients: HTTP/1.1 one request after the other, HTTP/2 many at once, over TLS.

A proxy that is reloaded closes idle connections, and says GOAWAY on others. A request that it cannot have taken is sent
again, as RFC 9110 9.2.2 and RFC 9113 6.8 allow and as every HTTP client does: nothing of an answer had come on a
connection that had been idle, or the stream's number is above the one that GOAWAY names.
"""

import asyncio
import ssl
from collections import defaultdict
from typing import cast

import h2.config
import h2.connection
import h2.events

from failure.deploy.asked import NAME, PATH, Asked, NotTaken

GOAWAY = 7
FRAME_HEAD_BYTES = 9
MOST_STREAMS = 80
"""On one connection; nginx takes 100."""
READ_LIMIT_BYTES = 1 << 20


class Http1:
    """A connection for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_used = False
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it, as far as is known here."""
        return not (self._is_closed or self._reader.at_eof() or self._writer.is_closing())

    @classmethod
    async def open(cls, port: int, trust: ssl.SSLContext) -> "Http1":
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, server_hostname=NAME, limit=READ_LIMIT_BYTES
        )
        return cls(reader, writer)

    async def ask(self, asked: Asked, key: str) -> None:
        """Send a request and read its answer; raises NotTaken, or ConnectionError."""
        body = asked.body()
        lines = [f"POST {PATH} HTTP/1.1", f"host: {NAME}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in asked.headers(key).items()]
        asked.was_warm = self.is_used
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            if self.is_used and not getattr(error, "partial", b""):
                raise NotTaken from None
            raise ConnectionError(f"no answer: {error!r}") from None
        self.is_used = True
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        asked.take(int(first.split()[1]), await self._read_body(headers))
        if headers.get("connection", "").lower() == "close":
            self.close()

    async def _read_body(self, headers: dict[str, str]) -> bytes:
        try:
            if headers.get("transfer-encoding") != "chunked":
                return await self._reader.readexactly(int(headers["content-length"]))
            parts = []
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                parts.append((await self._reader.readexactly(size + 2))[:-2])
            await self._reader.readexactly(2)
            return b"".join(parts)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            raise ConnectionError(f"broken off: {error!r}") from None

    def close(self) -> None:
        self._is_closed = True
        self._writer.close()


class Http2(asyncio.Protocol):
    """A connection for many requests."""

    def __init__(self) -> None:
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(validate_inbound_headers=False))
        self._transport: asyncio.Transport
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._bodies: defaultdict[int, list[bytes]] = defaultdict(list)
        self._statuses: dict[int, int] = {}
        self._unread = b""
        self.is_open = True
        """Whether new requests may be sent."""
        self._asked = 0

    @classmethod
    async def open(cls, port: int, trust: ssl.SSLContext) -> "Http2":
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(cls, "127.0.0.1", port, ssl=trust, server_hostname=NAME)
        return made

    @property
    def has_room(self) -> bool:
        return self.is_open and len(self._waiting) < MOST_STREAMS

    async def ask(self, asked: Asked, key: str) -> None:
        """Send a request and read its answer; raises NotTaken, or ConnectionError."""
        body = asked.body()
        stream = self._connection.get_next_available_stream_id()
        head = {":method": "POST", ":path": PATH, ":scheme": "https", ":authority": NAME, **asked.headers(key)}
        asked.was_warm = self._asked > 0
        self._asked += 1
        waiting = self._waiting[stream] = asyncio.get_running_loop().create_future()
        self._connection.send_headers(stream, list({**head, "content-length": str(len(body))}.items()))
        self._connection.send_data(stream, body, end_stream=True)
        self._flush()
        try:
            await waiting
        finally:
            self._waiting.pop(stream, None)
            parts, status = self._bodies.pop(stream, []), self._statuses.pop(stream, 0)
        asked.take(status, b"".join(parts))

    # --- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class
        self._connection.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= FRAME_HEAD_BYTES:
            length = FRAME_HEAD_BYTES + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < length:
                break
            frame, self._unread = self._unread[:length], self._unread[length:]
            if frame[3] == GOAWAY:
                self._go_away(int.from_bytes(frame[9:13], "big"))
            else:
                for event in self._connection.receive_data(frame):
                    self._take(event)
        self._flush()
        if not self.is_open and not self._waiting:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        for stream, waiting in self._waiting.items():
            # A connection that is closed before anything came of a request may have been idle for too long.
            has_begun = stream in self._statuses or self._asked == 1
            _fail(waiting, ConnectionError(f"broken off: {exc!r}") if has_begun else NotTaken())

    def _go_away(self, last_stream: int) -> None:
        self.is_open = False
        for stream, waiting in self._waiting.items():
            if stream > last_stream:
                _fail(waiting, NotTaken())

    def _take(self, event: object) -> None:
        if isinstance(event, h2.events.DataReceived):
            self._bodies[event.stream_id].append(event.data)
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.ResponseReceived):
            self._statuses[event.stream_id] = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.StreamEnded):
            if (waiting := self._waiting.get(event.stream_id)) and not waiting.done():
                waiting.set_result(None)
        elif isinstance(event, h2.events.StreamReset) and (waiting := self._waiting.get(event.stream_id)):
            refused = event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
            _fail(waiting, NotTaken() if refused else ConnectionError(f"reset: {event.error_code}"))

    def _flush(self) -> None:
        if data := self._connection.data_to_send():
            self._transport.write(data)


def _fail(waiting: "asyncio.Future[None]", error: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(error)
