"""OpenAI's responses where a provider serves them itself (wire.md 1.10)."""

from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.asked import Asked
from meterhouse.errors import GatewayError, UpstreamError
from meterhouse.http.alike import Told
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.call import Call
from meterhouse.http.chunk import MAX_NAME_LENGTH, decode_chunk, is_failure, is_set
from meterhouse.http.passage import RelayParts, Whole, WholeBody
from meterhouse.http.passing import Heard, Listener, PassThrough, check_object, decode_or_none, tell_texts
from meterhouse.http.respond import JSON_TYPE
from meterhouse.http.sse import named_frame
from meterhouse.http.usage_reading import Fields, ReadUsage, note_usage, read_responses_usage
from meterhouse.http.wires.told_items import ItemEvent, ToldItems, texts_of
from meterhouse.providers.provider import Deployment, EndpointName
from meterhouse.providers.refusal import error_in_stream, no_answer
from meterhouse.request import Attempt
from meterhouse.translate.responses.answer import failure_of
from meterhouse.translate.responses.passed import without_lost_thoughts
from meterhouse.translate.responses.stream import error_event
from meterhouse.usage import Usage

_ENDS = frozenset({"response.completed", "response.incomplete"})
_FAILURES = frozenset({"error", "response.failed"})
_OPENINGS = frozenset({"response.created", "response.in_progress", "response.queued"})
_TENANT_FIELDS = ("user", "safety_identifier", "prompt_cache_key")


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    model: str | None = None
    service_tier: str | None = None
    usage: Raw = Raw(b"")
    incomplete_details: _Incomplete | None = None


_event_decoder = msgspec.json.Decoder(ItemEvent)
_response_decoder = msgspec.json.Decoder(_Response)
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])


class PassedResponses(PassThrough):
    """Passes ``/responses`` through."""

    endpoint: EndpointName = "responses"
    bound_field = "max_output_tokens"

    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:  # noqa: ARG002 - the protocol's own signature
        """Have nothing stored, which is this wire's default, and send nothing that only a store could resolve."""
        fields["store"] = False
        if isinstance(given := fields.get("input"), Raw):
            fields["input"] = without_lost_thoughts(given)

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the body; raise the error that it is, but for one with a usage, which is charged first."""
        body = answer.body.strip()
        if is_failure(decode_chunk(body)) and not isinstance(decode_or_none(check_object(body).get("usage")), dict):
            raise error_in_stream(body, deployment)
        return body

    def check_first(self, payload: bytes, deployment: Deployment) -> None:
        """Raise the error that the first payload is; one with a usage is left to the listener, to be charged."""
        super().check_first(payload, deployment)
        event = _decode(payload)
        if event.type not in _FAILURES:
            return
        response = decode_or_none(event.response)
        if not isinstance(response, dict) or not response.get("usage"):
            raise _error_of(event, payload, deployment)

    def open_listener(self, asked: Asked, deployment: Deployment) -> Listener:
        """Return a listener."""
        return ResponsesListener(asked, deployment)

    def read_whole(self, call: Call, answer: WholeBody, parts: RelayParts) -> Whole:
        """Note what the answer says; what the client gets tells back what it sent."""
        whole = super().read_whole(call, answer, parts)
        assert call.deployment is not None
        if is_failure(decode_chunk(answer.body)):
            raise error_in_stream(answer.body, call.deployment)
        has_usage = call.tally.attempt.reported is not None
        return _PassedResponse(whole, TellingBack(call.asked), has_usage=has_usage)

    def read_usage(self, wire: Fields) -> ReadUsage:
        """Read ``input_tokens`` and ``output_tokens``."""
        return read_responses_usage(wire)

    def note_text(self, fields: dict[str, Raw], attempt: Attempt) -> None:
        """Count every text of the output."""
        text = "".join(texts_of(decode_or_none(fields.get("output"))))
        attempt.text.append(text)
        attempt.output_bytes += len(text.encode("utf-8", "surrogatepass"))
        attempt.output_events += bool(text)


class TellingBack:
    """Puts what the client sent in the place of what was sent upstream for it: the model's name, tenants' own ids."""

    def __init__(self, asked: Asked) -> None:
        # Copies: a raw field keeps the whole body that it is a part of.
        self._told = {name: Raw(bytes(asked.fields[name])) for name in _TENANT_FIELDS if name in asked.fields}
        self._told["model"] = Raw(msgspec.json.encode(asked.model))

    def put_right(self, response: bytes) -> bytes:
        """Return a response object that tells of the request as it came; one that does already, byte for byte.

        Raises:
            UpstreamDown: One of its names is no text.
        """
        try:
            fields = _fields_decoder.decode(response)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise no_answer("a response that is no object") from None
        changed = {name: raw for name, raw in self._told.items() if bytes(fields.get(name, raw)) != bytes(raw)}
        return msgspec.json.encode(fields | changed) if changed else response


class _PassedResponse:
    """A whole response: as the provider sent it, but for what is told back, and our usage where it sent none."""

    content_type = JSON_TYPE[1]

    def __init__(self, whole: Whole, telling: TellingBack, *, has_usage: bool) -> None:
        self._whole = whole
        self._telling = telling
        self._has_usage = has_usage

    def body(self, usage: Usage) -> bytes:
        """Return what the client gets."""
        body = self._telling.put_right(self._whole.body(usage))
        if self._has_usage:
            return body
        counted = Raw(msgspec.json.encode(usage_on_responses(usage)))
        return msgspec.json.encode(_fields_decoder.decode(body) | {"usage": counted})


class ResponsesListener:
    """Listens to the events of one response: text in deltas, the usage and the end in the last of them."""

    is_finished = False

    def __init__(self, asked: Asked, deployment: Deployment) -> None:
        self._deployment = deployment
        self._telling = TellingBack(asked)
        self._sequence = -1
        self._response = b""
        """The response as it was last told to the client, for an end of our own."""
        self._items = ToldItems()
        self._heard: list[ItemEvent] = []
        """What came since ``told``."""
        self._looked: list[ItemEvent] = []
        """What ``tell`` has read."""

    def hear(self, payload: bytes, attempt: Attempt) -> Heard:
        """Read an event."""
        event = _decode(payload)
        if event.type in _FAILURES:
            raise self._failure(event, payload, attempt)
        is_end = event.type in _ENDS
        heard = Heard(is_end=is_end, is_last=is_end)
        if is_end or event.type in _OPENINGS:
            response, heard.usage = self._note_response(event, attempt)
            right = self._telling.put_right(response)
            event.response = Raw(right)
            if right != response:
                payload = payload.replace(response, right, 1)
        else:
            heard.text = self._items.hear(event)
        self._heard.append(event)
        heard.frame = named_frame(event.type, payload)
        return heard

    def tell(self, data: bytes) -> Told | None:
        """Tell of pieces of text."""
        self._looked.clear()
        return tell_texts(data, self._read_text)

    def took(self) -> None:
        """Keep what the client knows by now."""
        self._heard += self._looked
        self._looked.clear()
        self.told()

    def _read_text(self, payload: bytes) -> tuple[str, str]:
        event = _decode(payload)
        if not event.type.endswith(".delta"):
            return event.type, ""
        self._looked.append(event)
        return event.type, self._items.hear(event)

    def told(self) -> None:
        """Keep what the client knows by now."""
        for event in self._heard:
            self._sequence = event.sequence_number
            if event.type in _OPENINGS:
                self._response = bytes(event.response)
            self._items.keep(event)
        self._heard.clear()

    def cut(self, usage: Usage) -> bytes:
        """Return the end of every open item, and ``response.incomplete``."""
        begun = b"" if self._response else self._begin()
        items = b"".join(
            self._own({"type": "response.output_item.done", "output_index": index, "item": item})
            for index, item in self._items.finish()
        )
        ended = {"incomplete_details": {"reason": "max_output_tokens"}, "usage": usage_on_responses(usage)}
        return begun + items + self._end("incomplete", ended)

    def _begin(self) -> bytes:
        """Return the beginning of a response of which nothing was told: its first read was already too much."""
        response = next((event.response for event in self._heard if event.type in _OPENINGS), Raw(b"{}"))
        self._response = bytes(response)
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._own({"type": kind, "response": response}) for kind in kinds)

    def close(self, usage: Usage) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return nothing: the last event is the end."""
        return b""

    def fail(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return ``response.failed``, where a response had begun, and the ``error`` event."""
        told = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        self._items.finish()
        failed = self._end("failed", {"error": failure_of(told)}) if self._response else b""
        return failed + self._own(error_event(told))

    def _end(self, status: str, ended: dict[str, Any]) -> bytes:
        """Return an end of our own: the response as it was last told, and all that came since."""
        told = decode_or_none(Raw(self._response))
        response = told if isinstance(told, dict) else {}
        ended |= {"status": status, "output": self._items.output()}
        return self._own({"type": f"response.{status}", "response": response | ended})

    def _own(self, event: dict[str, Any]) -> bytes:
        self._sequence += 1
        return named_frame(event["type"], msgspec.json.encode(event | {"sequence_number": self._sequence}))

    def _note_response(self, event: ItemEvent, attempt: Attempt) -> tuple[bytes, ReadUsage | None]:
        """Take names and usage from an event with a response; returns its bytes and the usage."""
        try:
            response = _response_decoder.decode(event.response)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise no_answer(f"{event.type} without a response") from None
        attempt.served_model = (response.model or "")[:MAX_NAME_LENGTH]
        attempt.service_tier = (response.service_tier or "")[:MAX_NAME_LENGTH]
        if event.type in _ENDS:
            reason = (response.incomplete_details or _Incomplete()).reason or "stop"
            attempt.finish_reasons.append("length" if reason == "max_output_tokens" else reason)
        wire = decode_or_none(response.usage)
        return bytes(event.response), read_responses_usage(wire) if isinstance(wire, dict) else None

    def _failure(self, event: ItemEvent, payload: bytes, attempt: Attempt) -> GatewayError:
        """Return the error that an event tells of; a usage that comes with it is charged all the same."""
        if is_set(event.response):
            _, usage = self._note_response(event, attempt)
            if usage is not None:
                note_usage(attempt, usage)
        return _error_of(event, payload, self._deployment)


def _decode(payload: bytes) -> ItemEvent:
    try:
        return _event_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_answer("an event that is none of responses") from None


def _error_of(event: ItemEvent, payload: bytes, deployment: Deployment) -> UpstreamError:
    """Return the error that a failure tells of, in its response or in the event itself."""
    response = decode_or_none(event.response) if is_set(event.response) else None
    error = response.get("error") if isinstance(response, dict) else None
    return error_in_stream(msgspec.json.encode(error) if error else payload, deployment)


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
