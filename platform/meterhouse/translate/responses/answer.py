"""The response object (wire.md 1.10): what was asked for, told back, and what came of it so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meterhouse.ids import new_id
from meterhouse.translate.responses.shape import ResponsesRequest, ResponsesTool

Json = dict[str, Any]
NewId = Callable[[str], str]

TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})
"""A tier of another name would be none that a client knows."""
ERROR_CODES = frozenset({"server_error", "rate_limit_exceeded", "invalid_prompt"})
"""The codes of a failed response that do not tell of images or stores."""
_TOLD_BACK = ("instructions", "max_output_tokens", "max_tool_calls", "prompt_cache_key", "safety_identifier", "user")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(slots=True)
class Answering:
    """One response as it comes about. ``now_seconds`` and ``new_id`` are handed in for tests."""

    told_back: Json
    id: str
    created_seconds: int
    now_seconds: Callable[[], int]
    custom_tools: frozenset[str] = frozenset()
    wants_summary: bool = False
    new_id: NewId = new_id
    finish_reason: str | None = None
    service_tier: str | None = None
    usage: Json | None = None
    error: Json | None = None
    output: list[Json] = field(default_factory=list)

    @property
    def status(self) -> str:
        """How the response ended, by the finish reason of the chat completion."""
        if self.error is not None:
            return "failed"
        return "incomplete" if self.finish_reason in _INCOMPLETE else "completed"

    def snapshot(self, *, is_over: bool) -> Json:
        """Return the response object as it is now."""
        status = self.status if is_over else "in_progress"
        reason = _INCOMPLETE.get(self.finish_reason or "") if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_seconds,
            "status": status,
            "completed_at": self.now_seconds() if status == "completed" else None,
            "error": self.error,
            "incomplete_details": {"reason": reason} if reason else None,
            "output": self.output if is_over else [],
            "usage": self.usage if is_over else None,
            **self.told_back,
            "service_tier": self.service_tier or self.told_back["service_tier"],
        }


def tell_back(request: ResponsesRequest) -> Json:
    """Return the fields of a response that repeat the request, with what holds where nothing was asked."""
    text = request.text
    form: Json = {"type": "text"}
    if text is not None and text.format is not None:
        given = text.format
        form = {
            name: value
            for name in ("type", "name", "description", "schema", "strict")
            if (value := getattr(given, name)) is not None
        }
    reasoning = request.reasoning
    return {
        **{name: getattr(request, name) for name in _TOLD_BACK},
        "background": False,
        "metadata": request.metadata or {},
        "model": request.model,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
        },
        "service_tier": request.service_tier if request.service_tier in TIERS else None,
        "store": False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": form, "verbosity": (text.verbosity if text else None) or "medium"},
        "tool_choice": request.tool_choice or "auto",
        "tools": [_tool(tool) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
    }


def _tool(tool: ResponsesTool) -> Json:
    if tool.type == "function":
        given = {"description": tool.description} if tool.description is not None else {}
        return {"type": tool.type, "name": tool.name, **given, "parameters": tool.parameters, "strict": tool.strict}
    names = ("type", "name", "description", "format")
    return {name: value for name in names if (value := getattr(tool, name)) is not None}


def usage_of(wire: Json) -> Json:
    """Return the usage of a chat completion in this wire's names."""
    prompt, output = wire.get("prompt_tokens_details"), wire.get("completion_tokens_details")
    return {
        "input_tokens": _count(wire, "prompt_tokens"),
        "input_tokens_details": {
            "cached_tokens": _count(prompt, "cached_tokens"),
            "cache_write_tokens": _count(prompt, "cache_write_tokens"),
        },
        "output_tokens": _count(wire, "completion_tokens"),
        "output_tokens_details": {"reasoning_tokens": _count(output, "reasoning_tokens")},
        "total_tokens": _count(wire, "total_tokens"),
    }


def _count(wire: object, name: str) -> int:
    """Return a count; 0 for what is none."""
    value = wire.get(name) if isinstance(wire, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def failure_of(error: Json) -> Json:
    """Return what a failed response says, from an error in OpenAI's envelope."""
    code = error.get("code")
    return {"code": code if code in ERROR_CODES else "server_error", "message": error.get("message") or ""}
