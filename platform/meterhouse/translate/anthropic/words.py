"""What the two wires call the same things: why an answer stopped, what it used, what went wrong.

Invariant: pure. Anthropic's ``input_tokens`` are those that no cache had to do with; OpenAI's ``prompt_tokens`` are
all of them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from meterhouse.errors import GatewayError

STOP_REASONS = MappingProxyType(
    {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
)
"""OpenAI's finish reasons as Anthropic's; any other is ``end_turn``."""

FINISH_REASONS = MappingProxyType(
    {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "pause_turn": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
    }
)
"""Anthropic's stop reasons as OpenAI's; any other is ``stop``."""

_ERROR_TYPES = MappingProxyType(
    {
        400: "invalid_request_error",
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
)
_OVERLOADED = 529
_SERVERS_FAULT = 500

ERROR_STATUSES = MappingProxyType(
    {
        "invalid_request_error": 400,
        "authentication_error": 401,
        "billing_error": 402,
        "permission_error": 403,
        "not_found_error": 404,
        "request_too_large": 413,
        "rate_limit_error": 429,
        "overloaded_error": 529,
    }
)
"""The status that an error of each type has; inside a stream only the type is left of it."""


def error_status(error: GatewayError) -> int:
    """Return the status of an error: its own, but for 529, which is how Anthropic says that it has too much to do."""
    return _OVERLOADED if error.status == 503 else error.status  # noqa: PLR2004 - HTTP's word for it


def error_body(error: GatewayError, request_id: str) -> bytes:
    """Write an error in Anthropic's envelope.

    Our code, which says more than the few types can, is where Anthropic's SDK looks for one: ``details.error_code``.
    """
    return msgspec.json.encode({"type": "error", **_error(error, request_id)})


def error_event(error: GatewayError, request_id: str) -> bytes:
    """Write an error as the event that ends a stream."""
    return event("error", _error(error, request_id))


def _error(error: GatewayError, request_id: str) -> dict[str, Any]:
    status = error_status(error)
    kind = _ERROR_TYPES.get(status) or ("invalid_request_error" if status < _SERVERS_FAULT else "api_error")
    said: dict[str, Any] = {"type": kind, "message": error.message}
    if error.code is not None:
        said["details"] = {"error_code": error.code}
    return {"error": said, "request_id": request_id}


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """Write one event of a stream; its data begins with its name as ``type``."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode({"type": name, **data}) + b"\n\n"


def to_usage(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return OpenAI's usage as Anthropic's; zeros where there is none."""
    usage = usage or {}
    details = _mapping(usage.get("prompt_tokens_details"))
    cached = _count(details.get("cached_tokens"))
    written = _count(details.get("cache_write_tokens"))
    found: dict[str, Any] = {
        "input_tokens": max(0, _count(usage.get("prompt_tokens")) - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": _count(usage.get("completion_tokens")),
    }
    thought = _count(_mapping(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    if thought:
        found["output_tokens_details"] = {"thinking_tokens": thought}
    return found


def from_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return Anthropic's usage as OpenAI's; a count that is missing or no count is left out.

    What was read from a cache and what was written to one are parts of ``prompt_tokens`` here.
    """
    found: dict[str, Any] = {}
    cached = _count(usage.get("cache_read_input_tokens"))
    written = _count(usage.get("cache_creation_input_tokens"))
    if _is_count(usage.get("input_tokens")):
        found["prompt_tokens"] = usage["input_tokens"] + cached + written
        found["prompt_tokens_details"] = {"cached_tokens": cached, "cache_write_tokens": written}
    if _is_count(usage.get("output_tokens")):
        found["completion_tokens"] = usage["output_tokens"]
        thought = _count(_mapping(usage.get("output_tokens_details")).get("thinking_tokens"))
        found["completion_tokens_details"] = {"reasoning_tokens": thought}
    if "prompt_tokens" in found and "completion_tokens" in found:
        found["total_tokens"] = found["prompt_tokens"] + found["completion_tokens"]
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and _is_count(value) else 0


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
