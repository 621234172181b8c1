"""Moderations, images and sound: passed through to a provider that has them, one body each way.

A request counts as one; tokens count where the provider reports them. What makes or reads an image or a sound has a
cost that its text does not bound, so that under a budget only a price per request will do, which is one per image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from meterhouse.asked import Asked, FormPart
from meterhouse.errors import Malformed
from meterhouse.http.adapt import text_of_raw
from meterhouse.http.body import BodyEditor, Recipient, read_object, refuse_stream, stored
from meterhouse.http.call import Call
from meterhouse.http.intake import MAX_VALUES
from meterhouse.http.outlet import Dialect
from meterhouse.http.passage import Passage, RelayParts, Whole, WholeBody
from meterhouse.http.passing import PassThrough, check_object, choose_passage, text_in
from meterhouse.http.respond import OPENAI_ENVELOPE, Envelope
from meterhouse.http.usage_reading import Fields, ReadUsage, read_responses_usage
from meterhouse.ids import random_base62
from meterhouse.providers.provider import Deployment, EndpointName, Provider
from meterhouse.providers.refusal import no_answer
from meterhouse.request import Attempt, InputSize, utf8_length
from meterhouse.translate.form import read_form, write_form
from meterhouse.usage import Outcome, Usage

DEFAULT_MODERATION_MODEL = "omni-moderation-latest"
MAX_NAME_LENGTH = 256
JSON = "application/json"
_BYTES = ("audio/", "text/plain", "text/vtt", "application/x-subrip", "application/octet-stream")
"""How the types of answers begin that are no JSON; a page of HTML is none of them."""
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH)]


class ModerationRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/moderations``. ``input``: a text, texts, or parts with texts and images."""

    input: Raw
    model: Name = DEFAULT_MODERATION_MODEL


class ImageRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/images/generations``."""

    model: Name
    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: str | None = None
    quality: str | None = None
    response_format: str | None = None
    user: str | None = None


class SpeechRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/audio/speech``."""

    model: Name
    input: Annotated[str, Meta(min_length=1, max_length=4_096)]
    voice: str | dict[str, Any]
    instructions: str | None = None
    response_format: str | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    stream_format: str | None = None


_FORM_TEXTS = frozenset(
    {
        *("chunking_strategy", "include", "include[]", "known_speaker_names[]", "known_speaker_references[]"),
        *("language", "model", "prompt", "response_format", "stream", "temperature"),
        *("timestamp_granularities", "timestamp_granularities[]", "user"),
    }
)
"""Fields of a form beside its file: OpenAI's own. Others may name what is stored at a provider, as they do in JSON."""

_moderation_decoder = msgspec.json.Decoder(ModerationRequest)
_image_decoder = msgspec.json.Decoder(ImageRequest)
_speech_decoder = msgspec.json.Decoder(SpeechRequest)
_entries_decoder = msgspec.json.Decoder(list[Raw])
_LONG_FIELDS = frozenset({"input", "prompt"})


@dataclass(frozen=True, slots=True)
class MediaWire:
    """One of these wires: what differs is how its body is read."""

    path: str
    operation: str
    passed: PassThrough
    read_body: Callable[[bytes, str], Asked]
    """Gets the body and its content type; raises Malformed."""
    most_values: int = MAX_VALUES
    passage: Passage | None = None
    envelope: Envelope = OPENAI_ENVELOPE

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Check a request."""
        return self.read_body(body, content_type)

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:
        """Return the passage to a provider that has it."""
        return choose_passage(self.passed, asked, provider)

    def open_dialect(self, asked: Asked) -> Dialect | None:  # noqa: ARG002 - the protocol's own signature
        """Return none: it never goes over chat."""
        return None


class PassedMedia(PassThrough):
    """Passes one of these endpoints through: JSON or a form there, JSON or bytes back."""

    def __init__(self, endpoint: EndpointName) -> None:
        self.endpoint = endpoint

    def encode(self, asked: Asked, recipient: Recipient, editor: BodyEditor) -> bytes:
        """Return the body, a form as one written anew."""
        if not asked.form:
            return super().encode(asked, recipient, editor)
        assert asked.headers is not None
        # The texts of a form are under the rules of a body's: the model's name, tenants apart, the row's parameters.
        fields = editor.edit_passed(asked, recipient, self.bound_field)
        parts = [FormPart(name, _text_of(value).encode()) for name, value in fields.items()]
        parts += [part for part in asked.form if part.name not in asked.fields]
        return write_form(parts, asked.headers["content-type"].rpartition("boundary=")[2])

    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:
        """Change nothing."""

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the body, if it is of a type that these wires have, and no error."""
        if answer.content_type == JSON:
            return super().decode_whole(answer, deployment)
        if not answer.content_type.startswith(_BYTES):
            raise no_answer(f"content type {answer.content_type!r} for a sound or a text")
        return answer.body

    def read_whole(self, call: Call, answer: WholeBody, parts: RelayParts) -> Whole:
        """Note a JSON answer; a sound or a text says nothing of itself."""
        if answer.content_type == JSON:
            return super().read_whole(call, answer, parts)
        attempt = call.tally.attempt
        if answer.content_type.startswith("text/"):
            _note(str(answer.body, "utf-8", "replace"), attempt)
        attempt.outcome = Outcome.CLIENT_GONE if call.is_draining else Outcome.COMPLETED
        return PlainBody(answer)

    def read_usage(self, wire: Fields) -> ReadUsage:
        """Read ``input_tokens`` and ``output_tokens``; a duration is none of them."""
        return read_responses_usage(wire)

    def note_text(self, fields: dict[str, Raw], attempt: Attempt) -> None:
        """Count the text of a transcription."""
        _note(text_in(fields, "text"), attempt)


class PassedImages(PassedMedia):
    """Passes images through: a price per request is one per image, and what did not come is not charged."""

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the body, if it is one with a list of images."""
        body = super().decode_whole(answer, deployment)
        if answer.content_type != JSON or _count_entries(check_object(body).get("data")) is None:
            raise no_answer("an answer without images")
        return body

    def note_whole(self, call: Call, fields: dict[str, Raw]) -> None:
        """Note the answer and how many images it brought; more than were asked for are the provider's gift."""
        super().note_whole(call, fields)
        attempt = call.tally.attempt
        attempt.request_units = min(_count_entries(fields.get("data")) or 0, attempt.request_units)


class PlainBody:
    """An answer that is no JSON: a sound, or a text."""

    def __init__(self, answer: WholeBody) -> None:
        self._body = answer.body
        self.content_type = answer.content_type.encode()

    def body(self, usage: Usage) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the provider's bytes."""
        return self._body


def read_moderation(body: bytes, content_type: str) -> Asked:  # noqa: ARG001 - as the readers of forms
    """Read a text, texts, or parts."""
    fields, request = read_object(body, _moderation_decoder, _LONG_FIELDS)
    refuse_stream(fields)
    given = msgspec.json.decode(request.input)
    entries = given if isinstance(given, list) else [given]
    parts = [entry for entry in entries if isinstance(entry, dict)]
    texts = [entry for entry in entries if isinstance(entry, str)]
    texts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
    others = [_beside_text(part) for part in parts]
    if not entries or len(entries) != len(parts) + sum(isinstance(entry, str) for entry in entries):
        raise Malformed("Invalid value for 'input': expected a text, texts, or parts.", param="input")
    images = sum(part.get("type") != "text" or "image_url" in part for part in parts)
    size = InputSize(sum(map(utf8_length, texts)) + sum(map(len, others)), len(entries), 0, images)
    return _ask(request.model, fields, size, texts)


def read_image(body: bytes, content_type: str) -> Asked:  # noqa: ARG001 - as the readers of forms
    """Read what is to be drawn."""
    fields, request = read_object(body, _image_decoder, _LONG_FIELDS)
    refuse_stream(fields)
    asked = _ask(request.model, fields, InputSize(utf8_length(request.prompt), 1, 0, 1), [request.prompt])
    asked.input_name = "prompt"
    asked.request_units = request.n or 1
    return asked


def read_speech(body: bytes, content_type: str) -> Asked:  # noqa: ARG001 - as the readers of forms
    """Read what is to be said."""
    fields, request = read_object(body, _speech_decoder, _LONG_FIELDS)
    refuse_stream(fields)
    if isinstance(request.voice, dict):
        raise stored("voice")
    if request.stream_format not in {None, "audio"}:
        raise Malformed("'stream_format' can only be 'audio' here.", param="stream_format", code="unsupported_value")
    texts = [request.input, *([request.instructions] if request.instructions else [])]
    return _ask(request.model, fields, InputSize(sum(map(utf8_length, texts)), 1, 0, 1), texts)


def read_sound(body: bytes, content_type: str) -> Asked:
    """Read a form with a file to be listened to."""
    parts = read_form(body, content_type)
    named = {part.name: part for part in parts}
    for name in ("model", "file"):
        if name not in named or not named[name].content:
            text = f"Missing required parameter: '{name}'."
            raise Malformed(text, param=name, code="missing_required_parameter")
    for part in parts:
        if part.name != "file" and (part.name not in _FORM_TEXTS or part.filename is not None):
            text = f"Unsupported parameter: '{part.name}' is no text field of this form. Leave it out."
            raise Malformed(text, param=part.name, code="unsupported_parameter")
    if len(named["model"].content) > MAX_NAME_LENGTH:
        raise Malformed("Invalid value for 'model': expected the name of a model.", param="model")
    if "stream" in named and named["stream"].text.lower() not in {"", "false", "0"}:
        raise Malformed("'stream' is not supported here.", param="stream", code="unsupported_parameter")
    texts = [part.text for part in parts if part.name == "prompt"]
    fields = {
        part.name: Raw(msgspec.json.encode(part.text))
        for part in parts
        if part.name != "file" and not part.name.endswith("[]")
    }
    asked = _ask(named["model"].text, fields, InputSize(sum(map(utf8_length, texts)), 1, 0, 1), texts)
    asked.form = tuple(parts)
    asked.input_name = "file"
    asked.headers = {"content-type": f"multipart/form-data; boundary=meterhouse-{random_base62(32)}"}
    return asked


def _beside_text(part: dict[str, Any]) -> bytes:
    """Return what a part says beside its text and its image, which a provider may read too."""
    others = {name: value for name, value in part.items() if name not in {"type", "image_url"}}
    if isinstance(others.get("text"), str):
        del others["text"]
    return msgspec.json.encode(others) if others else b""


def _count_entries(raw: Raw | None) -> int | None:
    """Return how many entries a list has; None where there is none."""
    try:
        return len(_entries_decoder.decode(raw)) if raw is not None else None
    except msgspec.ValidationError:
        return None


def _text_of(value: object) -> str:
    return text_of_raw(value) or "" if isinstance(value, Raw) else str(value)


def _ask(model: str, fields: dict[str, Raw], size: InputSize, texts: list[str]) -> Asked:
    return Asked(model=model, size=size, output_tokens=0, input_name="input", fields=fields, texts=texts)


def _note(text: str, attempt: Attempt) -> None:
    if text:
        attempt.text.append(text)
        attempt.output_bytes += utf8_length(text)
        attempt.output_events += 1


MEDIA_WIRES = (
    MediaWire("/v1/moderations", "moderations", PassedMedia("moderations"), read_moderation),
    MediaWire("/v1/images/generations", "images", PassedImages("images"), read_image),
    MediaWire(
        "/v1/audio/transcriptions", "audio_transcriptions", PassedMedia("transcriptions"), read_sound, most_values=0
    ),
    MediaWire("/v1/audio/translations", "audio_translations", PassedMedia("translations"), read_sound, most_values=0),
    MediaWire("/v1/audio/speech", "audio_speeches", PassedMedia("speech"), read_speech),
)
"""Their operations have the names under which OpenAI's usage endpoints ask for them, where there is one."""
