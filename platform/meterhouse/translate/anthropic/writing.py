"""OpenAI's answers as Anthropic's, for a client that speaks its wire: whole, and streamed.

``MessagesWriter`` takes the frames of a chat stream and gives events: blocks one after the other, each begun and ended,
then ``message_delta`` with the reason and the usage, then ``message_stop``.

Invariant: pure. Not here: the events of Anthropic itself, which pass as they are.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from meterhouse.errors import GatewayError
from meterhouse.translate.anthropic.words import STOP_REASONS, error_event, event, to_usage

_DATA = b"data: "
_DONE = b"[DONE]"
_MESSAGE_PREFIX = "msg_"


@dataclass(slots=True)
class _Call:
    """A tool call whose pieces wait until the one before it is over."""

    id: str
    name: str
    arguments: str = ""
    waiting: str = ""


def to_message(body: bytes) -> bytes:
    """Return the message for a whole ``chat.completion``."""
    answer = msgspec.json.decode(body)
    choices = answer.get("choices") or [{}]
    said = choices[0].get("message") or {}
    content: list[dict[str, Any]] = []
    if thought := _text(said.get("reasoning_content")):
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text := _text(said.get("content")) or _text(said.get("refusal")):
        content.append({"type": "text", "text": text})
    content += [_whole_call(call) for call in said.get("tool_calls") or ()]
    message = {
        **_head(answer),
        "content": content,
        "stop_reason": STOP_REASONS.get(choices[0].get("finish_reason"), "end_turn"),
        "usage": to_usage(answer.get("usage")),
    }
    return msgspec.json.encode(message)


class MessagesWriter:
    """Turns one streamed answer's frames into events; one for each answer."""

    write_body = staticmethod(to_message)

    def __init__(self) -> None:
        self._has_begun = False
        self._blocks = 0
        """Blocks that were begun; the last of them is open while ``_kind`` says so."""
        self._kind = ""
        self._calls: list[_Call] = []
        self._places: dict[int, int] = {}
        self._current = 0
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None

    def frames(self, data: bytes) -> bytes:
        """Turn whole events, one after the other, into events of Anthropic's; comments stay."""
        return b"".join(self._frame(part) for part in data.split(b"\n\n") if part)

    def fail(self, error: GatewayError, request_id: str) -> bytes:
        """Return the event that ends a stream with an error."""
        return error_event(error, request_id)

    def _frame(self, part: bytes) -> bytes:
        if not part.startswith(_DATA):
            return part + b"\n\n"
        data = part.removeprefix(_DATA)
        if data == _DONE:
            return self._end()
        return b"".join(self._events(msgspec.json.decode(data)))

    def _events(self, chunk: dict[str, Any]) -> list[bytes]:
        events: list[bytes] = []
        if not self._has_begun:
            self._has_begun = True
            message = {**_head(chunk), "content": [], "stop_reason": None, "usage": to_usage(None)}
            events.append(event("message_start", {"message": message}))
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                events += self._said(choice.get("delta") or {})
                self._reason = choice.get("finish_reason") or self._reason
        return events

    def _said(self, delta: dict[str, Any]) -> list[bytes]:
        events: list[bytes] = []
        if thought := _text(delta.get("reasoning_content")):
            events += self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events.append(self._delta({"type": "thinking_delta", "thinking": thought}))
        if text := _text(delta.get("content")) or _text(delta.get("refusal")):
            events += self._open("text", {"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": text}))
        for call in delta.get("tool_calls") or ():
            events += self._called(call)
        return events

    def _called(self, piece: dict[str, Any]) -> list[bytes]:
        function = piece.get("function") or {}
        index = piece.get("index", len(self._places))
        place = self._places.get(index)
        if place is None:
            place = self._places[index] = len(self._calls)
            self._calls.append(_Call(piece.get("id") or "", function.get("name") or ""))
        self._calls[place].waiting += function.get("arguments") or ""
        return self._advance(is_last=False)

    def _advance(self, *, is_last: bool) -> list[bytes]:
        """Say of the calls what can be said: of one what came, of the next once the one before it is whole."""
        events: list[bytes] = []
        while self._current < len(self._calls):
            call = self._calls[self._current]
            kind = f"call {self._current}"
            if self._kind != kind:
                events += self._open(kind, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            if call.waiting:
                events.append(self._delta({"type": "input_json_delta", "partial_json": call.waiting}))
                call.arguments += call.waiting
                call.waiting = ""
            has_next = self._current + 1 < len(self._calls)
            if not has_next or not (is_last or _is_whole(call.arguments)):
                break
            self._current += 1
        return events

    def _open(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        """Begin a block of a kind, unless one is open; whatever else is open ends."""
        if self._kind == kind:
            return []
        if self._kind == f"call {self._current}":
            self._current += 1  # whatever else is said ends a call
        events = self._close()
        self._kind = kind
        events.append(event("content_block_start", {"index": self._blocks, "content_block": block}))
        self._blocks += 1
        return events

    def _close(self) -> list[bytes]:
        if not self._kind:
            return []
        self._kind = ""
        return [event("content_block_stop", {"index": self._blocks - 1})]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event("content_block_delta", {"index": self._blocks - 1, "delta": delta})

    def _end(self) -> bytes:
        delta = {"stop_reason": STOP_REASONS.get(self._reason or "", "end_turn"), "stop_sequence": None}
        ending = event("message_delta", {"delta": delta, "usage": to_usage(self._usage)})
        return b"".join([*self._advance(is_last=True), *self._close(), ending, event("message_stop", {})])


def _head(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what a message has whatever it says."""
    completion_id = str(answer.get("id") or "")
    return {
        "id": _MESSAGE_PREFIX + completion_id.removeprefix("chatcmpl-"),
        "type": "message",
        "role": "assistant",
        "model": answer.get("model") or "",
        "stop_sequence": None,
    }


def _whole_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        found = msgspec.json.decode(function.get("arguments") or "{}")
    except msgspec.DecodeError:
        found = None
    # An input is an object; what a model wrote that is none is kept, for the client to see.
    arguments = found if isinstance(found, dict) else {"arguments": function.get("arguments")}
    return {"type": "tool_use", "id": call.get("id") or "", "name": function.get("name") or "", "input": arguments}


def _is_whole(arguments: str) -> bool:
    try:
        msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return False
    return True


def _text(value: object) -> str:
    """Return a text: itself, or that of a list of parts."""
    if isinstance(value, list):
        return "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return value if isinstance(value, str) else ""
