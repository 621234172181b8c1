"""What the relay reads of a provider's chunk or body: text sizes, finish reasons, usage, errors.

Decoding is shallow and typed; a payload whose fields have unexpected types is read leniently rather than refused,
because its original bytes are forwarded either way. Usage is looked for in every place that a provider puts it
(wire.md 7, rule 4).
"""

from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.errors import UpstreamDown
from meterhouse.http.usage_reading import ReadUsage, read_raw_chat_usage

MAX_NAME_LENGTH = 256
"""A provider's model and tier names are cut to this: they go into every record."""
UNSEEN_FACTOR = 8
UNSEEN_BYTES = 1_024
"""A chunk longer than eight times its known text and this much more is searched for text under other names."""

_TEXTLESS_NAMES = frozenset({"role", "id", "type", "index", "audio", "annotations", "thinking_blocks"})
"""``thinking_blocks`` are the reasoning once more, with what its provider signed."""
_EMPTY = Raw(b"")
_NOTHING = (Raw(b"null"), Raw(b"{}"), Raw(b'""'), Raw(b"false"))
_LONGEST_NOTHING = 5


class FunctionDelta(msgspec.Struct):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class CustomDelta(msgspec.Struct):
    """A piece of a call of a custom tool."""

    name: str | None = None
    input: str | None = None


class ToolDelta(msgspec.Struct):
    """A piece of a tool call."""

    id: str | None = None
    function: FunctionDelta | None = None
    custom: CustomDelta | None = None


class Delta(msgspec.Struct):
    """A piece of a message, or a whole message."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolDelta] | None = None
    function_call: FunctionDelta | None = None
    audio: Raw = Raw(b"")


class Choice(msgspec.Struct):
    """One choice of a chunk (``delta``) or of a body (``message``), or of a legacy completion (``text``)."""

    index: int = 0
    text: str | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    usage: Raw = Raw(b"")


class Groq(msgspec.Struct):
    """Groq's extension."""

    usage: Raw = Raw(b"")


class Chunk(msgspec.Struct):
    """The fields of a chunk or body that are looked at."""

    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    service_tier: str | None = None
    choices: list[Choice] | None = None
    usage: Raw = Raw(b"")
    """Empty where it says nothing, also null, as on most chunks of a stream: whoever decodes sees to that."""
    error: Raw = Raw(b"")
    message: Raw = Raw(b"")
    """Of an error without an envelope."""
    x_groq: Groq | None = None


class LenientChunk(Chunk):
    """A chunk whose fields have other types than usual: a delta is one text, its JSON."""


_chunk_decoder = msgspec.json.Decoder(Chunk)
_any_decoder = msgspec.json.Decoder()


def decode_chunk(payload: bytes) -> Chunk:
    """Read a payload.

    Raises:
        UpstreamDown: It is not a JSON object.
    """
    try:
        chunk = _chunk_decoder.decode(payload)
    except msgspec.ValidationError:
        chunk = _lenient(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _garbage(str(error)) from None
    usage = chunk.usage
    if usage and len(usage) <= _LONGEST_NOTHING and usage in _NOTHING:
        chunk.usage = _EMPTY
    return chunk


def decode_readable(payload: bytes) -> Chunk:
    """Read a payload all of which is going to be told in other words.

    Raises:
        UpstreamDown: It is not a JSON object, or something in it is no text or no number.
    """
    _decode(Raw(payload))
    return decode_chunk(payload)


def is_set(raw: Raw) -> bool:
    """Whether a raw field holds something."""
    return bool(raw) and raw not in _NOTHING


def is_failure(chunk: Chunk) -> bool:
    """Whether it is an error, in an envelope or flat (Cerebras, Mistral and vLLM; wire.md 2)."""
    # Almost no chunk has any of these; an empty field is told from one that is set without a call.
    if chunk.error and is_set(chunk.error):
        return True
    return chunk.object == "error" or (chunk.choices is None and is_set(chunk.message))


def text_of(delta: Delta) -> str:
    """All text of a delta or message that a model wrote: content, reasoning, refusal, tool calls."""
    if (
        delta.tool_calls is None
        and delta.reasoning is None
        and delta.reasoning_content is None
        and delta.refusal is None
        and delta.function_call is None
    ):
        return delta.content or ""
    pieces = [delta.content, delta.reasoning_content, delta.refusal]
    if delta.reasoning != delta.reasoning_content:
        pieces.append(delta.reasoning)
    for call in [*(tool.function for tool in delta.tool_calls or ()), delta.function_call]:
        if call is not None:
            pieces += [call.name, call.arguments]
    for tool in delta.tool_calls or ():
        if tool.custom is not None:
            pieces += [tool.custom.name, tool.custom.input]
    return "".join(piece for piece in pieces if piece)


def all_text_of(payload: bytes, index: int) -> str:
    """All strings of a choice's delta or message, whatever they are called, but for ids, types and sound.

    For a chunk that is much longer than the text that ``text_of`` knows of: a field that nobody knows yet may carry
    what the model wrote, and against a budget it must not count as nothing.
    """
    whole = msgspec.json.decode(payload)
    pieces: list[str] = []
    for choice in whole.get("choices") or ():
        if isinstance(choice, dict) and choice.get("index", 0) == index:
            for body in (choice.get("delta"), choice.get("message")):
                _collect(body, pieces)
    return "".join(pieces)


def _collect(value: object, pieces: list[str]) -> None:
    if isinstance(value, str):
        pieces.append(value)
    elif isinstance(value, list):
        for item in value:
            _collect(item, pieces)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _TEXTLESS_NAMES:
                _collect(item, pieces)


def read_usage(chunk: Chunk) -> ReadUsage | None:
    """Find the usage of a chunk or body; None if it carries none."""
    raw = chunk.usage or _find_usage(chunk)
    try:
        return None if raw is None else read_raw_chat_usage(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # It was passed over when the rest was read, and is no text or no number after all.
        raise _garbage(str(error)) from None


def _find_usage(chunk: Chunk) -> Raw | None:
    """Look where usage is not at the top."""
    for choice in chunk.choices or ():
        if choice.usage and is_set(choice.usage):
            return choice.usage
    groq = chunk.x_groq
    return groq.usage if groq is not None and is_set(groq.usage) else None


def _lenient(payload: bytes) -> Chunk:
    """Read a payload whose known fields have other types than usual, taking what fits."""
    try:
        fields = msgspec.json.decode(payload, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _garbage(str(error)) from None
    chunk = LenientChunk(
        usage=fields.get("usage", _EMPTY), error=fields.get("error", _EMPTY), message=fields.get("message", _EMPTY)
    )
    for name in ("id", "object", "model", "service_tier"):
        value = _decode(fields[name]) if name in fields else None
        if isinstance(value, str):
            setattr(chunk, name, value)
    choices = _decode(fields["choices"]) if "choices" in fields else None
    if isinstance(choices, list):
        chunk.choices = [_lenient_choice(choice) for choice in choices if isinstance(choice, dict)]
    return chunk


def _lenient_choice(choice: dict[str, Any]) -> Choice:
    index = choice.get("index")
    finish = choice.get("finish_reason")
    body = choice.get("delta") or choice.get("message")
    text = msgspec.json.encode(body).decode() if body else None
    delta = Delta(content=text)
    return Choice(
        index=index if isinstance(index, int) else 0,
        text=choice["text"] if isinstance(choice.get("text"), str) else None,
        delta=delta if choice.get("delta") else None,
        message=delta if choice.get("message") else None,
        finish_reason=finish if isinstance(finish, str) else None,
        usage=Raw(msgspec.json.encode(choice["usage"])) if isinstance(choice.get("usage"), dict) else _EMPTY,
    )


def _decode(raw: Raw) -> Any:
    """Read a field that was passed over when its chunk was, which may be no text or no number after all."""
    try:
        return _any_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _garbage(str(error)) from None


def _garbage(detail: str) -> UpstreamDown:
    return UpstreamDown(
        "The provider sent something that is not valid JSON.", detail=detail, code="upstream_protocol_error"
    )
