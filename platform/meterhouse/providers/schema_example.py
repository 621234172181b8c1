"""The smallest value that satisfies a JSON Schema, for the simulator's structured answers and tool arguments.

Invariant: terminates on any schema, recursive ones too; where a keyword is not understood (``pattern``), the value is
a guess. Not here: validation.
"""

from collections.abc import Callable, Mapping
from typing import Any

MAX_DEPTH = 24
MAX_ITEMS = 100
MAX_NODES = 2_000

_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
}


def smallest_value(schema: Any) -> Any:
    """Return a value that a schema accepts: required properties only, the first of every choice."""
    return _Example(schema if isinstance(schema, dict) else {}).value(schema, MAX_DEPTH)


class _Example:
    """One example in the making; counts what it makes, so that no nesting of lists grows without bound."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._nodes = MAX_NODES

    def value(self, schema: Any, depth: int) -> Any:
        self._nodes -= 1
        if depth <= 0 or self._nodes <= 0:
            return None
        if not isinstance(schema, dict):
            return {}
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        for choice in ("anyOf", "oneOf"):
            options = schema.get(choice)
            if isinstance(options, list) and options:
                return self.value(_simplest(options), depth - 1)
        kind = _kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        make = _SCALARS.get(kind)
        return make(schema) if make is not None else None

    def _resolve(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Follow ``$ref`` inside the document, and lay the parts of ``allOf`` over each other."""
        for _ in range(depth):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#"):
                break
            found = _at(self._root, reference)
            schema = {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
        parts = schema.get("allOf")
        if not isinstance(parts, list):
            return schema
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in parts:
            self._nodes -= 1
            if not isinstance(part, dict) or depth <= 1 or self._nodes <= 0:
                continue
            resolved = self._resolve(part, depth - 1)
            properties = {**_mapping(merged.get("properties")), **_mapping(resolved.get("properties"))}
            required = [*_list(merged.get("required")), *_list(resolved.get("required"))]
            merged = {**merged, **resolved, "required": required, "properties": properties}
        return merged

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = _mapping(schema.get("properties"))
        names = (name for name in _list(schema.get("required")) if isinstance(name, str))
        return {name: self.value(properties.get(name, {"type": "string"}), depth - 1) for name in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        values = [self.value(item, depth - 1) for item in _list(schema.get("prefixItems"))[:MAX_ITEMS]]
        wanted = min(_integer(schema.get("minItems"), 0), MAX_ITEMS)
        item = schema.get("items", {"type": "string"})
        values += [self.value(item, depth - 1) for _ in range(len(values), wanted)]
        return values


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(root: Mapping[str, Any], reference: str) -> dict[str, Any]:
    place: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if not step:
            continue
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
    return place if isinstance(place, dict) else {}


def _simplest(options: list[Any]) -> Any:
    """Prefer what cannot recurse: a null, then a scalar, then the first."""
    scalars = ("null", "boolean", "integer", "number", "string")
    for kind in scalars[:1]:
        for option in options:
            if isinstance(option, dict) and option.get("type") == kind:
                return option
    for option in options:
        if isinstance(option, dict) and option.get("type") in scalars:
            return option
    return options[0]


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = "null" if "null" in kind else next((part for part in kind if isinstance(part, str)), None)
    if isinstance(kind, str):
        return kind
    if "items" in schema or "prefixItems" in schema:
        return "array"
    return "object" if "properties" in schema or "required" in schema else "string"


def _string(schema: Mapping[str, Any]) -> str:
    form = schema.get("format")
    text = _FORMATS.get(form, "") if isinstance(form, str) else ""
    if not text:
        text = "simulated"
        longest = schema.get("maxLength")
        if isinstance(longest, int):
            text = text[: max(0, longest)]
    return text.ljust(min(_integer(schema.get("minLength"), 0), 1_000), "x")


def _number(schema: Mapping[str, Any]) -> int | float:
    lowest, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    highest, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    value: int | float = 0
    if isinstance(highest, int | float):
        value = min(value, highest)
    if isinstance(below, int | float) and not isinstance(below, bool) and value >= below:
        value = below - 1
    if isinstance(lowest, int | float):
        value = max(value, lowest)
    if isinstance(above, int | float) and not isinstance(above, bool) and value <= above:
        value = above + 1
    step = schema.get("multipleOf")
    if isinstance(step, int | float) and step > 0 and value % step:
        value += step - value % step
    return value


def _whole(schema: Mapping[str, Any]) -> int:
    value = _number(schema)
    return int(value) if value == int(value) else int(value) + 1


def _integer(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _false(_schema: Mapping[str, Any]) -> bool:
    return False


_SCALARS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "string": _string,
    "number": _number,
    "integer": _whole,
    "boolean": _false,
}
