"""What a provider's error means to the caller: one table from its status, code and text to ours.

Invariant: the provider's words reach the caller only where the fault is the caller's (400, 404, 413, 422), redacted,
on one line, at most 2 KB; the deployment's credential, and anything that looks like a key, appears nowhere.
"""

import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import msgspec

from meterhouse.errors import UpstreamAccount, UpstreamBusy, UpstreamDown, UpstreamError, UpstreamRefused
from meterhouse.providers.provider import Endpoint

MAX_MESSAGE_LENGTH = 2_048
_MAX_WORD_LENGTH = 64

BAD_REQUEST = 400
NOT_FOUND = 404
TOO_MANY = 429
OVERLOADED = 529
"""Anthropic's: it has too much to do, for everybody."""
_CALLERS_FAULT = frozenset({BAD_REQUEST, NOT_FOUND, 413, 422})
_OPERATORS_FAULT = frozenset({401, 402, 403})
_OUT_OF_CREDIT = frozenset(
    {"insufficient_quota", "exceeded_current_quota_error", "insufficient_balance", "billing_not_active", "arrearage"}
)
"""Codes and types of a 429 or 400 that no waiting cures: the operator's account is empty (wire.md 7, row 11)."""
_BUSY_WORDS = (
    "rate_limit",
    "too_many_requests",
    "overloaded",
    "quota_exceeded",
    "queue_exceeded",
    "resource_exhausted",
)
_CALLER_WORDS = ("invalid_request", "badrequest", "bad_request", "context_length", "content_filter", "content_policy")

_SECRETS = re.compile(
    r"""
      \bBearer\s+[^\s"',;]+
    | \b(?:sk|csk|gsk|pk|rk|xai|hf|key|org|proj|user|r8)[-_][A-Za-z0-9*._-]{6,}
    | \bAIza[A-Za-z0-9_-]{8,}
    | \beyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9._-]*
    | (?<![A-Za-z0-9+/_-])(?=[A-Za-z0-9+/_-]*[0-9])(?=[A-Za-z0-9+/_-]*[A-Za-z])[A-Za-z0-9+/_-]{32,}={0,2}
    """,
    re.VERBOSE,
)
_INVALID = re.compile(r"(\d+ validation errors?:.*?)(?:\n\n  File .*)?", re.DOTALL)
"""How a FastAPI server whose own handler took the exception words a body that did not validate; behind it may stand
where in its code that was."""
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_REDACTED = "[redacted]"


@dataclass(frozen=True, slots=True)
class _Said:
    """What could be read out of a provider's error; each field is as it came."""

    message: str
    code: str | None
    type: str | None
    param: str | None
    status: int | None


def to_error(status: int, body: bytes, endpoint: Endpoint, retry_after_seconds: float | None) -> UpstreamError:
    """Return our error for an upstream's answer with a status other than 200."""
    said = _parse(body)
    detail = _detail(status, said, endpoint)
    if status == OVERLOADED:
        return _busy(endpoint, detail, retry_after_seconds)
    if status == TOO_MANY or status in _CALLERS_FAULT:
        if _is_out_of_credit(said, endpoint):
            return _operators_fault(endpoint, detail)
        if status == TOO_MANY:
            return _busy(endpoint, detail, retry_after_seconds)
        return _refused(status, said, endpoint)
    if status in _OPERATORS_FAULT:
        return _operators_fault(endpoint, detail, is_certain=status not in endpoint.provider.doubtful_refusals)
    if invalid := _INVALID.fullmatch(said.message):
        # A mistake of the caller's, though it came as a 500: no other caller shall find the deployment gone for it.
        return _refused(BAD_REQUEST, replace(said, message=invalid[1]), endpoint)
    return UpstreamDown(
        f"The provider {endpoint.provider.name} failed to answer.",
        detail=detail,
        retry_after_seconds=retry_after_seconds,
    )


def error_in_stream(raw: bytes, endpoint: Endpoint) -> UpstreamError:
    """Return our error for an error object inside a stream or a body of status 200.

    ``raw`` is the JSON of the whole event, or of the value of its ``error`` key.
    """
    said = _parse(raw)
    status = said.status or 0
    detail = _detail(status, said, endpoint)
    words = f"{said.code or ''} {said.type or ''}".lower()
    if _is_out_of_credit(said, endpoint) or status in _OPERATORS_FAULT:
        return _operators_fault(endpoint, detail, is_certain=status not in endpoint.provider.doubtful_refusals)
    if status in {TOO_MANY, OVERLOADED} or any(word in words for word in _BUSY_WORDS):
        return _busy(endpoint, detail, None)
    if status in _CALLERS_FAULT or (status == 0 and any(word in words for word in _CALLER_WORDS)):
        return _refused(status or BAD_REQUEST, said, endpoint)
    return UpstreamDown(f"The provider {endpoint.provider.name} reported an error while answering.", detail=detail)


def no_answer(detail: str) -> UpstreamDown:
    """Return our error for something of status 200 that is no answer on its wire."""
    return UpstreamDown(
        "The provider sent something that is not an answer.", detail=detail, code="upstream_protocol_error"
    )


def redact(text: str, endpoint: Endpoint) -> str:
    """Return a text on one line without the deployment's credential and address, and without anything key-like."""
    if endpoint.credential:
        text = text.replace(endpoint.credential, _REDACTED)
    host = urlsplit(endpoint.base_url).netloc
    if host:
        text = text.replace(host, _REDACTED)
    # Cut before the expensive part: a provider's error is not bounded by us.
    line = _BLANKS.sub(" ", text[: 2 * MAX_MESSAGE_LENGTH]).strip()
    clean = _SECRETS.sub(_REDACTED, line)
    return clean if len(clean) <= MAX_MESSAGE_LENGTH else clean[: MAX_MESSAGE_LENGTH - 1] + "\u2026"


def _refused(status: int, said: _Said, endpoint: Endpoint) -> UpstreamRefused:
    fallback = f"The provider {endpoint.provider.name} refused the request with status {status}."
    return UpstreamRefused(
        redact(said.message, endpoint) or fallback,
        status=status,
        code=_word(said.code, endpoint),
        param=_word(said.param, endpoint),
        detail=_detail(status, said, endpoint),
    )


def _busy(endpoint: Endpoint, detail: str, retry_after_seconds: float | None) -> UpstreamBusy:
    return UpstreamBusy(
        f"The provider {endpoint.provider.name} is over its own rate limit; try again shortly.",
        detail=detail,
        retry_after_seconds=retry_after_seconds,
    )


def _operators_fault(endpoint: Endpoint, detail: str, *, is_certain: bool = True) -> UpstreamAccount:
    error = UpstreamAccount(
        f"The provider {endpoint.provider.name} does not accept this server's account (its credential, credit or"
        " permissions). Your key and request are fine; please tell the operator of this server.",
        detail=detail,
    )
    error.is_certain = is_certain
    return error


def _is_out_of_credit(said: _Said, endpoint: Endpoint) -> bool:
    if any(word is not None and word.lower() in _OUT_OF_CREDIT for word in (said.code, said.type)):
        return True
    phrases = endpoint.provider.empty_account_phrases
    return bool(phrases) and any(phrase in said.message.lower() for phrase in phrases)


def _detail(status: int, said: _Said, endpoint: Endpoint) -> str:
    """Say for the log what it was. A provider's own words may quote the prompt, which a log must never have."""
    return f"status {status}, code {_word(said.code, endpoint)}, type {_word(said.type, endpoint)}"


def _word(text: str | None, endpoint: Endpoint) -> str | None:
    return redact(text, endpoint)[:_MAX_WORD_LENGTH] or None if text is not None else None


def _parse(body: bytes) -> _Said:
    """Read the shapes that providers use: OpenAI's envelope, flat, a string, FastAPI's detail, Gemini's list."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Said("", None, None, None, None)
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict) and value.get("error"):
        value = value["error"]
    if isinstance(value, str):
        return _Said(value, None, None, None, None)
    if not isinstance(value, dict):
        return _Said("", None, None, None, None)
    message = value.get("message")
    if message is None:
        message = value.get("detail")
    code = value.get("code")
    return _Said(
        message=_text_of(message),
        code=_plain(code) or _plain(value.get("status")),
        type=_plain(value.get("type")),
        param=_plain(value.get("param")),
        status=_status_of(code, value.get("status")),
    )


def _text_of(message: Any) -> str:
    """Return a message's text: itself, or FastAPI's list of places and reasons (Mistral nests it once more)."""
    if isinstance(message, str):
        return message
    if isinstance(message, dict):
        return _text_of(message.get("detail") or message.get("message"))
    if isinstance(message, list):
        return "; ".join(_reason(item) for item in message[:10])
    return ""


def _reason(item: Any) -> str:
    if not isinstance(item, dict):
        return item if isinstance(item, str) else ""
    place = item.get("loc")
    where = ".".join(str(part) for part in place) if isinstance(place, list) else ""
    reason = _plain(item.get("msg")) or ""
    return f"{where}: {reason}" if where else reason


def _plain(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def _status_of(*values: Any) -> int | None:
    """Return the HTTP status that an error names: vLLM and OpenRouter put it into ``code``."""
    for value in values:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == len("404"):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool) and BAD_REQUEST <= value < 600:  # noqa: PLR2004 - HTTP
            return value
    return None
