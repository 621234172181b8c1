"""The bytes of OpenAI's responses (wire.md 1.10) as a provider that has them sends them.

The terminal event is the one with the usage, so the course of an answer (``scripts``) ends as on the other wires: the
finish closes the items, the usage that would stand alone is kept, and ``done`` sends both.
"""

from collections.abc import Mapping
from typing import Any

from fakes.plan import Plan
from fakes.wires import CREATED, encode
from fakes.words import find_marker, prompt_tokens

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
Json = dict[str, Any]


class ResponsesWire:
    """``event: <type>``, ``data: {...}`` with the same type, and an empty line."""

    content_type = "text/event-stream; charset=utf-8"
    choices = 1
    wants_usage = True

    def __init__(self, plan: Plan, body: Json, number: int) -> None:
        self.plan = plan
        self.limit = body.get("max_output_tokens")
        self.marker = find_marker(body)
        self.prompt_tokens = prompt_tokens(body)
        self._number = number
        self._sequence = 0
        self._done = b""
        self._reason: str | None = "stop"
        self._usage: Json | None = None
        self._items: list[Json] = []
        self._calls: dict[int, int] = {}
        """The places of the calls by their numbers."""
        names = ("instructions", "max_output_tokens", "metadata", "safety_identifier", "prompt_cache_key", "user")
        self._head = {
            "id": f"resp_fake_{number}",
            "object": "response",
            "created_at": CREATED,
            "model": plan.served or body["model"],
            "store": body.get("store", True),
            "parallel_tool_calls": True,
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": body.get("tools", []),
            **{name: body[name] for name in names if name in body},
        }

    def open(self) -> list[bytes]:
        return [self._lifecycle("created", "in_progress"), self._lifecycle("in_progress", "in_progress")]

    def token(self, choice: int, delta: Mapping[str, Any], usage: Json | None) -> bytes:
        if "tool_calls" in delta:
            return b"".join(self._call(call) for call in delta["tool_calls"])
        kinds = {"content": "output_text", "refusal": "refusal"}
        (name,) = delta
        return self._speak(kinds.get(name, "reasoning_text"), delta[name])

    def finish(self, choice: int, reason: str | None, usage: Json | None) -> bytes:
        self._reason, self._usage = reason, usage
        frames = b""
        for index, item in enumerate(self._items):
            frames += self._close(index, item)
        return frames

    def alone(self, usage: Json) -> bytes:
        self._usage = usage
        return b""

    def error(self, message: str, *, shape: str = "envelope") -> bytes:
        error = {"code": "server_error", "message": message}
        if shape == "failed":
            usage = usage_of({"prompt_tokens": self.prompt_tokens, "completion_tokens": 1, "total_tokens": 0})
            return self._event("response.failed", response=self._response("failed") | {"error": error, "usage": usage})
        return self._event("error", **error, param=None)

    def done(self) -> bytes:
        if not self._done:
            status = "incomplete" if self._reason in INCOMPLETE else "completed"
            self._done = self._lifecycle(status, status)
        return self._done

    def body(self, messages: list[Json], reason: str | None, usage: Json | None) -> bytes:
        self._reason, self._usage = reason, usage
        for call in messages[0].get("tool_calls", ()):
            function = call["function"]
            item = {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": call["id"]}
            self._items.append(item | {"name": function["name"], "arguments": function["arguments"]})
        for name, kind in (("reasoning_content", "reasoning_text"), ("content", "output_text"), ("refusal", "refusal")):
            if text := messages[0].get(name):
                self._item(kind)
                self._items[-1]["content"][0]["refusal" if kind == "refusal" else "text"] = text
        status = "incomplete" if reason in INCOMPLETE else "completed"
        for item in self._items:
            item["status"] = status
        return encode(self._response(status))

    def _response(self, status: str) -> Json:
        reason = {"reason": INCOMPLETE[self._reason or ""]} if status == "incomplete" else None
        is_over = status not in {"in_progress", "queued"}
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "output": self._items if is_over else [],
            "usage": usage_of(self._usage) if is_over and self._usage else None,
        }

    def _lifecycle(self, name: str, status: str) -> bytes:
        return self._event(f"response.{name}", response=self._response(status))

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: ".encode() + encode(data) + b"\n\n"

    def _item(self, kind: str) -> Json:
        item: Json = {"id": f"item_{self._number}_{len(self._items)}", "status": "in_progress"}
        if kind == "reasoning_text":
            item |= {"type": "reasoning", "summary": [], "content": [{"type": kind, "text": ""}]}
        else:
            part: Json = {"type": kind, "refusal": ""} if kind == "refusal" else {"type": kind, "text": ""}
            part |= {} if kind == "refusal" else {"annotations": [], "logprobs": []}
            item |= {"type": "message", "role": "assistant", "content": [part]}
        self._items.append(item)
        return item

    def _added(self, item: Json) -> bytes:
        empty = {"content": []} if "content" in item else {}
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item={**item, **empty})

    def _speak(self, kind: str, text: str) -> bytes:
        frames = b""
        is_open = bool(self._items) and self._items[-1].get("content", [{}])[0].get("type") == kind
        if not is_open:
            item = self._item(kind)
            frames += self._added(item)
            frames += self._part("response.content_part.added", part=dict(item["content"][0]))
        part = self._items[-1]["content"][0]
        part["refusal" if kind == "refusal" else "text"] += text
        logprobs = {"logprobs": []} if kind == "output_text" else {}
        return frames + self._part(f"response.{kind}.delta", delta=text, **logprobs)

    def _part(self, event: str, index: int | None = None, **fields: Any) -> bytes:
        place = len(self._items) - 1 if index is None else index
        item_id = self._items[place]["id"]
        return self._event(event, item_id=item_id, output_index=place, content_index=0, **fields)

    def _call(self, call: Json) -> bytes:
        frames = b""
        function = call["function"]
        if call["index"] not in self._calls:
            self._calls[call["index"]] = len(self._items)
            item = {"id": f"item_{self._number}_{len(self._items)}", "type": "function_call", "status": "in_progress"}
            self._items.append(item | {"call_id": call["id"], "name": function["name"], "arguments": ""})
            frames += self._added(self._items[-1])
        place = self._calls[call["index"]]
        item = self._items[place]
        if function["arguments"]:
            item["arguments"] += function["arguments"]
            fields = {"item_id": item["id"], "output_index": place, "delta": function["arguments"]}
            frames += self._event("response.function_call_arguments.delta", **fields)
        return frames

    def _close(self, index: int, item: Json) -> bytes:
        item["status"] = "incomplete" if self._reason in INCOMPLETE else "completed"
        frames = b""
        if item["type"] == "function_call":
            fields = {"item_id": item["id"], "output_index": index, "arguments": item["arguments"]}
            frames += self._event("response.function_call_arguments.done", **fields)
        else:
            part = item["content"][0]
            name = "refusal" if part["type"] == "refusal" else "text"
            logprobs = {"logprobs": []} if part["type"] == "output_text" else {}
            frames += self._part(f"response.{part['type']}.done", index, **{name: part[name]}, **logprobs)
            frames += self._part("response.content_part.done", index, part=part)
        return frames + self._event("response.output_item.done", output_index=index, item=item)


def usage_of(usage: Json) -> Json:
    """Make this wire's usage of one of chat completions."""
    prompt, output = usage.get("prompt_tokens_details", {}), usage.get("completion_tokens_details", {})
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens", 0),
            "cache_write_tokens": prompt.get("cache_write_tokens", 0),
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": output.get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }
