"""Take secrets out of what is logged: by the name of a field, and by the look of a value.

Whatever goes in, what comes out consists of plain values that encode to JSON, is no larger than stated here, and was
made in one walk: an object met a second time is named, not copied, so that a shared or cyclic structure cannot
multiply. What is not here: prompts and answers, which nobody may hand to a log in the first place.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from uuid import UUID

import msgspec

REDACTED = "[redacted]"
MAX_TEXT_CHARACTERS = 16_384
MAX_DEPTH = 6
MAX_NODES = 1_000

_SEEN = "[seen above]"
_TOO_DEEP = "[too deep]"
_TOO_MANY = "[too many]"
_MAX_KEY_CHARACTERS = 128
_MAX_INTEGER_BITS = 63
_MAX_CAUSES = 4
_MAX_FRAMES = 12

_HIDDEN_NAMES = r"authorization|api[_-]?key|secret|password|cookie|credential"
_SECRET_KEY = re.compile(rf"{_HIDDEN_NAMES}|token$", re.IGNORECASE)
# Every alternative consumes what it has scanned, so that no text makes the search take more than linear time.
_SECRET_VALUE = re.compile(
    r"(?P<pem>-----BEGIN [A-Z0-9 ]{1,40}-----[\s\S]*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z))"
    r"|(?P<key>sk-(?:mh-[A-Za-z0-9_-]{4,}|[A-Za-z0-9_-]{16,}))"
    r"|(?P<aws>(?:AKIA|ASIA)[A-Z0-9]{12,})"
    r"|(?P<jwt>eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*)"
    r"|(?P<bearer>(?i:bearer)\s+)[^\s\"',;]+"
    r"|(?P<login>://)[^/\s@]{0,256}@"
    r"|(?P<header>(?i:authorization|cookie)[\"']?\s{0,8}[=:]\s{0,8}[\"']?)[^\r\n\"']+"
    rf"|(?P<named>(?i:{_HIDDEN_NAMES})[A-Za-z_]{{0,32}}[\"']?\s{{0,8}}[=:]\s{{0,8}}[\"']?)[^\s\"',;&]+"
)


def is_secret_key(name: str) -> bool:
    """Say whether a field of this name is hidden whatever its value (``authorization``, ``api_key``, ``..._token``)."""
    return _SECRET_KEY.search(name) is not None


def may_hold_secret(text: str) -> bool:
    """Say cheaply (about 1.4 us for half a kilobyte) whether a text could hold a credential by value."""
    # Written out and of a text: a loop over bytes needles costs six times as much, on every request.
    return "sk-" in text or "eyJ" in text or "AKIA" in text or "earer " in text or "-----BEGIN" in text


def redact_text(text: str) -> str:
    """Replace every secret in a text, and cut the text at ``MAX_TEXT_CHARACTERS``.

    Keys of our own and of ``sk-`` formats, AWS key ids, PEM blocks, JWTs, ``Bearer`` values, logins in URLs and
    ``password=...`` assignments are found.
    """
    # Cut after the search, with a margin before it, so that the cut never leaves the recognisable start of a secret.
    bounded = text if len(text) <= MAX_TEXT_CHARACTERS else text[: MAX_TEXT_CHARACTERS + 1024]
    clean = _SECRET_VALUE.sub(_replacement, bounded)
    if len(clean) > MAX_TEXT_CHARACTERS:
        clean = clean[:MAX_TEXT_CHARACTERS] + "..."
    return clean if clean.isascii() else clean.encode("utf-8", "replace").decode("utf-8")


def redact(fields_by_name: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of a log event's fields without secrets, of plain values, bounded in depth and size."""
    clean = _Redactor().mapping(fields_by_name, 0)
    assert isinstance(clean, dict)
    return clean


def describe_exception(error: BaseException) -> str:
    """Write an exception on one line: type, message, detail, where, and what caused it; without secrets."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(parts) < _MAX_CAUSES:
        seen.add(id(current))
        parts.append(_describe_one(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return " <- ".join(parts)


def _describe_one(error: BaseException) -> str:
    detail = getattr(error, "detail", "")
    text = redact_text(f"{error} ({detail})" if isinstance(detail, str) and detail else str(error))
    frames: list[str] = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        frames.append(f"{PurePath(code.co_filename).name}:{step.tb_lineno} {code.co_name}")
        step = step.tb_next
    where = f" [{' > '.join(frames[-_MAX_FRAMES:])}]" if frames else ""
    return " ".join(f"{type(error).__name__}: {text}{where}".split())


def _replacement(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "login":
        return f"://{REDACTED}@"
    if kind in {"bearer", "header", "named"}:
        return match[kind] + REDACTED
    return REDACTED


class _Redactor:
    """One walk over one event; holds what it has visited."""

    def __init__(self) -> None:
        # The objects themselves are kept, because an id is only unique among what is alive.
        self._visited: dict[int, object] = {}
        self._nodes = 0

    def mapping(self, items: Mapping[object, object] | Mapping[str, object], depth: int) -> object:
        clean: dict[str, object] = {}
        for key, value in items.items():
            if self._nodes >= MAX_NODES:
                clean[_TOO_MANY] = len(items)
                break
            name = key if isinstance(key, str) else str(self.value(key, depth + 1))
            # The name is judged whole: a long name must not hide its ending.
            is_hidden = is_secret_key(name) and value is not None
            clean[redact_text(name)[:_MAX_KEY_CHARACTERS]] = REDACTED if is_hidden else self.value(value, depth + 1)
        return clean

    def value(self, value: object, depth: int) -> object:
        self._nodes += 1
        if isinstance(value, Enum):
            value = value.value
        if value is None or isinstance(value, bool | float | datetime):
            return value
        if isinstance(value, int):
            return value if value.bit_length() <= _MAX_INTEGER_BITS else redact_text(hex(value))
        if isinstance(value, str):
            return redact_text(value)
        if isinstance(value, date | Decimal | PurePath | UUID):
            return redact_text(str(value))
        if isinstance(value, BaseException):
            return describe_exception(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        return self._container(value, depth)

    def _container(self, value: object, depth: int) -> object:
        if id(value) in self._visited:
            return _SEEN
        if depth >= MAX_DEPTH:
            return _TOO_DEEP
        self._visited[id(value)] = value
        if isinstance(value, Mapping):
            return self.mapping(value, depth)
        if isinstance(value, Sequence | set | frozenset):
            return self._sequence(value, depth)
        if isinstance(value, msgspec.Struct):
            return self.mapping(msgspec.structs.asdict(value), depth)
        if is_dataclass(value) and not isinstance(value, type):
            return self.mapping({field.name: getattr(value, field.name) for field in fields(value)}, depth)
        return f"<{type(value).__name__}>"

    def _sequence(self, items: Sequence[object] | set[object] | frozenset[object], depth: int) -> object:
        clean: list[object] = []
        for item in items:
            if self._nodes >= MAX_NODES:
                clean.append(_TOO_MANY)
                break
            clean.append(self.value(item, depth + 1))
        return clean
