"""The bytes of an answer on Anthropic's wire: named events whose blocks come one after the other, and messages.

The script speaks in the deltas of chat completions (``scripts``); what of them begins a block, and which block they
go into, is decided here. Usage objects are turned from OpenAI's shape into Anthropic's.
"""

import json
from collections.abc import Mapping
from typing import Any

from fakes.plan import Plan
from fakes.wires import encode
from fakes.words import find_marker, prompt_tokens

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
SIGNATURE = "c2lnbmF0dXJl"


class AnthropicWire:
    """``/v1/messages``."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, plan: Plan, body: dict[str, Any], number: int) -> None:
        self.plan = plan
        self.choices = 1
        self.limit = body.get("max_tokens")
        self.marker = find_marker(body)
        self.prompt_tokens = prompt_tokens(body)
        self.message = {
            "id": f"msg_fake_{number}",
            "type": "message",
            "role": "assistant",
            "model": plan.served or body["model"],
        }
        self.kinds: list[str] = []
        self.is_open = False

    def event(self, name: str, **data: Any) -> bytes:
        """Encode one event."""
        return f"event: {name}\ndata: ".encode() + encode({"type": name, **data}) + b"\n\n"

    def usage(self, usage: Mapping[str, Any] | None) -> dict[str, Any]:
        """Turn a usage object into Anthropic's; there, what a cache had to do with is no part of the input."""
        if usage is None:
            return {}
        details = usage.get("prompt_tokens_details") or {}
        cached, written = details.get("cached_tokens", 0), details.get("cache_write_tokens", 0)
        counts = {"output_tokens": usage["completion_tokens"]}
        if "prompt_tokens_details" in usage:
            counts |= {"cache_read_input_tokens": cached, "cache_creation_input_tokens": written}
        reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        more = {"output_tokens_details": {"thinking_tokens": reasoning}} if reasoning else {}
        prompt = usage["prompt_tokens"]
        return {"input_tokens": prompt - cached - written if isinstance(prompt, int) else prompt, **counts, **more}

    def open(self) -> list[bytes]:
        # As Anthropic does: what the input comes to is known at once, and a first token is counted.
        counts = {} if self.plan.usage == "none" else {"input_tokens": self.prompt_tokens, "output_tokens": 1}
        message = {**self.message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": counts}
        return [self.event("message_start", message=message), self.event("ping")]

    def token(self, choice: int, delta: Mapping[str, Any], usage: dict[str, Any] | None) -> bytes:
        if calls := delta.get("tool_calls"):
            return b"".join(self.call(call) for call in calls)
        if "content" in delta or "refusal" in delta:
            text = delta.get("content") or delta.get("refusal") or ""
            return self.begin("text", {"type": "text", "text": ""}) + self.delta(type="text_delta", text=text)
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        block = {"type": "thinking", "thinking": "", "signature": ""}
        return self.begin("thinking", block) + self.delta(type="thinking_delta", thinking=thought)

    def call(self, call: dict[str, Any]) -> bytes:
        """Encode a piece of a call; calls that come mixed stay open beside one another."""
        kind = f"call {call['index']}"
        opened = b""
        if kind not in self.kinds:
            block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}
            opened = self.begin(kind, block)
        arguments = call["function"]["arguments"]
        index = self.kinds.index(kind)
        delta = {"type": "input_json_delta", "partial_json": arguments}
        return opened + (self.event("content_block_delta", index=index, delta=delta) if arguments else b"")

    def begin(self, kind: str, block: dict[str, Any]) -> bytes:
        """Begin a block, unless the last one is of its kind."""
        if self.kinds and self.kinds[-1] == kind:
            return b""
        ended = b"" if kind.startswith("call") and self.kinds and self.kinds[-1].startswith("call") else self.stop()
        self.kinds.append(kind)
        self.is_open = True
        return ended + self.event("content_block_start", index=len(self.kinds) - 1, content_block=block)

    def delta(self, **delta: Any) -> bytes:
        """Encode a piece of the last block."""
        return self.event("content_block_delta", index=len(self.kinds) - 1, delta=delta)

    def stop(self) -> bytes:
        """End what is open: a thought with its signature, calls all at once."""
        if not self.is_open:
            return b""
        self.is_open = False
        last = self.kinds[-1]
        signed = self.delta(type="signature_delta", signature=SIGNATURE) if last == "thinking" else b""
        ended = [i for i, kind in enumerate(self.kinds) if kind.startswith("call")] if last.startswith("call") else []
        stops = (self.event("content_block_stop", index=i) for i in ended or [len(self.kinds) - 1])
        return signed + b"".join(stops)

    def finish(self, choice: int, reason: str | None, usage: dict[str, Any] | None) -> bytes:
        delta = {"stop_reason": STOP_REASONS.get(reason or "", reason), "stop_sequence": None}
        return self.stop() + self.event("message_delta", delta=delta, usage=self.usage(usage))

    def alone(self, usage: dict[str, Any]) -> bytes:
        return b""

    def error(self, message: str, *, shape: str = "envelope") -> bytes:
        kind = "overloaded_error" if shape == "event" else "api_error"
        return self.event("error", error={"type": kind, "message": message})

    def done(self) -> bytes:
        return self.event("message_stop")

    def body(self, messages: list[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None) -> bytes:
        said = messages[0]
        content: list[dict[str, Any]] = []
        if thought := said.get("reasoning_content") or said.get("reasoning"):
            content.append({"type": "thinking", "thinking": thought, "signature": SIGNATURE})
        if text := said.get("content") or said.get("refusal"):
            content.append({"type": "text", "text": text})
        for call in said.get("tool_calls") or ():
            arguments = json.loads(call["function"]["arguments"])
            content.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments})
        stop_reason = STOP_REASONS.get(reason or "", reason)
        answer = {**self.message, "content": content, "stop_reason": stop_reason, "stop_sequence": None}
        return encode({**answer, "usage": self.usage(usage)})
