"""OpenAI's responses (wire.md 1.10): passed through where the provider has them, else told of a chat completion."""

import time
from collections.abc import Callable

import msgspec
from msgspec import Raw

from meterhouse.asked import Asked, ParsedBody
from meterhouse.errors import GatewayError, Malformed
from meterhouse.http.body import parse_chat, read_object
from meterhouse.http.intake import MAX_VALUES
from meterhouse.http.outlet import Dialect
from meterhouse.http.passage import Passage
from meterhouse.http.passing import choose_passage
from meterhouse.http.respond import Envelope, OpenAiEnvelope
from meterhouse.http.wires.chat import CHAT
from meterhouse.http.wires.passed_responses import PassedResponses
from meterhouse.ids import new_id
from meterhouse.providers.provider import Provider
from meterhouse.request import measure as measure_chat
from meterhouse.translate.responses.answer import Answering, tell_back
from meterhouse.translate.responses.check import check
from meterhouse.translate.responses.request import custom_tools, to_chat
from meterhouse.translate.responses.shape import ResponsesRequest
from meterhouse.translate.responses.size import larger, measure, texts_of
from meterhouse.translate.responses.stream import ResponseStream, error_event, to_response

_request_decoder = msgspec.json.Decoder(ResponsesRequest)
_LONG_FIELDS = frozenset({"input", "instructions", "tools"})
_NULL = b"null"
_DATA = b"data: "
_NOTHING_SAID = Raw(b'""')


class ResponsesEnvelope(OpenAiEnvelope):
    """OpenAI's, with the event of a stream in which nothing was said yet."""

    def event(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the ``error`` event."""
        return (
            b"event: error\ndata: " + msgspec.json.encode(error_event(_told(error)) | {"sequence_number": 0}) + b"\n\n"
        )


class ResponsesWire:
    """OpenAI's responses."""

    path = "/v1/responses"
    operation = CHAT
    most_values = MAX_VALUES
    passage: Passage | None = None
    envelope: Envelope = ResponsesEnvelope()

    def __init__(self) -> None:
        self._passed = PassedResponses()

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Check a request, and make a chat completion of it where that can be."""
        fields, request = read_object(body, _request_decoder, _LONG_FIELDS)
        check(request, {name for name, raw in fields.items() if bytes(raw) != _NULL})
        size = measure(request, fields)
        chat: ParsedBody | None = None
        refusal: Malformed | None = None
        try:
            chat = parse_chat(to_chat(request, fields))
        except Malformed as error:
            refusal = error
        else:
            size = larger(size, measure_chat(chat.request, chat.fields))
        return Asked(
            model=request.model,
            size=size,
            is_streamed=bool(request.stream),
            output_tokens=request.max_output_tokens,
            service_tier=request.service_tier,
            input_name="input",
            chat=chat,
            chat_refusal=refusal,
            fields=fields,
            texts=[] if chat is not None else list(texts_of(request)),
        )

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:
        """Return the provider's own way, or the one over chat completions."""
        return choose_passage(self._passed, asked, provider)

    def open_dialect(self, asked: Asked) -> Dialect | None:
        """Return what tells a chat completion as a response."""
        # The input is not told back, so it is not decoded again.
        request = _request_decoder.decode(msgspec.json.encode({**asked.fields, "input": _NOTHING_SAID}))
        answering = Answering(
            tell_back(request),
            id=new_id("resp"),
            created_seconds=_now_seconds(),
            now_seconds=_now_seconds,
            custom_tools=custom_tools(request),
            wants_summary=request.reasoning is not None and request.reasoning.wants_summary,
        )
        return ResponsesDialect(answering)


class ResponsesDialect:
    """Tells one chat completion as a response."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._stream = ResponseStream(answering)

    def frames(self, data: bytes) -> bytes:
        """Turn whole events of chat completions into events of responses; comments stay."""
        return b"".join(
            self._stream.events(event.removeprefix(_DATA)) if event.startswith(_DATA) else event + b"\n\n"
            for event in data.split(b"\n\n")
            if event
        )

    def write_body(self, body: bytes) -> bytes:
        """Turn a chat completion into a response."""
        return to_response(body, self._answering)

    def fail(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the events that end the stream with an error."""
        return self._stream.fail(_told(error))


def _told(error: GatewayError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def _now_seconds() -> int:
    return int(time.time())
