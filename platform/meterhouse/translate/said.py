"""Reads what a chat completion says, for a wire that tells it in other words.

A provider may put anything where a text, a list or an object belongs: what is none says nothing, and what is no JSON
is the provider's failure. Invariant: pure.
"""

from typing import Any

import msgspec

from meterhouse.errors import UpstreamDown

Json = dict[str, Any]
_decoder = msgspec.json.Decoder(Json)


def read_answer(payload: bytes) -> Json:
    """Decode a chunk or a whole answer.

    Raises:
        UpstreamDown: It is no JSON object.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_answer(error) from None


def objects_in(value: object) -> list[Json]:
    """Return the objects of a list; none where it is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def object_in(value: object) -> Json:
    """Return an object; an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def choices_of(answer: Json) -> list[Json]:
    """Return the choices of a chunk or an answer."""
    return objects_in(answer.get("choices"))


def text_in(value: object) -> str:
    """Return a text: itself, or that of a list of parts; empty for what is none."""
    if isinstance(value, list):
        return "".join(part["text"] for part in objects_in(value) if isinstance(part.get("text"), str))
    return value if isinstance(value, str) else ""


def word_in(value: object) -> str | None:
    """Return a word, such as a reason; None for what is none."""
    return value if isinstance(value, str) else None


def index_in(value: object) -> int:
    """Return the index of a choice; 0 for what is none."""
    return value if isinstance(value, int) else 0


def format_arguments(raw: msgspec.Raw) -> str:
    """Return the arguments of a call, which came as an object, as the text that they are in OpenAI's calls.

    Raises:
        UpstreamDown: Something in them is no text.
    """
    try:
        return msgspec.json.format(bytes(raw), indent=-1).decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_answer(error) from None


def arguments_in(value: object) -> str:
    """Return the arguments of a call as the text that they are; some servers send the object itself."""
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return value if isinstance(value, str) else ""


def _no_answer(error: Exception) -> UpstreamDown:
    return UpstreamDown(
        "The provider sent something that is not an answer.", detail=str(error), code="upstream_protocol_error"
    )
