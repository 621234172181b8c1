"""The bytes of an answer: OpenAI's chat completions (SSE) and Ollama's native chat (JSON lines).

A wire turns what the script says (a word, an end, the usage) into events; each event is whole and ends as the wire
ends its events. Usage objects are made here too, true and untrue ones.
Not here: order and time (scripts), HTTP framing (exchange).
"""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from fakes.plan import Plan
from fakes.words import find_marker, prompt_tokens

CREATED = 1_795_132_800
HUGE_TOKENS = 10**12
CACHED_TOKENS = 3

USAGES = {
    "choices": "a last chunk with choices [], only when include_usage was asked for (OpenAI, vLLM, DashScope)",
    "always": "the same, asked for or not (OpenRouter)",
    "finish": "on the chunk with the finish_reason (DeepSeek, transformers, Mistral, Together)",
    "deepseek": "the same with prompt_cache_hit_tokens",
    "kimi": "inside choices[0] of the chunk with the finish_reason (Moonshot)",
    "groq": "as x_groq.usage on the chunk with the finish_reason",
    "running": "so far on every chunk, and at last with choices [] (vLLM's continuous_usage_stats)",
    "running-only": "so far on every chunk, never alone",
    "duplicated": "on the chunk with the finish_reason and again with choices []",
    "zero-copy": "on the chunk with the finish_reason, then a copy of zeros with choices []",
    "early": "once, on the first token's chunk, with the counts at that time",
    "cached": "choices [], with cached, cache-write and reasoning details",
    "zero": "choices [], all zero",
    "negative": "choices [], below zero",
    "huge": "choices [], 10^12",
    "text": "choices [], words instead of numbers",
    "none": "nowhere",
}
ON_FINISH = frozenset({"finish", "deepseek", "duplicated", "zero-copy", "running", "running-only"})
ALONE = frozenset({"always", "running", "duplicated", "zero-copy", "cached", "zero", "negative", "huge", "text"})


def encode(value: Any) -> bytes:
    """Write JSON as providers do: compact, not escaped to ASCII."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def make_usage(kind: str, prompt: int, completion: int, reasoning: int = 0) -> dict[str, Any]:
    """Make the usage object that a plan's ``usage`` reports for these true counts."""
    if kind == "text":
        return {"prompt_tokens": "many", "completion_tokens": "more", "total_tokens": "most"}
    if kind == "zero":
        prompt, completion = 0, 0
    elif kind == "negative":
        prompt, completion = -prompt, -completion
    elif kind == "huge":
        prompt, completion = HUGE_TOKENS, HUGE_TOKENS
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if kind in {"cached", "deepseek"}:
        usage["prompt_tokens_details"] = {"cached_tokens": CACHED_TOKENS}
    if kind == "cached":
        usage["prompt_tokens_details"]["cache_write_tokens"] = 2
    if kind == "deepseek":
        usage |= {"prompt_cache_hit_tokens": CACHED_TOKENS, "prompt_cache_miss_tokens": prompt - CACHED_TOKENS}
    if reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


class Wire(Protocol):
    """How the script's words become bytes."""

    content_type: str
    choices: int
    limit: int | None

    def open(self) -> list[bytes]:
        """Encode the events before the first token."""
        ...

    def token(self, choice: int, delta: Mapping[str, Any], usage: dict[str, Any] | None) -> bytes:
        """Encode one delta: of text, reasoning, refusal or tool calls."""
        ...

    def finish(self, choice: int, reason: str | None, usage: dict[str, Any] | None) -> bytes:
        """Encode the end of one choice."""
        ...

    def alone(self, usage: dict[str, Any]) -> bytes:
        """Encode an event that carries nothing but usage."""
        ...

    def error(self, message: str, *, shape: str = "envelope") -> bytes:
        """Encode an error in the middle of a stream."""
        ...

    def done(self) -> bytes:
        """Encode the terminal event; empty where the wire has none."""
        ...

    def body(self, messages: list[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None) -> bytes:
        """Encode a whole answer, one message for each choice."""
        ...


class OpenAiWire:
    """Chat completions: ``data: {...}`` and an empty line."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, plan: Plan, body: dict[str, Any], number: int) -> None:
        self.plan = plan
        self.choices = int(body.get("n") or 1)
        limits = (body.get("max_completion_tokens"), body.get("max_tokens"))
        self.limit = next((limit for limit in limits if limit is not None), None)
        self.wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.marker = find_marker(body)
        self.prompt_tokens = prompt_tokens(body)
        self.head = {"id": f"chatcmpl-fake-{number}", "created": CREATED, "model": plan.served or body["model"]}

    def event(self, data: Any) -> bytes:
        """Encode one data event, in the plan's spelling."""
        text = encode(data)
        if self.plan.sse == "fields":
            return b"event: message\nid: 7\nretry: 10\ndata: " + text + b"\n\n"
        if self.plan.sse == "bare":
            return b"data:" + text + b"\n\n"
        if self.plan.sse == "split":
            # Lines of one event are joined by a line feed, which JSON takes as a blank after the comma.
            text = text.replace(b',"', b',\ndata: "', 1)
        return b"data: " + text + b"\n\n"

    def chunk(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        """Make one chunk; ``usage`` is null on all of them when include_usage was asked for."""
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": choices}
        if self.wants_usage and self.plan.usage != "none":
            chunk["usage"] = None
        return chunk | {key: value for key, value in extra.items() if value is not None}

    def open(self) -> list[bytes]:
        if self.plan.first == "none":
            return []
        events = []
        if self.plan.first == "azure":
            empty = {"id": "", "created": 0, "model": "", "object": "", "choices": []}
            events.append(self.event({**empty, "prompt_filter_results": [{"prompt_index": 0}]}))
        delta = {"role": "assistant", "content": ""}
        for index in range(self.choices):
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            events.append(self.event(self.chunk([choice])))
        return events

    def token(self, choice: int, delta: Mapping[str, Any], usage: dict[str, Any] | None) -> bytes:
        row = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}
        return self.event(self.chunk([row], usage=usage))

    def finish(self, choice: int, reason: str | None, usage: dict[str, Any] | None) -> bytes:
        row: dict[str, Any] = {"index": choice, "delta": {}, "logprobs": None, "finish_reason": reason}
        extra: dict[str, Any] = {}
        if self.plan.usage == "kimi" and usage:
            row["usage"] = usage
        elif self.plan.usage == "groq" and usage:
            extra["x_groq"] = {"id": "req_fake", "usage": usage}
        else:
            extra["usage"] = usage
        return self.event(self.chunk([row], **extra))

    def alone(self, usage: dict[str, Any]) -> bytes:
        return self.event(self.chunk([], usage=usage))

    def error(self, message: str, *, shape: str = "envelope") -> bytes:
        error = {"message": message, "type": "server_error", "param": None, "code": "fake_failure"}
        if shape == "flat":
            return self.event({"object": "error", **error})
        if shape == "event":
            return b"event: error\n" + self.event({"error": error})
        if shape == "chunk":
            row = {"index": 0, "delta": {"content": ""}, "finish_reason": "error", "native_finish_reason": "error"}
            return self.event(self.chunk([row], error={"code": 502, "message": message}))
        return self.event({"error": error})

    def done(self) -> bytes:
        return b"data: [DONE]\n\n"

    def body(self, messages: list[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None) -> bytes:
        choices: list[dict[str, Any]] = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": reason}
            for index, message in enumerate(messages)
        ]
        answer: dict[str, Any] = {**self.head, "object": "chat.completion", "choices": choices}
        if usage and self.plan.usage == "kimi":
            choices[0]["usage"] = usage
        elif usage and self.plan.usage == "groq":
            answer["x_groq"] = {"id": "req_fake", "usage": usage}
        elif usage:
            answer["usage"] = usage
        return encode(answer)


class OllamaWire:
    """Ollama's ``/api/chat``: one JSON object per line, counts on the last, errors as ``{"error": "text"}``."""

    content_type = "application/x-ndjson"

    def __init__(self, plan: Plan, body: dict[str, Any]) -> None:
        self.plan = plan
        self.choices = 1
        limit = (body.get("options") or {}).get("num_predict")
        self.limit = limit if limit is not None and limit >= 0 else None
        self.marker = find_marker(body)
        self.prompt_tokens = prompt_tokens(body)
        self.head = {"model": plan.served or body["model"], "created_at": "2026-11-20T00:00:00.1Z"}

    def event(self, data: Any) -> bytes:
        """Encode one line."""
        return encode(data) + b"\n"

    def open(self) -> list[bytes]:
        return []

    def token(self, choice: int, delta: Mapping[str, Any], usage: dict[str, Any] | None) -> bytes:
        return self.event({**self.head, "message": {"role": "assistant", "content": "", **delta}, "done": False})

    def finish(self, choice: int, reason: str | None, usage: dict[str, Any] | None) -> bytes:
        return self.event({**self.head, "message": {"role": "assistant", "content": ""}, **self._end(reason, usage)})

    def _end(self, reason: str | None, usage: dict[str, Any] | None) -> dict[str, Any]:
        end: dict[str, Any] = {"done": True, "done_reason": "stop" if reason == "tool_calls" else reason}
        end |= {"total_duration": 1, "load_duration": 1}
        counts = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}
        # Ollama omits a count that is zero.
        return end | {name: usage[key] for name, key in counts.items() if usage and usage[key]}

    def alone(self, usage: dict[str, Any]) -> bytes:
        return b""

    def error(self, message: str, *, shape: str = "envelope") -> bytes:
        return self.event({"error": message})

    def done(self) -> bytes:
        return b""

    def body(self, messages: list[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None) -> bytes:
        return encode({**self.head, "message": messages[0], **self._end(reason, usage)})
