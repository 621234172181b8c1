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
from meterhouse.translate.said import (
    arguments_in,
    choices_of,
    index_in,
    object_in,
    objects_in,
    read_answer,
    text_in,
    word_in,
)

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
    answer = read_answer(body)
    choice = next(iter(choices_of(answer)), {})
    said = object_in(choice.get("message"))
    content: list[dict[str, Any]] = []
    if thought := text_in(said.get("reasoning_content")):
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text := text_in(said.get("content")) or text_in(said.get("refusal")):
        content.append({"type": "text", "text": text})
    content += [_whole_call(call) for call in objects_in(said.get("tool_calls"))]
    message = {
        **_head(answer),
        "content": content,
        "stop_reason": STOP_REASONS.get(word_in(choice.get("finish_reason")) or "", "end_turn"),
        "usage": to_usage(object_in(answer.get("usage"))),
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
        return b"".join(self._events(read_answer(data)))

    def _events(self, chunk: dict[str, Any]) -> list[bytes]:
        events: list[bytes] = []
        if not self._has_begun:
            self._has_begun = True
            message = {**_head(chunk), "content": [], "stop_reason": None, "usage": to_usage(None)}
            events.append(event("message_start", {"message": message}))
        self._usage = object_in(chunk.get("usage")) or self._usage
        for choice in choices_of(chunk):
            if index_in(choice.get("index")) == 0:
                events += self._said(object_in(choice.get("delta")))
                self._reason = word_in(choice.get("finish_reason")) or self._reason
        return events

    def _said(self, delta: dict[str, Any]) -> list[bytes]:
        events: list[bytes] = []
        if thought := text_in(delta.get("reasoning_content")):
            events += self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events.append(self._delta({"type": "thinking_delta", "thinking": thought}))
        if text := text_in(delta.get("content")) or text_in(delta.get("refusal")):
            events += self._open("text", {"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": text}))
        for call in objects_in(delta.get("tool_calls")):
            events += self._called(call)
        return events

    def _called(self, piece: dict[str, Any]) -> list[bytes]:
        function, index = object_in(piece.get("function")), piece.get("index")
        if not isinstance(index, int):
            index = len(self._places)
        place = self._places.get(index)
        if place is None:
            place = self._places[index] = len(self._calls)
            self._calls.append(_Call(text_in(piece.get("id")), text_in(function.get("name"))))
        self._calls[place].waiting += arguments_in(function.get("arguments"))
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
        "model": text_in(answer.get("model")),
        "stop_sequence": None,
    }


def _whole_call(call: dict[str, Any]) -> dict[str, Any]:
    function = object_in(call.get("function"))
    said = arguments_in(function.get("arguments"))
    try:
        found = msgspec.json.decode(said or "{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    # An input is an object; what a model wrote that is none is kept, for the client to see.
    arguments = found if isinstance(found, dict) else {"arguments": said}
    name = text_in(function.get("name"))
    return {"type": "tool_use", "id": text_in(call.get("id")), "name": name, "input": arguments}


def _is_whole(arguments: str) -> bool:
    try:
        msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
