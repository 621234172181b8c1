"""Three simple chat wires as OpenAI's, and OpenAI's answers as theirs.

``POST /api/chat``: ``{messages, ...}`` > events ``{"content": "..."}`` and ``[DONE]``. ``POST /chat``: ``{message}`` >
``{"response": "..."}``. ``POST /stream``: ``{message}`` > events named ``message`` with ``{"content", "done"}``.

Invariant: pure; whatever else OpenAI's request knows can be asked for too, and is checked where OpenAI's is. Every
event of an answer has ``content``, if only an empty one. Not here: the answer itself, its limits, its record.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.translate.said import choices_of, object_in, read_answer, text_in, word_in

DEFAULT_TEMPERATURE = 0.7
DONE = b"[DONE]"

_Raws = dict[str, Raw]
_fields_decoder = msgspec.json.Decoder(_Raws)
_DATA = b"data: "
_EMPTY = (b"", b"null", b'""')


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in OpenAI's shape, and which of its fields the caller left out."""

    body: bytes
    defaulted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SimpleChat:
    """One of the wires: how a request is read, how an answer's frames, or its body, are written."""

    path: str
    read: Callable[[bytes, Callable[[], str]], Asked]
    """Gets the body, and what to call for the name of a model when none is given; raises Malformed."""
    write_event: Callable[[bytes], bytes]
    """Turns the data of one of OpenAI's events into an event of this wire; empty: there is nothing to say."""
    write_body: Callable[[bytes], bytes]
    """Turns a whole answer of OpenAI's into one of this wire."""

    def frames(self, data: bytes) -> bytes:
        """Turn whole events, one after the other, into events of this wire; comments stay."""
        return b"".join(
            self.write_event(event.removeprefix(_DATA)) if event.startswith(_DATA) else event + b"\n\n"
            for event in data.split(b"\n\n")
            if event
        )


def read_messages(body: bytes, default_model: Callable[[], str]) -> Asked:
    """Read ``{messages, model?, ...}`` as a request for a stream."""
    fields = _fields_of(body)
    return _finish(fields, default_model, is_streamed=True)


def read_message(body: bytes, default_model: Callable[[], str]) -> Asked:
    """Read ``{message, temperature = 0.7, ...}`` as a request for a body."""
    return _read_message(body, default_model, is_streamed=False)


def read_streamed_message(body: bytes, default_model: Callable[[], str]) -> Asked:
    """Read ``{message, temperature = 0.7, ...}`` as a request for a stream."""
    return _read_message(body, default_model, is_streamed=True)


def _read_message(body: bytes, default_model: Callable[[], str], *, is_streamed: bool) -> Asked:
    fields = _fields_of(body)
    said = fields.pop("message", None)
    if said is None and "messages" in fields:
        return _finish(fields, default_model, is_streamed=is_streamed)
    if said is None or bytes(said) in _EMPTY:
        raise Malformed("Missing required parameter: 'message'.", param="message", code="missing_required_parameter")
    if not bytes(said).startswith(b'"'):
        raise Malformed("Invalid value for 'message': expected a text.", param="message", code="invalid_type")
    fields["messages"] = Raw(b'[{"role":"user","content":' + bytes(said) + b"}]")
    defaulted = frozenset({"temperature"} - fields.keys())
    if defaulted:
        fields["temperature"] = Raw(msgspec.json.encode(DEFAULT_TEMPERATURE))
    asked = _finish(fields, default_model, is_streamed=is_streamed)
    return Asked(asked.body, defaulted)


def _fields_of(body: bytes) -> _Raws:
    try:
        fields = _fields_decoder.decode(body)
    except msgspec.ValidationError:
        raise Malformed("The request body must be a JSON object.", code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if bytes(fields.get("n", Raw(b"1"))) not in {b"1", b"null"}:
        raise Malformed("This endpoint gives one answer; n must be 1.", param="n", code="unsupported_value")
    return fields


def _finish(fields: _Raws, default_model: Callable[[], str], *, is_streamed: bool) -> Asked:
    if bytes(fields.get("model", Raw(b""))) in _EMPTY:
        fields["model"] = Raw(msgspec.json.encode(default_model()))
    fields["stream"] = Raw(b"true" if is_streamed else b"false")
    fields.pop("stream_options", None)
    return Asked(msgspec.json.encode(fields))


def write_content(data: bytes) -> bytes:
    """Write ``{"content": ...}``, with the reasoning, the tool calls or an early end beside it where there are any."""
    if data == DONE:
        return _DATA + DONE + b"\n\n"
    chunk = read_answer(data)
    if chunk.get("error"):
        return _event(chunk)
    return b"".join(_event(said) for choice in choices_of(chunk) if (said := _said(choice)))


def write_named(data: bytes) -> bytes:
    """Write an event named ``message`` with ``{"content": ..., "done": ...}``; an error's name is ``error``."""
    if data == DONE:
        return b"event: message\n" + _event({"content": "", "done": True})
    chunk = read_answer(data)
    if chunk.get("error"):
        return b"event: error\n" + _event(chunk)
    found = [said for choice in choices_of(chunk) if (said := _said(choice))]
    return b"".join(b"event: message\n" + _event({**said, "done": False}) for said in found)


def write_response(body: bytes) -> bytes:
    """Write ``{"response": ...}``, with the reasoning beside it where there is some."""
    for choice in choices_of(read_answer(body)):
        said = _said({"delta": choice.get("message"), "finish_reason": choice.get("finish_reason")})
        return msgspec.json.encode({"response": said.pop("content", ""), **said})
    return msgspec.json.encode({"response": ""})


def _said(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a choice says; nothing at all for one that only opens or ends the answer."""
    delta = object_in(choice.get("delta"))
    said: dict[str, Any] = {}
    text = text_in(delta.get("content")) or text_in(delta.get("refusal"))
    if reasoning := text_in(delta.get("reasoning_content")):
        said["reasoning_content"] = reasoning
    if calls := delta.get("tool_calls"):
        said["tool_calls"] = calls
    if (reason := word_in(choice.get("finish_reason"))) not in {None, "stop"}:
        said["finish_reason"] = reason
    return {"content": text, **said} if text or said else {}


def _event(data: object) -> bytes:
    return _DATA + msgspec.json.encode(data) + b"\n\n"


SIMPLE_CHATS = (
    SimpleChat("/api/chat", read_messages, write_content, write_response),
    SimpleChat("/chat", read_message, write_content, write_response),
    SimpleChat("/stream", read_streamed_message, write_named, write_response),
)
