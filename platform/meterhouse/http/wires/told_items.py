"""What a stream of response events has told of its items, so that the stream can be ended by us with all of it."""

from typing import Any

import msgspec
from msgspec import Raw

MAX_KEPT_BYTES = 16 * 1_048_576
"""What is told beyond this reaches the client, but is not repeated in an end of our own."""

_PLACES = {
    "response.output_text.delta": "content",
    "response.refusal.delta": "content",
    "response.reasoning_text.delta": "content",
    "response.reasoning_summary_text.delta": "summary",
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}
_PARTS = {"response.content_part.added": "content", "response.reasoning_summary_part.added": "summary"}

Json = dict[str, Any]


class ItemEvent(msgspec.Struct):
    """The fields of an event that tell of items."""

    type: str
    sequence_number: int = 0
    delta: Raw = Raw(b"")
    response: Raw = Raw(b"")
    item: Raw = Raw(b"")
    part: Raw = Raw(b"")
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0


class ToldItems:
    """The items of one stream."""

    def __init__(self) -> None:
        self._items: dict[int, Json] = {}
        self._pieces: dict[tuple[int, str, int], list[str]] = {}
        """Text that no ``done`` has repeated yet: by item, field and part."""
        self._with_text: set[int] = set()
        self._kept_bytes = 0

    def hear(self, event: ItemEvent) -> str:
        """Take an event; returns what the model wrote in it: deltas, names of calls, and items told in one piece."""
        kind = event.type
        if kind == "response.output_item.added":
            return self._begin(event)
        if kind == "response.output_item.done":
            return self._end(event)
        if kind in _PARTS:
            self._add_part(event, _PARTS[kind])
        elif kind.endswith(".delta") and bytes(event.delta).startswith(b'"'):
            return self._add_text(event)
        return ""

    def output(self) -> list[Json]:
        """Return the items as far as they were told; those that were not done are incomplete."""
        for (index, field, position), pieces in self._pieces.items():
            item = self._items.get(index)
            if item is None:
                continue
            if field in {"content", "summary"}:
                parts = item.get(field)
                if isinstance(parts, list) and position < len(parts):
                    part = parts[position]
                    part["refusal" if part.get("type") == "refusal" else "text"] = "".join(pieces)
            else:
                item[field] = "".join(pieces)
        for item in self._items.values():
            if item.get("status") == "in_progress":
                item["status"] = "incomplete"
        return [self._items[index] for index in sorted(self._items)]

    def _begin(self, event: ItemEvent) -> str:
        item = _object(event.item)
        if item is None:
            return ""
        self._items[event.output_index] = item
        name = item.get("name")
        return name if isinstance(name, str) else ""

    def _end(self, event: ItemEvent) -> str:
        index = event.output_index
        item = _object(event.item)
        if item is None:
            return ""
        self._items[index] = item
        for place in [place for place in self._pieces if place[0] == index]:
            del self._pieces[place]
        return "" if index in self._with_text else "".join(texts_of([item]))

    def _add_part(self, event: ItemEvent, field: str) -> None:
        item, part = self._items.get(event.output_index), _object(event.part)
        if item is not None and part is not None and isinstance(item.setdefault(field, []), list):
            item[field].append(part)

    def _add_text(self, event: ItemEvent) -> str:
        text = msgspec.json.decode(event.delta, type=str)
        self._with_text.add(event.output_index)
        field = _PLACES.get(event.type)
        if field is not None and self._kept_bytes < MAX_KEPT_BYTES:
            self._kept_bytes += len(text)
            position = {"content": event.content_index, "summary": event.summary_index}.get(field, 0)
            self._pieces.setdefault((event.output_index, field, position), []).append(text)
        return text


def texts_of(value: object) -> list[str]:
    """Return what the model wrote in a list of output items."""
    pieces: list[str] = []
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            names = ("text", "refusal", "name", "arguments", "input")
            pieces += [item[name] for name in names if isinstance(item.get(name), str)]
            pieces += texts_of(item.get("content")) + texts_of(item.get("summary"))
    return pieces


def _object(raw: Raw) -> Json | None:
    if not bytes(raw).startswith(b"{"):
        return None
    decoded: Json = msgspec.json.decode(raw)
    return decoded
