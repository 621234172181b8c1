"""The requests and answers of the benchmark: the same bytes for every server under test.

Invariant: a streamed answer is 20 tokens, one event each, with usage; a JSON answer has the same text.
"""

import json
from typing import Any

TOKENS = 20
MODEL = "bench-model"
_LINE = "The river runs past the mill, under the stone bridge and out to the sea. "
STREAM_END = b"\r\n0\r\n\r\n"
_HEAD = {"id": "chatcmpl-bench", "created": 1795132800, "model": MODEL}
_USAGE = {"prompt_tokens": 12, "completion_tokens": TOKENS, "total_tokens": 12 + TOKENS}


def request_body(model: str, *, is_streamed: bool, kilobytes: int = 0, max_tokens: int = 100) -> bytes:
    """Encode what a client sends; a number of kilobytes is how long the prompt is made."""
    asked = "Tell me about the river that runs through the town."
    asked += (_LINE * (kilobytes * 1024 // len(_LINE) + 1))[: kilobytes * 1024]
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant. Answer in one short paragraph."},
            {"role": "user", "content": asked},
        ],
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "stream": is_streamed,
    }
    if is_streamed:
        body["stream_options"] = {"include_usage": True}
    return _encode(body)


def json_answer() -> bytes:
    """Encode a whole HTTP answer that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": " river" * TOKENS}, "finish_reason": "stop"}
    body = _encode({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE})
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def stream_answer() -> list[bytes]:
    """Encode a streamed HTTP answer: the pieces that are written one by one."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = [_chunk({"role": "assistant", "content": " river"}, None)]
    pieces += [_chunk({"content": " river"}, None) for _ in range(TOKENS - 1)]
    pieces.append(_chunk({}, "stop"))
    return [head + pieces[0], *pieces[1:], _usage_end(TOKENS)]


def stream_end(tokens: int) -> bytes:
    """Encode the end of a streamed HTTP answer that had so many tokens, from the last choice's end on."""
    return _chunk({}, "stop") + _usage_end(tokens)


def _usage_end(tokens: int) -> bytes:
    used = {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens}
    usage = _event({**_HEAD, "object": "chat.completion.chunk", "choices": [], "usage": used})
    return usage + _frame(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _chunk(delta: dict[str, Any], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _event({**_HEAD, "object": "chat.completion.chunk", "choices": [choice], "usage": None})


def _event(data: dict[str, Any]) -> bytes:
    return _frame(b"data: " + _encode(data) + b"\n\n")


def _frame(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
