"""The functions of a request as a parser needs them: their names, and the types of what they take.

Formats that write values as bare text leave open what ``5`` is; the function's JSON Schema says it. Where it says
nothing, JSON is taken for JSON, and everything else for text.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from meterhouse.translate.tool_text.source import Mismatch, Reason

STRING = "string"
_TYPES: Mapping[type, frozenset[str]] = {
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    dict: frozenset({"object"}),
    list: frozenset({"array"}),
    type(None): frozenset({"null"}),
}
_SPELLINGS = {"True": b"true", "False": b"false", "None": b"null"}


class Call(NamedTuple):
    """A call that was found: ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


class Tools:
    """The functions that a request offers, each with the schema of its parameters (None: not stated)."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any] | None]) -> None:
        self._schemas = dict(schemas)

    @property
    def names(self) -> Iterable[str]:
        """The functions' names in the request's order."""
        return self._schemas.keys()

    def is_name(self, name: str) -> bool:
        """Whether a function has this name."""
        return name in self._schemas

    def begins_name(self, text: str) -> bool:
        """Whether a function's name begins with this."""
        return any(name.startswith(text) for name in self._schemas)

    def call_of_object(self, name: str, text: str) -> Call:
        """Return a call whose arguments are a JSON object.

        Raises:
            Mismatch: The name is unknown, or the arguments are no JSON object.
        """
        if not self.is_name(name):
            raise Mismatch(Reason.UNKNOWN_FUNCTION)
        return Call(name, _object(text.encode()))

    def call_of_json(self, text: str) -> Call:
        """Return the call that a JSON object describes: ``name``, and ``arguments`` or ``parameters``.

        Raises:
            Mismatch: It describes none, or one of an unknown function.
        """
        try:
            described = _described_decoder.decode(text)
        except (msgspec.DecodeError, RecursionError):
            raise Mismatch(Reason.MALFORMED) from None
        if not self.is_name(described.name):
            raise Mismatch(Reason.UNKNOWN_FUNCTION)
        arguments = bytes(described.arguments or described.parameters or Raw(b"{}"))
        if arguments.startswith(b'"'):
            # As OpenAI's API has it, and as some models have learned it from there: an object as a string.
            arguments = str(msgspec.json.decode(arguments)).encode()
        return Call(described.name, _object(b"{}" if arguments == b"null" else arguments))

    def call_of_texts(self, name: str, texts: Mapping[str, str]) -> Call:
        """Return a call whose values are bare text, each made what the function's schema wants (rule 5)."""
        return Call(name, _encode({key: self._cast(name, key, text) for key, text in texts.items()}))

    def call_of_values(self, name: str, values: Mapping[str, Any]) -> Call:
        """Return a call with these values.

        Raises:
            Mismatch: JSON cannot hold one of them.
        """
        return Call(name, _encode(values))

    def find_by_keys(self, arguments: str) -> str:
        """Return the only function that takes these arguments; ``""`` where none or several do."""
        try:
            keys = msgspec.json.decode(arguments, type=dict[str, Raw]).keys()
        except (msgspec.DecodeError, RecursionError):
            return ""
        fitting = [name for name, schema in self._schemas.items() if _takes(schema or {}, keys)]
        return fitting[0] if len(fitting) == 1 else ""

    def _cast(self, name: str, key: str, text: str) -> Raw | str:
        schema = (self._schemas[name] or {}).get("properties")
        schema = schema.get(key) if isinstance(schema, Mapping) else None
        schema = schema if isinstance(schema, Mapping) else {}
        types = _types_of(schema)
        if STRING in types or text in _list_in(schema, "enum"):
            return Raw(b"null") if text == "null" and "null" in types else text
        spelled = _SPELLINGS.get(text.strip()) or text.strip().encode()
        try:
            value = msgspec.json.decode(spelled)
        except (msgspec.DecodeError, RecursionError):
            return text
        kinds = _TYPES.get(type(value), frozenset())
        if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
            return Raw(str(int(value)).encode())
        return Raw(spelled) if kinds & types or (not types and not isinstance(value, str)) else text


class _Described(msgspec.Struct):
    name: str
    arguments: Raw = Raw(b"")
    parameters: Raw = Raw(b"")


_described_decoder = msgspec.json.Decoder(_Described)


def _object(text: bytes) -> str:
    """Return a JSON object without white space between its parts."""
    try:
        # Whole, and not to raw parts: a client will decode it all.
        msgspec.json.decode(text, type=dict[str, Any])
        return msgspec.json.format(text, indent=-1).decode()
    except (msgspec.DecodeError, RecursionError):
        raise Mismatch(Reason.MALFORMED) from None


def _encode(values: Mapping[str, Any]) -> str:
    try:
        return msgspec.json.encode(values).decode()
    except (ValueError, OverflowError, TypeError):
        # A lone surrogate out of an escape.
        raise Mismatch(Reason.MALFORMED) from None


def _types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the JSON types that a schema allows; empty: it does not say."""
    stated = schema.get("type")
    found = [stated, *_list_in(schema, "type")]
    for name in ("anyOf", "oneOf"):
        found += [option.get("type") for option in _list_in(schema, name) if isinstance(option, Mapping)]
    return frozenset(kind for kind in found if isinstance(kind, str))


def _list_in(schema: Mapping[str, Any], name: str) -> list[Any]:
    values = schema.get(name)
    return values if isinstance(values, list) else []


def _takes(schema: Mapping[str, Any], keys: Iterable[str]) -> bool:
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    needed = {name for name in _list_in(schema, "required") if isinstance(name, str)}
    return needed <= set(keys) <= known.keys()
