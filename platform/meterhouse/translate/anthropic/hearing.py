"""Anthropic's answers as OpenAI's: whole, and streamed event by event.

The usage of ``message_start`` goes out beside the first chunk: it is what is known of an answer that breaks. Thoughts
are in ``reasoning_content``; what Anthropic wants back unchanged of them (signatures, redacted thoughts) is in
``thinking_blocks``, where ``asking`` looks for it.

Invariant: pure; the same events give the same payloads. Not here: the connection, the splitting of events.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.errors import UpstreamDown
from meterhouse.translate.anthropic.words import ERROR_STATUSES, FINISH_REASONS, from_usage
from meterhouse.translate.said import format_arguments, text_in

DONE = b"[DONE]"
_TIERS = {"standard": "default", "priority": "priority"}


class _Block(msgspec.Struct):
    """A block of content, at its start or whole."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")


class _Error(msgspec.Struct):
    type: str = "api_error"
    message: str = ""


class _Message(msgspec.Struct):
    """An answer: the head of a streamed one, or all of it."""

    type: str = "message"
    model: str = ""
    content: list[_Block] = msgspec.field(default_factory=list)
    stop_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: _Error | None = None


class _Delta(msgspec.Struct):
    """A piece of a block, or how the answer ended."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: dict[str, Any] | None = None
    error: _Error | None = None


@dataclass(slots=True)
class _Open:
    """A block that has begun and not ended."""

    block: _Block
    call_index: int = 0
    thinking: list[str] = field(default_factory=list)
    signature: str = ""
    has_arguments: bool = False


_EVENTS = msgspec.json.Decoder(_Event)
_MESSAGES = msgspec.json.Decoder(_Message)


def from_message(body: bytes, *, completion_id: str, created_seconds: int, model: str) -> bytes:
    """Return the ``chat.completion`` for a whole answer; an error as one in OpenAI's envelope.

    Raises:
        UpstreamDown: it is garbage, or not a message that ended.
    """
    try:
        said = _MESSAGES.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _garbage(str(error)) from error
    if said.error is not None:
        return _failure(said.error)
    if said.type != "message" or said.stop_reason is None:
        raise UpstreamDown("The provider anthropic did not complete its answer.", detail="no message that ended")
    text = "".join(block.text or "" for block in said.content if block.type == "text")
    calls = [block for block in said.content if block.type == "tool_use"]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    thoughts = [block for block in said.content if block.type in {"thinking", "redacted_thinking"}]
    if thoughts:
        message["reasoning_content"] = "".join(block.thinking or "" for block in thoughts)
        message["thinking_blocks"] = [_thought(block, block.thinking or "", block.signature) for block in thoughts]
    if calls:
        message["tool_calls"] = [_call(block.id, block.name, format_arguments(block.input)) for block in calls]
    usage = said.usage or {}
    out: dict[str, Any] = {
        "id": completion_id,
        "object": "chat.completion",
        "created": created_seconds,
        "model": said.model or model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": FINISH_REASONS.get(said.stop_reason, "stop"),
            }
        ],
    }
    if found := from_usage(usage):
        out["usage"] = found
    if tier := _TIERS.get(text_in(usage.get("service_tier"))):
        out["service_tier"] = tier
    return msgspec.json.encode(out)


class HeardStream:
    """Turns the data of a stream's events into chunk payloads (JSON without ``data:``).

    A complete stream ends in a chunk with ``finish_reason``, one with the usage, and ``[DONE]``. An error becomes a
    payload with an error in OpenAI's envelope, and ends the stream too.
    """

    def __init__(self, *, completion_id: str, created_seconds: int, model: str) -> None:
        self._head: dict[str, Any] = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": created_seconds,
            "model": model,
        }
        self._open: dict[int, _Open] = {}
        self._calls = 0
        self._usage: dict[str, Any] = {}
        self._is_over = False

    def take(self, data: bytes) -> list[bytes]:
        """Take the data of one event; returns the payloads that it gives, which may be none.

        Raises:
            UpstreamDown: it is no event of Anthropic's.
        """
        try:
            said = _EVENTS.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _garbage(str(error)) from error
        return [] if self._is_over else list(self._payloads(said))

    def _payloads(self, said: _Event) -> Iterator[bytes]:
        match said.type:
            case "message_start" if said.message is not None:
                yield self._begin(said.message)
            case "content_block_start" if said.content_block is not None:
                yield from self._start(said.index, said.content_block)
            case "content_block_delta" if said.delta is not None:
                yield from self._grow(said.index, said.delta)
            case "content_block_stop":
                yield from self._stop(said.index)
            case "message_delta":
                yield from self._finish(said)
            case "message_stop":
                self._is_over = True
                yield DONE
            case "error":
                self._is_over = True
                yield _failure(said.error or _Error())
            case _:
                pass  # a ping, or what Anthropic may add to a version of its wire

    def _begin(self, message: _Message) -> bytes:
        usage = message.usage or {}
        self._usage = dict(usage)
        if message.model:
            self._head["model"] = message.model
        if tier := _TIERS.get(text_in(usage.get("service_tier"))):
            self._head["service_tier"] = tier
        chunk = self._chunk({"role": "assistant", "content": ""})
        if found := from_usage(usage):
            chunk["usage"] = found
        return msgspec.json.encode(chunk)

    def _start(self, index: int, block: _Block) -> Iterator[bytes]:
        opened = self._open[index] = _Open(block, signature=block.signature or "")
        if block.type == "tool_use":
            opened.call_index = self._calls
            self._calls += 1
            call = {"index": opened.call_index, **_call(block.id, block.name, "")}
            yield self._encode({"tool_calls": [call]})
        elif block.type == "redacted_thinking":
            yield self._encode({"thinking_blocks": [_thought(block, "", None)]})
        elif block.text:
            yield self._encode({"content": block.text})
        elif block.thinking:
            opened.thinking.append(block.thinking)
            yield self._encode({"reasoning_content": block.thinking})

    def _grow(self, index: int, delta: _Delta) -> Iterator[bytes]:
        opened = self._open.get(index)
        if opened is None:
            raise _garbage("a piece of a block that has not begun")
        if delta.text:
            yield self._encode({"content": delta.text})
        elif delta.thinking:
            opened.thinking.append(delta.thinking)
            yield self._encode({"reasoning_content": delta.thinking})
        elif delta.signature:
            opened.signature += delta.signature
        elif delta.partial_json and opened.block.type == "tool_use":
            opened.has_arguments = True
            yield self._piece(opened, delta.partial_json)

    def _stop(self, index: int) -> Iterator[bytes]:
        opened = self._open.pop(index, None)
        if opened is None:
            return
        if opened.block.type == "tool_use" and not opened.has_arguments:
            yield self._piece(opened, format_arguments(opened.block.input))
        elif opened.signature:
            # Whole, because a signature is of its own thought and of no other.
            thinking = "".join(opened.thinking)
            yield self._encode({"thinking_blocks": [_thought(opened.block, thinking, opened.signature)]})

    def _finish(self, said: _Event) -> Iterator[bytes]:
        self._usage |= {name: value for name, value in (said.usage or {}).items() if value is not None}
        reason = said.delta.stop_reason if said.delta is not None else None
        if reason is not None:
            yield self._encode({}, FINISH_REASONS.get(reason, "stop"))
        if found := from_usage(self._usage):
            yield msgspec.json.encode({**self._head, "choices": [], "usage": found})

    def _piece(self, opened: _Open, arguments: str) -> bytes:
        return self._encode({"tool_calls": [{"index": opened.call_index, "function": {"arguments": arguments}}]})

    def _encode(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return msgspec.json.encode(self._chunk(delta, finish_reason))

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


def _failure(error: _Error) -> bytes:
    status = ERROR_STATUSES.get(error.type, 500)
    body = {"message": error.message, "type": error.type, "param": None, "code": error.type, "status": status}
    return msgspec.json.encode({"error": body})


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _thought(block: _Block, thinking: str, signature: str | None) -> dict[str, Any]:
    if block.type == "redacted_thinking":
        return {"type": "redacted_thinking", "data": block.data or ""}
    return {"type": "thinking", "thinking": thinking, "signature": signature or ""}


def _garbage(detail: str) -> UpstreamDown:
    return UpstreamDown("The provider anthropic answered with garbage.", detail=detail, code="upstream_protocol_error")
