"""Server-sent events: splitting a provider's bytes into data payloads, and framing payloads for the client.

The parser follows the event-stream rules that the SDKs apply (wire.md 1.1): lines end with LF, CR or CRLF, several
``data`` lines are joined by LF, an event needs an empty line. ``event``, ``id``, ``retry`` and comments are dropped, so
nothing a provider sends can add a field or an event to what our client reads.
"""

import re

from meterhouse.errors import UpstreamDown

MAX_EVENT_BYTES = 1_048_576
DONE = b"[DONE]"
DONE_FRAME = b"data: [DONE]\n\n"
KEEP_ALIVE_FRAME = b": keep-alive\n\n"
DATA_PREFIX = b"data: "
EVENT_END = b"\n\n"
BETWEEN = EVENT_END + DATA_PREFIX
"""What stands between the payloads of two events."""
LINE_FEED, CARRIAGE_RETURN = b"\n\r"
"""As numbers: whether bytes hold a number is told in a fraction of the time that a search for bytes takes."""

_KIND = re.compile(r"[a-z0-9_.]{1,64}")


def frame(payload: bytes) -> bytes:
    """Wrap one payload as a data event; line breaks inside it (JSON white space) become blanks."""
    if LINE_FEED in payload or CARRIAGE_RETURN in payload:
        payload = payload.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"data: " + payload + b"\n\n"


def named_frame(kind: str, payload: bytes) -> bytes:
    """Wrap one payload as an event with a name, on wires whose events are named after their type."""
    if _KIND.fullmatch(kind) is None:
        # Nobody knows such an event, and its name could end the line.
        return frame(payload)
    return b"event: " + kind.encode() + b"\n" + frame(payload)


class SseReader:
    """Feeds on bytes as they come and gives the payloads of complete data events."""

    __slots__ = ("_data", "_data_bytes", "_is_plain", "_line", "_rest", "_skip_line_feed")

    def __init__(self) -> None:
        self._is_plain = True
        self._rest: bytearray | None = None
        """What came of an event that is not complete yet."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; returns the payloads that they complete.

        Raises:
            UpstreamDown: An event is longer than 1 MB.
        """
        if not self._is_plain:
            return self._feed_lines(data)
        if CARRIAGE_RETURN in data:
            return self._feed_lines(self._leave_plain() + data)
        if not self._rest and len(data) <= MAX_EVENT_BYTES and data.startswith(DATA_PREFIX) and data.endswith(b"\n\n"):
            # Nothing but whole events, each of one line of data: almost always.
            payloads = data[6:-2].split(BETWEEN)
            if LINE_FEED not in b"".join(payloads):
                return payloads
        return self._feed_plain(data)

    @property
    def is_between(self) -> bool:
        """Whether the next bytes begin an event, in a stream none of whose lines ended with CR."""
        return self._is_plain and not self._rest

    def close(self) -> list[bytes]:
        """Say that the bytes have ended; an event without its empty line is not delivered."""
        return []

    def _leave_plain(self) -> bytes:
        """Follow the rules line by line from here on; returns what waits."""
        waiting, self._rest = bytes(self._rest or b""), None
        self._is_plain = False
        self._line = bytearray()
        self._data: list[bytes] = []
        # Kept as a sum: adding up the lines at each line would be quadratic.
        self._data_bytes = 0
        self._skip_line_feed = False
        return waiting

    def _feed_plain(self, data: bytes) -> list[bytes]:
        """Split at empty lines, which is all there is to do while no line ends with CR."""
        rest = self._rest
        if rest:
            # The separator may straddle the border, so one byte of the rest is looked at again.
            border = max(0, len(rest) - 1)
            rest += data
            end = rest.rfind(b"\n\n", border)
            if end < 0:
                _check_length(len(rest))
                return []
            complete = bytes(rest[:end])
            del rest[: end + 2]
        else:
            rest = self._rest = bytearray()
            end = data.rfind(b"\n\n")
            if end < 0:
                rest += data
                _check_length(len(rest))
                return []
            complete = data[:end]
            rest += data[end + 2 :]
        _check_length(len(rest))
        if complete.startswith(DATA_PREFIX) and len(complete) <= MAX_EVENT_BYTES:
            payloads = complete[6:].split(BETWEEN)
            if complete.count(b"\n") == 2 * (len(payloads) - 1):
                return payloads  # every event is one line of data: almost always
        return split_events(complete)

    def _feed_lines(self, data: bytes) -> list[bytes]:
        """Follow the rules line by line, for streams with CR or CRLF."""
        payloads: list[bytes] = []
        if not data:
            return payloads
        if self._skip_line_feed and data.startswith(b"\n"):
            data = data[1:]
        self._skip_line_feed = data.endswith(b"\r")
        *pieces, unfinished = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for piece in pieces:
            line = bytes(self._line + piece)
            self._line.clear()
            if line:
                self._data.append(line)
                self._data_bytes += len(line)
                _check_length(self._data_bytes)
                continue
            payloads.extend(_payload_of_lines(self._data))
            self._data = []
            self._data_bytes = 0
        self._line += unfinished
        _check_length(len(self._line))
        return payloads


def split_events(events: bytes) -> list[bytes]:
    """Return the payloads of complete events, no line of which ends with CR; the last comes without its empty line.

    Raises:
        UpstreamDown: An event is longer than 1 MB.
    """
    payloads: list[bytes] = []
    for event in events.split(EVENT_END):
        # An event with a name has nearly always one line of data behind it.
        head, found, payload = event.partition(b"\ndata: ")
        if found and head.startswith(b"event: ") and LINE_FEED not in payload and LINE_FEED not in head:
            _check_length(len(payload))
            payloads.append(payload)
        elif event.startswith(DATA_PREFIX) and LINE_FEED not in event:
            _check_length(len(event))
            payloads.append(event[6:])
        else:
            payloads.extend(_payload_of_lines(event.split(b"\n")))
    return payloads


def _payload_of_lines(lines: list[bytes]) -> list[bytes]:
    values = [_value(line) for line in lines if line.startswith(b"data:") or line == b"data"]
    if not values:
        return []
    payload = b"\n".join(values)
    _check_length(len(payload))
    return [payload]


def _value(line: bytes) -> bytes:
    value = line[5:]
    return value[1:] if value.startswith(b" ") else value


def _check_length(length: int) -> None:
    if length > MAX_EVENT_BYTES:
        raise UpstreamDown(
            "The provider sent an event that is too long.",
            detail=f"event over {MAX_EVENT_BYTES} bytes",
            code="upstream_protocol_error",
        )
