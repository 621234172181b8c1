"""``POST /v1/embeddings`` (wire.md 1.8): passed through, and to Ollama translated.

The SDKs ask for base64 and decode it; where a provider gives numbers all the same, they are encoded here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from meterhouse.asked import Asked
from meterhouse.errors import Malformed
from meterhouse.http.adapt import text_of_raw
from meterhouse.http.body import BodyEditor, Recipient, read_object, refuse_stream
from meterhouse.http.call import Call
from meterhouse.http.intake import MAX_TOKEN_VALUES
from meterhouse.http.outlet import Dialect
from meterhouse.http.passage import Passage, RelayParts, Whole, WholeBody
from meterhouse.http.passing import PassedBody, PassThrough, check_object, choose_passage
from meterhouse.http.respond import OPENAI_ENVELOPE, Envelope
from meterhouse.http.usage_reading import Fields, ReadUsage, read_input_usage
from meterhouse.providers.provider import Deployment, EndpointName, Provider
from meterhouse.providers.refusal import no_answer
from meterhouse.request import Attempt, InputSize, utf8_length
from meterhouse.translate.ollama_embed import from_ollama_embed, to_ollama_embed
from meterhouse.translate.vectors import Encoding, convert_vectors
from meterhouse.usage import Usage

MAX_INPUTS = 2_048


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/embeddings``. ``input``: a text, texts, the tokens of one, or those of several."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: Raw
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    encoding_format: Encoding | None = None
    user: str | None = None


Token = Annotated[int, Meta(ge=0, lt=2**31)]

_KNOWN = frozenset(EmbeddingsRequest.__struct_fields__)
_LONG_FIELDS = frozenset({"input"})
_request_decoder = msgspec.json.Decoder(EmbeddingsRequest)
_text_decoder = msgspec.json.Decoder(str)
_texts_decoder = msgspec.json.Decoder(list[str])
_tokens_decoder = msgspec.json.Decoder(list[Token])
_token_lists_decoder = msgspec.json.Decoder(list[list[Token]])


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is to be embedded: texts or tokens, never both."""

    count: int
    texts: list[str]
    tokens: int = 0


class EmbeddingsWire:
    """OpenAI's embeddings."""

    path = "/v1/embeddings"
    operation = "embeddings"
    most_values = MAX_TOKEN_VALUES
    passage: Passage | None = None
    envelope: Envelope = OPENAI_ENVELOPE

    def __init__(self) -> None:
        self._passed = PassedEmbeddings()

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Check a request; it writes nothing, and holds what it reads."""
        fields, request = read_object(body, _request_decoder, _LONG_FIELDS)
        refuse_stream(fields)
        if bytes(fields.get("messages", Raw(b"null"))) != b"null":
            text = "Unsupported parameter: 'messages'. What is to be embedded is 'input'."
            raise Malformed(text, param="messages", code="unsupported_parameter")
        prompts = read_prompts(fields["input"], "input", MAX_INPUTS)
        # What nobody here knows goes along, and may be put into the prompt there.
        text_bytes = sum(len(raw) for name, raw in fields.items() if name not in _KNOWN)
        text_bytes += sum(map(utf8_length, prompts.texts))
        return Asked(
            model=request.model,
            size=InputSize(text_bytes, prompts.count, 0, 0, prompts.tokens),
            output_tokens=0,
            input_name="input",
            fields=fields,
            texts=prompts.texts,
        )

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:
        """Return the passage to a provider of embeddings."""
        return choose_passage(self._passed, asked, provider)

    def open_dialect(self, asked: Asked) -> Dialect | None:  # noqa: ARG002 - the protocol's own signature
        """Return none: embeddings never go over chat."""
        return None


class PassedEmbeddings(PassThrough):
    """Passes ``/embeddings`` through."""

    endpoint: EndpointName = "embeddings"

    def encode(self, asked: Asked, recipient: Recipient, editor: BodyEditor) -> bytes:
        """Return the body, in Ollama's own words where it goes there."""
        deployment = recipient.deployment
        most = deployment.provider.embeddings_max_inputs
        if asked.size.messages > most:
            raise Malformed(
                f"'input' has {asked.size.messages} entries; '{asked.model}' takes at most {most} in one request.",
                param="input",
            )
        if deployment.provider.wire != "ollama":
            return super().encode(asked, recipient, editor)
        has_tokens = bool(asked.size.tokens)
        return to_ollama_embed(asked.fields, upstream_model=deployment.upstream_model, has_tokens=has_tokens)

    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:  # noqa: ARG002 - the protocol's own signature
        """Ask for numbers where the provider knows nothing else."""
        if recipient.deployment.provider.sends_floats_only and "encoding_format" in fields:
            fields["encoding_format"] = "float"

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the answer as OpenAI's."""
        if deployment.provider.wire == "ollama":
            answer.body = from_ollama_embed(answer.body, model=deployment.upstream_model)
        body = super().decode_whole(answer, deployment)
        if not bytes(check_object(body).get("data", Raw(b""))).startswith(b"["):
            raise no_answer("an answer without embeddings")
        return body

    def read_whole(self, call: Call, answer: WholeBody, parts: RelayParts) -> Whole:  # noqa: ARG002 - the protocol's own signature
        """Return the vectors in the form that was asked for."""
        fields = check_object(answer.body)
        self.note_whole(call, fields)
        wanted: Encoding = "base64" if text_of_raw(call.asked.fields.get("encoding_format")) == "base64" else "float"
        data = convert_vectors(fields["data"], wanted)
        has_usage = call.tally.attempt.reported is not None
        if data is fields["data"] and has_usage:
            return PassedBody(call, answer.body)
        fields["data"] = data
        if not has_usage:
            fields.pop("usage", None)
        return EmbeddingsBody(call, fields)

    def read_usage(self, wire: Fields) -> ReadUsage:
        """Read ``prompt_tokens``."""
        return read_input_usage(wire)

    def note_text(self, fields: dict[str, Raw], attempt: Attempt) -> None:
        """Note nothing: embeddings say nothing, and the input is counted by itself."""


class EmbeddingsBody(PassedBody):
    """An answer whose vectors have been changed, or that lacked a usage."""

    def __init__(self, call: Call, fields: dict[str, Raw]) -> None:
        super().__init__(call, b"")
        self._fields = fields

    def body(self, usage: Usage) -> bytes:
        """Return what the client gets, with our count where the provider told none."""
        fields = {**self._fields, "model": Raw(msgspec.json.encode(self._asked))}
        if "usage" not in fields:
            counts = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
            fields["usage"] = Raw(msgspec.json.encode(counts))
        return msgspec.json.encode(fields)


def read_prompts(raw: Raw, param: str, most: int) -> Prompts:
    """Read a text, a list of texts, of tokens, or of lists of tokens; at most so many, none of them empty.

    Raises:
        Malformed: It is something else.
    """
    body = bytes(raw)
    try:
        if body.startswith(b'"'):
            texts = [_text_decoder.decode(body)]
            return _checked(Prompts(1, texts), texts, param)
        first = body[1:].lstrip()[:1] if body.startswith(b"[") else b""
        if first == b'"':
            texts = _texts_decoder.decode(body)
            found = _checked(Prompts(len(texts), texts), texts, param)
        elif first == b"[":
            lists = _token_lists_decoder.decode(body)
            found = _checked(Prompts(len(lists), [], sum(map(len, lists))), lists, param)
        elif first.isdigit():
            tokens = _tokens_decoder.decode(body)
            return Prompts(1, [], len(tokens))
        else:
            raise _no_prompt(param)
    except msgspec.DecodeError:
        raise _no_prompt(param) from None
    if found.count > most:
        raise Malformed(f"Invalid value for '{param}': it has {found.count} entries, at most {most}.", param=param)
    return found


def _checked(prompts: Prompts, entries: list[str] | list[list[int]], param: str) -> Prompts:
    if not all(entries):
        raise Malformed(f"Invalid value for '{param}': an entry is empty.", param=param)
    return prompts


def _no_prompt(param: str) -> Malformed:
    return Malformed(
        f"Invalid value for '{param}': expected a text, a list of texts, or a list of tokens, and not an empty one.",
        param=param,
        code="invalid_type",
    )
