"""OpenAI's responses where a provider serves them itself (wire.md 1.10)."""

from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.asked import Asked
from meterhouse.errors import GatewayError
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.chunk import MAX_NAME_LENGTH, is_set
from meterhouse.http.passing import Heard, Listener, PassThrough
from meterhouse.http.sse import named_frame
from meterhouse.http.tidy import rename_model
from meterhouse.http.usage_reading import Fields, ReadUsage, read_responses_usage
from meterhouse.providers.provider import Deployment, EndpointName
from meterhouse.providers.refusal import error_in_stream, no_answer
from meterhouse.request import Attempt
from meterhouse.usage import Usage

_ENDS = frozenset({"response.completed", "response.incomplete"})
_OPENINGS = frozenset({"response.created", "response.in_progress", "response.queued"})


class _Response(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: Raw = Raw(b"")
    error: Raw = Raw(b"")


class _Event(msgspec.Struct):
    type: str
    sequence_number: int = 0
    delta: Raw = Raw(b"")
    response: Raw = Raw(b"")
    item: Raw = Raw(b"")
    output_index: int = 0


_event_decoder = msgspec.json.Decoder(_Event)
_response_decoder = msgspec.json.Decoder(_Response)
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])


class PassedResponses(PassThrough):
    """Passes ``/responses`` through."""

    endpoint: EndpointName = "responses"
    bound_field = "max_output_tokens"

    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:  # noqa: ARG002 - the protocol's own signature
        """Have nothing stored, which is this wire's default: all tenants share the operator's account."""
        fields["store"] = False

    def open_listener(self, asked: Asked, deployment: Deployment) -> Listener:
        """Return a listener."""
        return ResponsesListener(asked.model, deployment)

    def read_usage(self, wire: Fields) -> ReadUsage:
        """Read ``input_tokens`` and ``output_tokens``."""
        return read_responses_usage(wire)

    def note_text(self, fields: dict[str, Raw], attempt: Attempt) -> None:
        """Count every text of the output."""
        pieces: list[str] = []
        _collect(msgspec.json.decode(fields["output"]) if "output" in fields else None, pieces)
        text = "".join(pieces)
        attempt.text.append(text)
        attempt.output_bytes += len(text.encode("utf-8", "surrogatepass"))
        attempt.output_events += bool(text)


class ResponsesListener:
    """Listens to the events of one response: text in deltas, the usage and the end in the last of them."""

    is_finished = False

    def __init__(self, model: str, deployment: Deployment) -> None:
        self._model = model
        self._deployment = deployment
        self._sequence = -1
        self._response = Raw(b"{}")
        """The response as it was last told, for an end of our own."""
        self._items: dict[int, Raw] = {}

    def hear(self, payload: bytes, attempt: Attempt) -> Heard:
        """Read an event."""
        try:
            event = _event_decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise no_answer("an event that is none of responses") from None
        if event.type in {"error", "response.failed"}:
            raise error_in_stream(self._error_of(event, payload), self._deployment)
        self._sequence = event.sequence_number
        if is_set(event.item):
            self._items[event.output_index] = event.item
        is_end = event.type in _ENDS
        heard = Heard(is_end=is_end, is_last=is_end)
        if is_end or event.type in _OPENINGS:
            served = self._note_response(event.response, attempt, heard)
            payload = _renamed(payload, event.response, served, self._model)
        elif event.type.endswith(".delta") and bytes(event.delta).startswith(b'"'):
            heard.text = msgspec.json.decode(event.delta, type=str)
        heard.frame = named_frame(event.type, payload)
        return heard

    def cut(self, usage: Usage) -> bytes:
        """Return ``response.incomplete``, with what had been told of each item."""
        response = msgspec.json.decode(self._response)
        response |= {
            "model": self._model,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [self._items[index] for index in sorted(self._items)],
            "usage": usage_on_responses(usage),
        }
        return self._own("response.incomplete", {"response": response})

    def close(self, usage: Usage) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return nothing: the last event is the end."""
        return b""

    def fail(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return an ``error`` event."""
        fields = {"code": error.code, "message": error.message, "param": error.param}
        # The SDKs raise what stands under ``error``, whatever the event's type.
        return self._own("error", {**fields, "error": {**fields, "type": error.type}})

    def _own(self, kind: str, fields: dict[str, object]) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence + 1, **fields}
        return named_frame(kind, msgspec.json.encode(event))

    def _note_response(self, raw: Raw, attempt: Attempt, heard: Heard) -> str | None:
        self._response = raw if is_set(raw) else self._response
        try:
            response = _response_decoder.decode(self._response)
        except msgspec.DecodeError:
            return None
        attempt.served_model = (response.model or "")[:MAX_NAME_LENGTH]
        attempt.service_tier = (response.service_tier or "")[:MAX_NAME_LENGTH]
        if is_set(response.usage):
            wire = msgspec.json.decode(response.usage)
            heard.usage = read_responses_usage(wire) if isinstance(wire, dict) else None
        return response.model

    def _error_of(self, event: _Event, payload: bytes) -> bytes:
        if is_set(event.response):
            return bytes(_response_decoder.decode(event.response).error)
        return payload


def usage_on_responses(usage: Usage) -> dict[str, object]:
    """Write a usage as responses do."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _renamed(payload: bytes, response: Raw, served: str | None, asked: str) -> bytes:
    """Put the asked model's name into the response inside an event."""
    if served is None or served == asked:
        return payload
    return payload.replace(bytes(response), rename_model(bytes(response), served, asked), 1)


def _collect(value: Any, pieces: list[str]) -> None:
    """Take what the model wrote out of a list of output items."""
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, dict):
            continue
        names = ("text", "refusal", "name", "arguments", "input")
        pieces += [item[name] for name in names if isinstance(item.get(name), str)]
        _collect(item.get("content"), pieces)
        _collect(item.get("summary"), pieces)
