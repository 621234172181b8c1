"""Log lines for a person at a terminal: one line per event, coloured where the terminal can.

Nothing that a caller sent can move the cursor or forge a line: control characters are written as escapes. What is not
here: redaction, which has happened before (``redact``).
"""

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime

from meterhouse.money import format_usd

_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_DIM = "2"
_BOLD = "1"
_RED = "31"
_YELLOW = "33"
_GREEN = "32"
_SERVER_ERROR = 500
_CLIENT_ERROR = 400
_LEADING = ("timestamp", "level", "event")


def printable(text: str) -> str:
    """Escape everything that is not a visible character or a blank, line separators included."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else c.encode("unicode_escape").decode() for c in text
    )


def event_line(fields: Mapping[str, object], *, is_coloured: bool) -> str:
    """Render an event: time, level, name, then ``key=value`` of the other fields in their order."""
    level = str(fields.get("level", "info"))
    head = (
        _paint(_clock(fields.get("timestamp")), _DIM, is_coloured),
        _paint(f"{level:<8}", _COLOURS.get(level, _DIM), is_coloured),
        _paint(printable(str(fields.get("event", ""))), _BOLD, is_coloured),
    )
    rest = (f"{printable(key)}={_value(value)}" for key, value in fields.items() if key not in _LEADING)
    return " ".join((*head, *rest))


def request_line(fields: Mapping[str, object], *, is_coloured: bool) -> str:
    """Render ``request.finished``: status, address, model, tokens, charge, times, error code and request id."""
    status = fields.get("status")
    parts = [
        _paint(_clock(fields.get("timestamp")), _DIM, is_coloured),
        _paint(str(status), _status_colour(status), is_coloured),
        printable(f"{fields.get('method', '')} {fields.get('path', '')}"),
    ]
    if fields.get("model"):
        parts.append(printable(f"{fields['model']} > {fields.get('provider') or '-'}"))
    if fields.get("outcome") not in {None, "", "completed"}:
        parts.append(printable(str(fields["outcome"])))
    if "input_tokens" in fields or "output_tokens" in fields:
        parts.append(f"{fields.get('input_tokens', 0)}+{fields.get('output_tokens', 0)} tokens")
    charge_nanos = fields.get("charge_nanos")
    if isinstance(charge_nanos, int):
        parts.append(f"${format_usd(charge_nanos)}")
    first_ms = fields.get("time_to_first_token_ms")
    if first_ms is not None:
        parts.append(f"first {first_ms} ms")
    if "duration_ms" in fields:
        parts.append(f"{fields['duration_ms']} ms")
    if fields.get("error_code"):
        parts.append(_paint(printable(str(fields["error_code"])), _RED, is_coloured))
    if fields.get("request_id"):
        parts.append(_paint(printable(str(fields["request_id"])), _DIM, is_coloured))
    return " ".join(parts)


def _paint(text: str, colour: str, is_coloured: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if is_coloured else text


def _status_colour(status: object) -> str:
    if not isinstance(status, int) or status >= _SERVER_ERROR:
        return _RED
    return _YELLOW if status >= _CLIENT_ERROR else _GREEN


def _clock(timestamp: object) -> str:
    moment = timestamp if isinstance(timestamp, datetime) else datetime.now(UTC)
    return moment.astimezone().strftime("%H:%M:%S")


def _value(value: object) -> str:
    text = value.isoformat() if isinstance(value, datetime) else value if isinstance(value, str) else repr(value)
    shown = printable(text)
    return f'"{shown}"' if " " in shown or not shown else shown
