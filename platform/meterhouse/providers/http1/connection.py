"""One HTTP/1.1 connection as a transport's protocol: a request goes out, its answer comes in, and then the next.

httptools finds the parts of an answer; its parser (llhttp) refuses bare line feeds, folded headers, two lengths and
broken chunk sizes by itself, and what it lets through for old servers is refused here. Invariant: a connection that
was late, broke, spoke nonsense or said more than its answer is closed and never used again, and no two requests are
on it at a time. Not here: where connections come from and wait (``pool``).
"""

import asyncio
from typing import Protocol

import httptools

from meterhouse.errors import JournalDown, UpstreamDown, UpstreamError, UpstreamTimeout
from meterhouse.providers.http1.answer import MOST_WAITING_BYTES, PIECE_COST_BYTES, Http1Answer
from meterhouse.providers.http1.late_watch import LateWatch
from meterhouse.providers.http_client import MAX_HEADER_LINE_BYTES, MAX_HEADERS, Clearance, StaleConnection

MAX_SILENT_BYTES = 65_536
"""Most bytes without one of a body among them: heads, interim answers, chunk extensions, trailers."""
PIECE_BYTES = 262_144
"""A longer body is written piece by piece, the next one when the connection has taken the last."""

_FIRST_LETTER = ord("H")
"""The parser takes RTSP and ICE, and empty lines, for the beginning of an answer too."""
_SWITCHING, _OK = 101, 200
_VERSIONS = frozenset({"1.1", "1.0"})
_WITHOUT_BODY = frozenset({204, 304})
_CHUNKED = b"chunked"
_JOINED = frozenset({b"content-encoding", b"transfer-encoding"})
"""Headers of which each one counts; of the others the first does."""
_KEPT = _JOINED | {b"content-type", b"content-length", b"retry-after", b"retry-after-ms"}


class Owner(Protocol):
    """Where a connection comes from."""

    late_watch: LateWatch
    """Knows until when the heads are waited for."""

    def keep(self, connection: "Connection") -> None:
        """Take a connection back that can be used again."""
        ...

    def forget(self, connection: "Connection") -> None:
        """Hear that a connection is closed."""
        ...


class _Refused(Exception):
    """What came is no HTTP that we take; the parser ends at it. Its text shows nothing of what came."""


class Connection(asyncio.Protocol):
    """A connection to a provider, for one request at a time."""

    __slots__ = (
        "_answer",
        "_body_at_bytes",
        "_ends_with_connection",
        "_has_farewell",
        "_has_head",
        "_header_count",
        "_headers",
        "_heard_bytes",
        "_held",
        "_is_closed",
        "_is_reusable",
        "_is_secure",
        "_is_whole",
        "_is_write_paused",
        "_late_watch",
        "_owner",
        "_parser",
        "_pieces",
        "_transport",
        "_unsent",
        "_was_used",
        "deadline_seconds",
        "idle_among",
        "idle_since_seconds",
        "is_idle",
        "is_leased",
        "is_paused",
        "on_body",
    )

    def __init__(self, owner: Owner, idle_among: "dict[Connection, None]") -> None:
        self.idle_among = idle_among
        """Those to the same place that idle, the last of them since the latest; its owner keeps it in there."""
        self.is_leased = False
        self.is_idle = False
        self.idle_since_seconds = self.deadline_seconds = 0.0
        self._owner = owner
        self._late_watch = owner.late_watch
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        """What the parser finds of a body in one read: events come in a chunk each, and a function for each would cost
        more than all else that is done with a read."""
        self.on_body = self._pieces.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._unsent: memoryview | None = None
        self._held: bytes | None = None
        """A request that may not leave yet."""
        self._is_write_paused = self.is_paused = self._is_closed = self._was_used = False
        self._is_secure = self._has_farewell = False
        self._answer: Http1Answer | None = None
        self._headers: dict[bytes, bytes] = {}
        self._header_count = self._heard_bytes = self._body_at_bytes = 0
        self._has_head = self._is_whole = self._is_reusable = self._ends_with_connection = False

    @property
    def is_usable(self) -> bool:
        """Whether a request can be sent, as far as is known here."""
        return self._transport is not None and not self._is_closed and not self._transport.is_closing()

    def send(
        self,
        answer: Http1Answer,
        message: bytes,
        rest: bytes,
        deadline_seconds: float,
        clearance: Clearance | None = None,
    ) -> None:
        """Send a request, of a long one the rest of its body piece by piece; its answer is fed.

        It fails if its head is not there by the deadline of the loop's clock, or the connection is gone already. One
        with a clearance that is not given yet is held back until it is; a long one must have it.
        """
        transport = self._transport
        if transport is None or self._is_closed or transport.is_closing():
            answer.fail(UpstreamDown, "closed the connection without an answer")
            self.close()
            return
        self._answer = answer
        self._headers = {}
        self._header_count = self._heard_bytes = self._body_at_bytes = 0
        self._has_head = self._is_whole = False
        self.deadline_seconds = deadline_seconds
        self._late_watch.watch(self)
        if clearance is not None and not clearance.is_given:
            self._held = message
            clearance.tell(self._leave)
            return
        transport.write(message)
        if rest:
            self._unsent = memoryview(rest)
            self._send_more()

    def resume(self) -> None:
        """Read on, if reading was paused."""
        if self.is_paused:
            self.is_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        """Close at once; an answer that was on its way hears nothing of that."""
        if self._is_closed:
            return
        self._is_closed = True
        self._answer = self._unsent = self._held = None
        self._parser = None  # it holds this connection's methods
        self._late_watch.waiting.pop(self, None)
        self._owner.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def lose(self, kind: type[UpstreamError], text: str, detail: str = "") -> None:
        """Close, and fail the answer that was on its way."""
        answer = self._answer
        self.close()
        if answer is not None:
            answer.fail(kind, text, detail)

    def fail_late(self) -> None:
        """Close: the head that was waited for is not there."""
        self.lose(UpstreamTimeout, "did not answer in time")

    # --- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, unless it is too late."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio.Transport
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        if self._is_closed:
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Feed the answer that was asked for; a connection that speaks unasked is closed."""
        answer, parser = self._answer, self._parser
        if answer is None or parser is None or self._held is not None:
            self.lose(UpstreamDown, "spoke before it was asked")
            return
        nonsense = ""
        is_first, had_head = not self._heard_bytes, self._has_head
        self._heard_bytes = heard_bytes = self._heard_bytes + len(data)
        try:
            if is_first and data[0] != _FIRST_LETTER:
                raise _Refused("no HTTP")
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _Refused) as error:
            nonsense = _said(error.__context__ if isinstance(error.__context__, _Refused) else error)
            self._is_reusable = False
        pieces = self._pieces
        if pieces and self._has_head:
            body = b"".join(pieces)  # a single one itself
            pieces.clear()
            self._body_at_bytes = heard_bytes
            take = answer.take
            if take is None or answer.parts or not take(body):
                answer.parts.append(body)
                answer.waiting_bytes += len(body) + PIECE_COST_BYTES
        if self._is_whole:
            self._finish(answer)  # what came before nonsense counts
        elif nonsense or pieces or heard_bytes - self._body_at_bytes > MAX_SILENT_BYTES:
            text = "an interim answer with a body" if pieces else "too many bytes without a body"
            self._break(nonsense or _said(_Refused(text)))
        elif answer.waiting_bytes > MOST_WAITING_BYTES and not self.is_paused and self._transport is not None:
            self.is_paused = True
            self._transport.pause_reading()
        # Once for all that came in one read: whoever waits for the head finds what came of the body too.
        waiter = answer.waiter
        wants_more = answer.wants_whole and answer.status == _OK
        is_news = self._is_whole or self.is_paused or (not wants_more and (answer.parts or not had_head))
        if self._has_head and is_news and waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        """Write no further piece of a body."""
        self._is_write_paused = True

    def resume_writing(self) -> None:
        """Write the next pieces of a body."""
        self._is_write_paused = False
        self._send_more()

    def eof_received(self) -> None:
        """Hear that the server says no more.

        Over TLS uvloop (0.22) calls this only for the server's close_notify, which nobody between can forge; asyncio's
        own loop calls it for a bare end of the connection too, so that there the two cannot be told apart.
        """
        self._has_farewell = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer: whole, when the end of the connection is what ends it, and over TLS the server said so."""
        answer = self._answer
        is_end = exc is None and (self._has_farewell or not self._is_secure)
        if answer is not None and is_end and self._has_head and self._ends_with_connection:
            self.close()
            answer.finish()
        elif self._has_head:
            self.lose(UpstreamDown, "ended its answer early", _said(exc))
        else:
            kind = StaleConnection if self._was_used and not self._heard_bytes else UpstreamDown
            text = "closed the connection without an answer" if exc is None else "broke the connection"
            self.lose(kind, text, _said(exc))

    # --- called by the parser

    def on_message_begin(self) -> None:
        """Refuse whatever follows the answer."""
        if self._is_whole:
            raise _Refused("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count each header, and keep those that matter; this is also where trailers come."""
        self._header_count += 1
        # Where no more than a line may have has come in all, no line has more.
        if self._header_count > MAX_HEADERS or (
            self._heard_bytes > MAX_HEADER_LINE_BYTES and len(name) + len(value) > MAX_HEADER_LINE_BYTES
        ):
            raise _Refused("too many headers, or one too long")
        name = name.lower()
        if name in _KEPT and not self._has_head:
            if name not in self._headers:
                self._headers[name] = value
            elif name in _JOINED:
                self._headers[name] += b", " + value

    def on_headers_complete(self) -> None:
        """Give the head to the answer; an interim one is passed over."""
        answer, parser, headers = self._answer, self._parser, self._headers
        if answer is None or parser is None:
            return
        if self._pieces:
            raise _Refused("an interim answer with a body")
        status = parser.get_status_code()
        if status < _OK:
            if status < 100 or status == _SWITCHING:  # noqa: PLR2004 - HTTP's classes
                raise _Refused("no answer, but another protocol")
            headers.clear()
            self._header_count = 0
            return
        version = parser.get_http_version()
        if version not in _VERSIONS:
            raise _Refused("another version of HTTP")
        is_chunked = b"transfer-encoding" in headers
        if is_chunked and (headers[b"transfer-encoding"].strip(b" \t").lower() != _CHUNKED or version == "1.0"):
            raise _Refused("a transfer encoding that is not chunked")
        self._has_head = True
        self._ends_with_connection = not is_chunked and b"content-length" not in headers and status not in _WITHOUT_BODY
        del self._late_watch.waiting[self]
        answer.status = status
        answer.headers = headers

    def on_message_complete(self) -> None:
        """Note that the answer is whole, and whether its connection may be used again."""
        if self._has_head and self._parser is not None:
            self._is_whole = True
            self._is_reusable = self._parser.should_keep_alive()

    # --- inside

    def _leave(self, refusal: JournalDown | None) -> None:
        """Send the request that was held back, or fail it where it may not be sent."""
        held, self._held = self._held, None
        answer, transport = self._answer, self._transport
        if held is None or answer is None or transport is None:
            return  # it was given up meanwhile
        if refusal is not None:
            self.close()
            answer.refuse(refusal)
        elif not transport.is_closing():  # as in ``_send_more``
            transport.write(held)

    def _finish(self, answer: Http1Answer) -> None:
        """Part with a whole answer, and go back if another request may follow: all sent, nothing more said."""
        transport = self._transport
        self._answer = answer.source = None
        answer.is_whole = True
        if (
            self._is_reusable
            and self._unsent is None
            and transport is not None
            and not transport.get_write_buffer_size()
            and not transport.is_closing()
        ):
            self._was_used = True
            if self.is_paused:
                self.resume()
            self._owner.keep(self)
        else:
            self.close()

    def _break(self, nonsense: str) -> None:
        """Give up what came: the parser's words and ours are fixed texts, with nothing in them of what came."""
        self.lose(UpstreamDown, "ended its answer early" if self._has_head else "did not speak HTTP", nonsense)

    def _send_more(self) -> None:
        transport = self._transport
        while self._unsent is not None and not self._is_write_paused and transport is not None:
            if transport.is_closing():
                return  # uvloop raises where asyncio says nothing; that it is lost is heard in a moment
            piece, rest = self._unsent[:PIECE_BYTES], self._unsent[PIECE_BYTES:]
            self._unsent = rest if len(rest) else None
            transport.write(piece)


def _said(error: Exception | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {error}"
