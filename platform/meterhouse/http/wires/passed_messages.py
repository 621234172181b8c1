"""Anthropic's messages where a provider serves them itself (wire.md 1.11)."""

from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.asked import Asked
from meterhouse.errors import GatewayError
from meterhouse.http.alike import Told
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.chunk import MAX_NAME_LENGTH
from meterhouse.http.passing import Heard, Listener, PassThrough, decode_or_none, tell_texts
from meterhouse.http.respond import Envelope
from meterhouse.http.sse import named_frame
from meterhouse.http.tidy import rename_model
from meterhouse.http.usage_reading import Fields, ReadUsage, read_messages_usage
from meterhouse.providers.provider import Deployment, EndpointName
from meterhouse.providers.refusal import error_in_stream, no_answer
from meterhouse.request import Attempt
from meterhouse.translate.anthropic.reading import signed_messages
from meterhouse.usage import Usage


class _Message(msgspec.Struct):
    model: str | None = None
    usage: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Block(msgspec.Struct):
    name: str | None = None
    text: str | None = None
    thinking: str | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: Raw = Raw(b"")
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: dict[str, Any] | None = None


_event_decoder = msgspec.json.Decoder(_Event)
_message_decoder = msgspec.json.Decoder(_Message)


class PassedMessages(PassThrough):
    """Passes ``/messages`` through. ``envelope`` is the wire's, for errors in a stream."""

    endpoint: EndpointName = "messages"
    bound_field: str | None = "max_tokens"

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:
        """Keep tenants apart, whose name this wire has in ``metadata``, and from Anthropic what it did not sign."""
        raw = fields.get("metadata")
        metadata = msgspec.json.decode(raw) if isinstance(raw, Raw) else None
        if isinstance(metadata, dict) and isinstance(metadata.get("user_id"), str):
            user_id = editor.separate(metadata["user_id"], recipient.organization_id)
            fields["metadata"] = {**metadata, "user_id": user_id}
        messages = fields.get("messages")
        if recipient.deployment.provider.wire == "anthropic" and isinstance(messages, Raw):
            fields["messages"] = signed_messages(messages)

    def check_first(self, payload: bytes, deployment: Deployment) -> None:
        """Raise the error that the first payload is, if it is one."""
        if _decode(payload).type == "error":
            raise error_in_stream(payload, deployment)

    def open_listener(self, asked: Asked, deployment: Deployment) -> Listener:
        """Return a listener."""
        return MessagesListener(asked.model, deployment, self._envelope)

    def read_usage(self, wire: Fields) -> ReadUsage:
        """Read ``input_tokens`` and ``output_tokens``, and what was cached beside them."""
        return read_messages_usage(wire)

    def note_text(self, fields: dict[str, Raw], attempt: Attempt) -> None:
        """Count every text of the content."""
        blocks = decode_or_none(fields.get("content"))
        pieces: list[str] = []
        for block in blocks if isinstance(blocks, list) else ():
            if isinstance(block, dict):
                pieces += [block[name] for name in ("text", "thinking", "name") if isinstance(block.get(name), str)]
                pieces.append(msgspec.json.encode(block["input"]).decode() if "input" in block else "")
        text = "".join(pieces)
        attempt.text.append(text)
        attempt.output_bytes += len(text.encode("utf-8", "surrogatepass"))
        attempt.output_events += bool(text)


class MessagesListener:
    """Listens to the events of one message: the input's usage comes first, the output's with the reason of the end."""

    is_finished = False

    def __init__(self, model: str, deployment: Deployment, envelope: Envelope) -> None:
        self._model = model
        self._deployment = deployment
        self._envelope = envelope
        self._usage: dict[str, Any] = {}
        self._untold_start = b""
        """The event that begins the message, as long as the client has nothing of it."""
        self._open_block: int | None = None
        self._told_block: int | None = None
        """The open block that the client knows of."""

    def hear(self, payload: bytes, attempt: Attempt) -> Heard:
        """Read an event."""
        event = _decode(payload)
        heard = Heard()
        if event.type == "error":
            raise error_in_stream(payload, self._deployment)
        if event.type == "message_start":
            payload = self._begin(event, payload, attempt, heard)
        elif event.type == "content_block_start":
            self._open_block = event.index
            block = event.content_block or _Block()
            heard.text = "".join(piece for piece in (block.name, block.text, block.thinking) if piece)
        elif event.type == "content_block_delta":
            heard.text = _text_of(event)
        elif event.type == "content_block_stop":
            self._open_block = None
        elif event.type == "message_delta":
            # A stop reason ends the message; ``message_stop`` only says so once more.
            heard.is_end = event.delta is not None and event.delta.stop_reason is not None
            if heard.is_end and event.delta is not None:
                attempt.finish_reasons.append(event.delta.stop_reason or "")
            heard.usage = self._note_usage(event.usage)
        elif event.type == "message_stop":
            heard.is_end = heard.is_last = True
        heard.frame = named_frame(event.type, payload)
        if event.type == "message_start":
            self._untold_start = heard.frame
        return heard

    def tell(self, data: bytes) -> Told | None:
        """Tell of events that go on with a block."""
        return tell_texts(data, _read_text)

    def took(self) -> None:
        """Note nothing: the block that is open is the same."""

    def told(self) -> None:
        """Note that the client knows the beginning, and which block is open."""
        self._untold_start = b""
        self._told_block = self._open_block

    def cut(self, usage: Usage) -> bytes:
        """Return the end of the open block, ``max_tokens`` and ``message_stop``; before it the beginning, if need be.

        So it is where the first read was already too much, of which nothing was told.
        """
        events: list[dict[str, Any]] = []
        if self._told_block is not None:
            events.append({"type": "content_block_stop", "index": self._told_block})
        delta = {"stop_reason": "max_tokens", "stop_sequence": None}
        events.append({"type": "message_delta", "delta": delta, "usage": usage_on_messages(usage)})
        events.append({"type": "message_stop"})
        ending = [named_frame(event["type"], msgspec.json.encode(event)) for event in events]
        return b"".join([self._untold_start, *ending])

    def close(self, usage: Usage) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return nothing: the last event is the end."""
        return b""

    def fail(self, error: GatewayError, request_id: str) -> bytes:
        """Return the wire's ``error`` event."""
        return self._envelope.event(error, request_id)

    def _begin(self, event: _Event, payload: bytes, attempt: Attempt, heard: Heard) -> bytes:
        try:
            message = _message_decoder.decode(event.message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise no_answer("a message_start without a message") from None
        attempt.served_model = (message.model or "")[:MAX_NAME_LENGTH]
        heard.usage = self._note_usage(message.usage)
        if message.model is None or message.model == self._model:
            return payload
        raw = bytes(event.message)
        return payload.replace(raw, rename_model(raw, message.model, self._model), 1)

    def _note_usage(self, usage: dict[str, Any] | None) -> ReadUsage | None:
        """Put what an event says of the usage over what was said before: the later ones say only what changed."""
        if not usage:
            return None
        self._usage |= {name: value for name, value in usage.items() if value is not None}
        return read_messages_usage(self._usage)


def usage_on_messages(usage: Usage) -> dict[str, int]:
    """Write a usage as messages do, whose input leaves out what was cached and what was written."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    }


def _text_of(event: _Event) -> str:
    """Return what an event that goes on with a block says."""
    delta = event.delta
    return "" if delta is None else (delta.text or "") + (delta.thinking or "") + (delta.partial_json or "")


def _read_text(payload: bytes) -> tuple[str, str]:
    event = _decode(payload)
    return event.type, _text_of(event) if event.type == "content_block_delta" else ""


def _decode(payload: bytes) -> _Event:
    try:
        return _event_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_answer("an event that is none of messages") from None
