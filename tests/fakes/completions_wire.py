"""The bytes of a legacy completion: chat's chunks with ``text`` in place of a delta, under other names."""

from collections.abc import Mapping
from typing import Any

from fakes.plan import Plan
from fakes.wires import OpenAiWire, encode


class CompletionsWire(OpenAiWire):
    """``POST /v1/completions``."""

    def __init__(self, plan: Plan, body: dict[str, Any], number: int) -> None:
        super().__init__(plan, body, number)
        prompt = body.get("prompt")
        self.choices *= len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        self.head |= {"id": f"cmpl-fake-{number}"}

    def chunk(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        rows = [
            {
                "index": row["index"],
                "text": row["delta"].get("content", ""),
                "logprobs": None,
                "finish_reason": row["finish_reason"],
            }
            for row in choices
        ]
        return super().chunk(rows, **extra) | {"object": "text_completion"}

    def open(self) -> list[bytes]:
        return []

    def token(self, choice: int, delta: Mapping[str, Any], usage: dict[str, Any] | None) -> bytes:
        return super().token(choice, {"content": delta.get("content", "")}, usage)

    def body(self, messages: list[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None) -> bytes:
        choices = [
            {"index": index, "text": message["content"] or "", "logprobs": None, "finish_reason": reason}
            for index, message in enumerate(messages)
        ]
        answer = {**self.head, "object": "text_completion", "choices": choices}
        return encode(answer | ({"usage": usage} if usage else {}))
