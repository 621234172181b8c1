"""What a stream of response events has told of its items, so that the stream can be ended by us with all of it."""

from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.http.passing import decode_or_none

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
        self._open: set[int] = set()
        self._kept_bytes = 0

    def hear(self, event: ItemEvent) -> str:
        """Return what the model wrote in an event: a delta, the name of a call, an item that is told in one piece."""
        index = event.output_index
        if event.type.endswith(".delta") and (text := _text(event.delta)) is not None:
            self._with_text.add(index)
            return text
        if event.type == "response.output_item.added":
            name = (_object(event.item) or {}).get("name")
            return name if isinstance(name, str) else ""
        if event.type == "response.output_item.done" and index not in self._with_text:
            return "".join(texts_of([_object(event.item)]))
        return ""

    def keep(self, event: ItemEvent) -> None:
        """Take an event that reaches the client."""
        kind, index = event.type, event.output_index
        item = _object(event.item)
        if kind == "response.output_item.added" and item is not None:
            self._items[index] = item
            self._open.add(index)
        elif kind == "response.output_item.done" and item is not None:
            self._open.discard(index)
            self._kept_bytes += len(event.item)
            if self._kept_bytes < MAX_KEPT_BYTES:
                self._items[index] = item
            else:
                self._items.pop(index, None)
            for place in [place for place in self._pieces if place[0] == index]:
                del self._pieces[place]
        elif kind in _PARTS:
            self._add_part(event, _PARTS[kind])
        elif kind in _PLACES and (text := _text(event.delta)):
            self._add_text(event, _PLACES[kind], text)

    def finish(self) -> list[tuple[int, Json]]:
        """End the items that are not done as incomplete, with all that was told of them; each with its index."""
        for (index, field, position), pieces in self._pieces.items():
            item = self._items.get(index)
            if item is None:
                continue
            if field in {"content", "summary"}:
                parts = item.get(field)
                part = parts[position] if isinstance(parts, list) and 0 <= position < len(parts) else None
                if isinstance(part, dict):
                    part["refusal" if part.get("type") == "refusal" else "text"] = "".join(pieces)
            else:
                item[field] = "".join(pieces)
        self._pieces.clear()
        ended = [(index, self._items[index]) for index in sorted(self._open)]
        self._open.clear()
        for _, item in ended:
            if "status" in item:
                item["status"] = "incomplete"
        return ended

    def output(self) -> list[Json]:
        """Return all items in order; ``finish`` must have been called."""
        return [self._items[index] for index in sorted(self._items)]

    def _add_part(self, event: ItemEvent, field: str) -> None:
        item, part = self._items.get(event.output_index), _object(event.part)
        if item is not None and part is not None and isinstance(item.setdefault(field, []), list):
            item[field].append(part)

    def _add_text(self, event: ItemEvent, field: str, text: str) -> None:
        if self._kept_bytes < MAX_KEPT_BYTES:
            self._kept_bytes += len(text)
            position = {"content": event.content_index, "summary": event.summary_index}.get(field, 0)
            self._pieces.setdefault((event.output_index, field, position), []).append(text)


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
    decoded = decode_or_none(raw)
    return decoded if isinstance(decoded, dict) else None


def _text(raw: Raw) -> str | None:
    decoded = decode_or_none(raw) if bytes(raw).startswith(b'"') else None
    return decoded if isinstance(decoded, str) else None
