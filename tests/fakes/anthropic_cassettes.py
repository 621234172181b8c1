"""Answers and errors of Anthropic's wire, written by hand from its documentation and its SDK (wire.md 1.11)."""

import json
from typing import Any

MODEL = "served"
CACHED = {"input_tokens": 3, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 4}
"""9 tokens of input in OpenAI's count."""


def event(name: str, **data: Any) -> str:
    """Write one event; the blank line is the cassette's."""
    return f"event: {name}\ndata: " + json.dumps({"type": name, **data}, separators=(",", ":"))


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[str]:
    """Write a block: its start, its pieces, its end."""
    return [
        event("content_block_start", index=index, content_block=content),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def stream(*blocks: list[str], reason: str, output_tokens: int, **more: Any) -> str:
    """Write a streamed answer, with a ping where Anthropic sends one."""
    usage = {**CACHED, "output_tokens": 1, "service_tier": "standard"}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [], "usage": usage}
    return "\n\n".join(
        [
            event("message_start", message={**message, "stop_reason": None, "stop_sequence": None}),
            event("ping"),
            *(line for lines in blocks for line in lines),
            event(
                "message_delta",
                delta={"stop_reason": reason, "stop_sequence": None},
                usage={"output_tokens": output_tokens, **more},
            ),
            event("message_stop"),
        ]
    )


def whole(content: list[dict[str, Any]], reason: str, output_tokens: int, **more: Any) -> str:
    """Write a message."""
    usage = {**CACHED, "output_tokens": output_tokens, "service_tier": "standard", **more}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": content}
    return json.dumps({**message, "stop_reason": reason, "stop_sequence": None, "usage": usage})


THOUGHT = {"output_tokens_details": {"thinking_tokens": 3}}
TEXT = [
    {"type": "text", "text": ""},
    {"type": "text_delta", "text": "Hi"},
    {"type": "text_delta", "text": " there"},
]
THINKING = [
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "Let me"},
    {"type": "thinking_delta", "thinking": " see"},
    {"type": "signature_delta", "signature": "c2ln"},
]
CALL = [
    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
    {"type": "input_json_delta", "partial_json": ""},
    {"type": "input_json_delta", "partial_json": '{"a":'},
    {"type": "input_json_delta", "partial_json": "1}"},
]
PLAIN_STREAM = stream(block(0, *TEXT), reason="end_turn", output_tokens=2)
PLAIN_WHOLE = whole([{"type": "text", "text": "Hi there"}], "end_turn", 2)
THINKING_STREAM = stream(block(0, *THINKING), block(1, *TEXT), reason="max_tokens", output_tokens=5, **THOUGHT)
THINKING_WHOLE = whole(
    [{"type": "thinking", "thinking": "Let me see", "signature": "c2ln"}, {"type": "text", "text": "Hi there"}],
    "max_tokens",
    5,
    **THOUGHT,
)
CALL_STREAM = stream(block(0, *CALL), reason="tool_use", output_tokens=6)
CALL_WHOLE = whole([{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}], "tool_use", 6)


def error(kind: str, message: str = "No") -> str:
    """Write an error."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})
