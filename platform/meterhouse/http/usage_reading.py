"""From a provider's usage object to ours, by the wire that it came on, and from ours to OpenAI's.

Invariant: a count that cannot be true is not believed, and marked; a part is never more than its whole. Cached, written
and audio tokens are parts of the input here, also where the wire counts them beside it.
"""

from typing import Annotated, Any, TypeGuard

import msgspec
from msgspec import Meta, Raw

from meterhouse.request import Attempt
from meterhouse.usage import SUSPECT_TOKENS, Usage

Fields = dict[str, Any]
Count = Annotated[int, Meta(ge=0, le=SUSPECT_TOKENS)]
"""What can be true; to ``msgspec`` a bool is no count."""


class ReadUsage(msgspec.Struct):
    """A usage object as read: ``usage`` if it is whole and can be true, else the parts that are."""

    usage: Usage | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    is_suspect: bool = False


class _InputDetails(msgspec.Struct):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    audio_tokens: Count | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Count | None = None
    audio_tokens: Count | None = None


class _ChatUsage(msgspec.Struct):
    """What ``read_chat_usage`` looks at, where all of it can be true."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: Count | None = None
    cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None


_chat_decoder = msgspec.json.Decoder(_ChatUsage)
_any_decoder = msgspec.json.Decoder()


def read_raw_chat_usage(raw: Raw) -> ReadUsage | None:
    """Read a usage of chat completions as it came: as ``read_chat_usage`` does, and None where it is no object.

    Nearly all are as they should be, and checked while they are decoded.
    """
    try:
        wire = _chat_decoder.decode(raw)
    except msgspec.ValidationError:
        fields = _any_decoder.decode(raw)
        return read_chat_usage(fields) if isinstance(fields, dict) else None
    input_tokens, output_tokens = wire.prompt_tokens, wire.completion_tokens
    read = ReadUsage(None, input_tokens, output_tokens)
    if input_tokens is None or output_tokens is None:
        return read
    inside, outside = wire.prompt_tokens_details, wire.completion_tokens_details
    cached = inside.cached_tokens if inside is not None else None
    if cached is None:
        cached = wire.cached_tokens if wire.prompt_cache_hit_tokens is None else wire.prompt_cache_hit_tokens
    reasoning = outside.reasoning_tokens if outside is not None else None
    if reasoning is None:
        reasoning = wire.reasoning_tokens
    if inside is None and outside is None and not cached and not reasoning:
        read.usage = Usage(input_tokens, 0, 0, output_tokens)
        return read
    read.usage = _compose(
        read,
        cached=cached or 0,
        cache_write=(inside.cache_write_tokens or 0) if inside is not None else 0,
        input_audio=(inside.audio_tokens or 0) if inside is not None else 0,
        reasoning=reasoning or 0,
        output_audio=(outside.audio_tokens or 0) if outside is not None else 0,
    )
    return read


def read_chat_usage(wire: Fields) -> ReadUsage:
    """Read that of chat completions and completions, in every spelling that a provider has (wire.md 7, row 14)."""
    prompt_details = _mapping(wire.get("prompt_tokens_details"))
    output_details = _mapping(wire.get("completion_tokens_details"))
    read = _read_totals(wire.get("prompt_tokens"), wire.get("completion_tokens"))
    if read.input_tokens is None or read.output_tokens is None:
        return read
    cached = _part(prompt_details.get("cached_tokens"), wire.get("prompt_cache_hit_tokens"), wire.get("cached_tokens"))
    read.usage = _compose(
        read,
        cached=cached,
        cache_write=_part(prompt_details.get("cache_write_tokens")),
        input_audio=_part(prompt_details.get("audio_tokens")),
        reasoning=_part(output_details.get("reasoning_tokens"), wire.get("reasoning_tokens")),
        output_audio=_part(output_details.get("audio_tokens")),
    )
    return read


def read_input_usage(wire: Fields) -> ReadUsage:
    """Read that of embeddings, which write nothing (wire.md 1.8); some servers say only the total."""
    tokens = wire.get("prompt_tokens")
    read = _read_totals(wire.get("total_tokens") if tokens is None else tokens, 0)
    if read.input_tokens is not None:
        read.usage = Usage(input_tokens=read.input_tokens)
    return read


def read_responses_usage(wire: Fields) -> ReadUsage:
    """Read that of responses, and of images and transcriptions, which have the same names (wire.md 1.10)."""
    input_details = _mapping(wire.get("input_tokens_details") or wire.get("input_token_details"))
    output_details = _mapping(wire.get("output_tokens_details") or wire.get("output_token_details"))
    read = _read_totals(wire.get("input_tokens"), wire.get("output_tokens"))
    if read.input_tokens is None or read.output_tokens is None:
        return read
    read.usage = _compose(
        read,
        cached=_part(input_details.get("cached_tokens")),
        cache_write=_part(input_details.get("cache_write_tokens")),
        input_audio=_part(input_details.get("audio_tokens")),
        reasoning=_part(output_details.get("reasoning_tokens")),
        output_audio=_part(output_details.get("audio_tokens")),
    )
    return read


def read_messages_usage(wire: Fields) -> ReadUsage:
    """Read that of Anthropic's messages, whose input leaves out what was cached and what was written (wire.md 1.11)."""
    fresh = wire.get("input_tokens")
    cached, written = (wire.get(name) or 0 for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
    # The input is the sum of the three: where one of them cannot be true, neither can it.
    if not (_is_believable(cached) and _is_believable(written)):
        return ReadUsage(is_suspect=True)
    total = fresh + cached + written if _is_believable(fresh) else fresh
    read = _read_totals(total, wire.get("output_tokens"))
    if read.input_tokens is not None and read.output_tokens is not None:
        details = _mapping(wire.get("output_tokens_details"))
        reasoning = _part(details.get("thinking_tokens"))
        read.usage = _compose(read, cached=cached, cache_write=written, reasoning=reasoning)
    return read


def usage_on_wire(usage: Usage) -> dict[str, object]:
    """Write a usage as OpenAI does (wire.md 1.3)."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "audio_tokens": usage.input_audio_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.output_audio_tokens,
        },
    }


def note_usage(attempt: Attempt, read: ReadUsage) -> None:
    """Put what was read into an attempt: as reported where it is whole, else as the parts that are known."""
    attempt.is_suspect = read.is_suspect
    attempt.reported = read.usage
    attempt.known_input_tokens, attempt.known_output_tokens = read.input_tokens, read.output_tokens


def _read_totals(input_tokens: Any, output_tokens: Any) -> ReadUsage:
    for value in (input_tokens, output_tokens):
        if value is not None and not _is_believable(value):
            return ReadUsage(is_suspect=True)
    return ReadUsage(input_tokens=input_tokens, output_tokens=output_tokens)


def _compose(
    read: ReadUsage,
    *,
    cached: int = 0,
    cache_write: int = 0,
    input_audio: int = 0,
    reasoning: int = 0,
    output_audio: int = 0,
) -> Usage:
    input_tokens, output_tokens = read.input_tokens or 0, read.output_tokens or 0
    cached = min(cached, input_tokens)
    cache_write = min(cache_write, input_tokens - cached)
    return Usage(
        input_tokens=input_tokens,
        cached_input_tokens=cached,
        cache_write_tokens=cache_write,
        output_tokens=output_tokens,
        reasoning_tokens=min(reasoning, output_tokens),
        input_audio_tokens=min(input_audio, input_tokens - cached - cache_write),
        output_audio_tokens=min(output_audio, output_tokens),
    )


def _is_believable(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= SUSPECT_TOKENS  # a bool is no count


def _part(*values: object) -> int:
    """Return the first count that is one; an explicit 0 counts."""
    for value in values:
        if type(value) is int and 0 <= value <= SUSPECT_TOKENS:
            return value
    return 0


def _mapping(value: object) -> Fields:
    return value if isinstance(value, dict) else {}
