"""Names of parameters in other letters: servers written in Go take ``MODEL`` for ``model``, and of both the last one.

Invariant: what is checked, held for and edited under a name is all that any server reads under it. Not here: the names
of an answer's bound, of which none but ours goes out (``http.body``), and a name that is there twice (``http.intake``).
"""

from collections.abc import Collection, Mapping

import msgspec
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.message import CustomCall, FunctionCall, Message, Part, ToolCall

_objects_decoder = msgspec.json.Decoder(list[dict[str, Raw]])
_object_decoder = msgspec.json.Decoder(dict[str, Raw])


def refuse_spellings(fields: Mapping[str, object], *known: Collection[str], spared: Collection[str] = ()) -> None:
    """Refuse a name that is a known one but for its letters.

    Args:
        fields: of one object.
        known: the names that mean something here, in small letters.
        spared: those of them that may come in any letters.

    Raises:
        Malformed: There is one.
    """
    together = "".join(fields)
    if together.isascii() and together.islower():
        return
    for name in fields:
        # As Go compares, to which a long s and the sign of Kelvin are letters of ASCII too.
        plain = name.casefold()
        if plain != name and plain not in spared and any(plain in names for names in known):
            text = f"Unsupported parameter: '{name}'. It is written '{plain}'."
            raise Malformed(text, param=plain, code="unsupported_parameter")


def refuse_spellings_in_messages(messages: Raw) -> None:
    """Refuse the same in messages that were checked, in their parts and calls; raises Malformed."""
    for message in _objects_in(messages):
        refuse_spellings(message, Message.__struct_fields__)
        for part in _objects_in(message.get("content")):
            refuse_spellings(part, Part.__struct_fields__)
        for call in _objects_in(message.get("tool_calls")):
            refuse_spellings(call, ToolCall.__struct_fields__)
            for function in _objects_in(call.get("function")):
                refuse_spellings(function, FunctionCall.__struct_fields__)
            for custom in _objects_in(call.get("custom")):
                refuse_spellings(custom, CustomCall.__struct_fields__)
        for function in _objects_in(message.get("function_call")):
            refuse_spellings(function, FunctionCall.__struct_fields__)


def _objects_in(raw: Raw | None) -> list[dict[str, Raw]]:
    """Return the objects of a list, or the one that there is; what is in them stays as it came, whatever it is."""
    if raw is None:
        return []
    begin = bytes(memoryview(raw)[:1])
    if begin == b"[":
        return _objects_decoder.decode(raw)
    return [_object_decoder.decode(raw)] if begin == b"{" else []
