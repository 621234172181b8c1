"""The items of a response, made from the deltas of a chat completion, with the events that tell of them (wire.md 1.10).

The SDK's stream helper demands an order: an item is added before anything of it is told, its index and id never
change, and each that was added is done before the response is. Thoughts and text are one item at a time; calls of
tools stay open until the answer ends, because a provider may mix their pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meterhouse.errors import UpstreamDown
from meterhouse.translate.call_id import new_call_id
from meterhouse.translate.responses.answer import Answering, Json
from meterhouse.translate.responses.items import CUSTOM_INPUT
from meterhouse.translate.said import arguments_in, text_in

Event = Json
MAX_BYTES = 16 * 1_048_576
"""A response tells all of its text once more at its end, so all of it is kept: a longer answer is a failure."""
MAX_CALLS = 1_024
_ITEM_BYTES = 256
_TEXT, _REFUSAL = "output_text", "refusal"


@dataclass(slots=True)
class _Call:
    """A call whose pieces are coming. It is an item of the output as soon as its name is known."""

    call_id: str
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    item: Json | None = None
    index: int = 0


class Output:
    """The items of one answer. Every method returns the events to send, without their sequence numbers."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._items = answering.output
        self._open: Json | None = None
        """The item of thoughts or text that is being told."""
        self._index = 0
        self._pieces: list[str] = []
        """Of the part that is being told."""
        self._logprobs: list[Json] = []
        self._calls: dict[int, _Call] = {}
        self._bytes = 0

    def take(self, delta: Json, logprobs: Any) -> Iterator[Event]:
        """Take one delta, or a whole message.

        Raises:
            UpstreamDown: The answer is longer than is kept.
        """
        if text := text_in(delta.get("reasoning_content")):
            yield from self._think(text)
        if text := text_in(delta.get("content")):
            yield from self._say(_TEXT, text, _logprobs_of(logprobs))
        annotations = delta.get("annotations")
        for annotation in annotations if isinstance(annotations, list) else ():
            yield from self._annotate(annotation)
        if text := text_in(delta.get("refusal")):
            yield from self._say(_REFUSAL, text, [])
        calls = delta.get("tool_calls")
        for piece in calls if isinstance(calls, list) else ():
            if isinstance(piece, dict):
                yield from self._call(piece)

    def finish(self, status: str) -> Iterator[Event]:
        """End every item that is still open; an answer that says nothing at all is one empty message.

        It never raises: all that it tells was kept before.
        """
        if not self._items and not self._calls and status == "completed":
            yield from self._say(_TEXT, "", [])
        yield from self._close(status)
        for call in self._calls.values():
            yield from self._end_call(call, status)
        self._calls.clear()

    def _keep(self, length: int) -> None:
        self._bytes += length
        if self._bytes > MAX_BYTES:
            raise UpstreamDown("The provider's answer is too long.", detail="longer than a response keeps")

    def _add(self, item: Json) -> Event:
        self._items.append(item)
        shown = {name: [] if name in {"content", "summary"} else value for name, value in item.items()}
        return {"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": shown}

    def _think(self, text: str) -> Iterator[Event]:
        is_summary = self._answering.wants_summary
        if self._open is None or self._open["type"] != "reasoning":
            yield from self._close("completed")
            item: Json = {"id": self._answering.new_id("rs"), "type": "reasoning", "status": "in_progress"}
            part = {"type": "summary_text" if is_summary else "reasoning_text", "text": ""}
            item |= {"summary": [part]} if is_summary else {"summary": [], "content": [part]}
            yield self._begin(item)
            yield self._part("added", part)
        self._keep(len(text))
        self._pieces.append(text)
        kind = "reasoning_summary_text" if is_summary else "reasoning_text"
        yield self._place() | {"type": f"response.{kind}.delta", "delta": text}

    def _say(self, kind: str, text: str, logprobs: list[Json]) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close("completed")
            item: Json = {"id": self._answering.new_id("msg"), "type": "message", "status": "in_progress"}
            yield self._begin(item | {"role": "assistant", "content": []})
        assert self._open is not None
        content = self._open["content"]
        if not content or content[-1]["type"] != kind:
            yield from self._end_part()
            content.append(_empty_part(kind))
            yield self._part("added", content[-1])
        self._keep(len(text) + _ITEM_BYTES * len(logprobs))
        self._pieces.append(text)
        if kind == _REFUSAL:
            yield self._place() | {"type": "response.refusal.delta", "delta": text}
            return
        self._logprobs += logprobs
        shown = [_without_bytes(row) for row in logprobs]
        yield self._place() | {"type": "response.output_text.delta", "delta": text, "logprobs": shown}

    def _annotate(self, annotation: Any) -> Iterator[Event]:
        cited = annotation.get("url_citation") if isinstance(annotation, dict) else None
        if not isinstance(cited, dict) or self._open is None or self._open["type"] != "message":
            return
        names = ("url", "title", "start_index", "end_index")
        if any(name not in cited for name in names) or not self._open["content"]:
            return
        annotations = self._open["content"][-1].get("annotations")
        if annotations is None:
            return
        row = {"type": "url_citation", **{name: cited[name] for name in names}}
        annotations.append(row)
        yield self._place() | {
            "type": "response.output_text.annotation.added",
            "annotation_index": len(annotations) - 1,
            "annotation": row,
        }

    def _call(self, piece: Json) -> Iterator[Event]:
        yield from self._close("completed")
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        call = self._call_of(piece, is_named=bool(function.get("name")))
        if call.item is None and (name := text_in(function.get("name"))):
            call.name = name
            yield from self._begin_call(call)
        if arguments := arguments_in(function.get("arguments")):
            self._keep(len(arguments))
            call.pieces.append(arguments)
            if call.item is not None and call.item["type"] == "function_call":
                yield _of(call) | {"type": "response.function_call_arguments.delta", "delta": arguments}

    def _call_of(self, piece: Json, *, is_named: bool) -> _Call:
        """Find the call that a piece belongs to: by its index, else by its id, else a name begins another."""
        call_id, number = text_in(piece.get("id")), piece.get("index")
        if not isinstance(number, int):
            last = len(self._calls) - 1
            found = [index for index, call in self._calls.items() if call.call_id == call_id]
            is_new = not found and bool(call_id or is_named or last < 0)
            number = found[0] if found else last + 1 if is_new else last
        call = self._calls.get(number)
        if call is None:
            self._keep(_ITEM_BYTES if len(self._calls) < MAX_CALLS else MAX_BYTES)
            is_taken = any(other.call_id == call_id for other in self._calls.values())
            # Outputs are told apart by the id of their call: two of one id would be one.
            call = self._calls[number] = _Call(new_call_id() if is_taken or not call_id else call_id)
        return call

    def _begin_call(self, call: _Call) -> Iterator[Event]:
        call.index = len(self._items)
        if call.name in self._answering.custom_tools:
            item = {"id": self._answering.new_id("ctc"), "type": "custom_tool_call"}
            call.item = item | {"call_id": call.call_id, "name": call.name, "input": ""}
            yield self._add(call.item)
            return
        item = {"id": self._answering.new_id("fc"), "type": "function_call", "status": "in_progress"}
        call.item = item | {"call_id": call.call_id, "name": call.name, "arguments": ""}
        yield self._add(call.item)
        if call.pieces:  # what came before the name
            yield _of(call) | {"type": "response.function_call_arguments.delta", "delta": "".join(call.pieces)}

    def _end_call(self, call: _Call, status: str) -> Iterator[Event]:
        if call.item is None:
            yield from self._begin_call(call)
        assert call.item is not None
        said = "".join(call.pieces)
        if call.item["type"] == "custom_tool_call":
            call.item["input"] = said = _custom_input(said)
            yield _of(call) | {"type": "response.custom_tool_call_input.delta", "delta": said}
            yield _of(call) | {"type": "response.custom_tool_call_input.done", "input": said}
        else:
            call.item |= {"arguments": said, "status": status}
            yield _of(call) | {"type": "response.function_call_arguments.done", "arguments": said}
        yield {"type": "response.output_item.done", "output_index": call.index, "item": call.item}

    def _begin(self, item: Json) -> Event:
        self._keep(_ITEM_BYTES)
        self._open, self._index = item, len(self._items)
        return self._add(item)

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        yield from self._end_part()
        self._open["status"] = status
        yield {"type": "response.output_item.done", "output_index": self._index, "item": self._open}
        self._open = None

    def _end_part(self) -> Iterator[Event]:
        """End the part that is being told, if there is one."""
        assert self._open is not None
        parts = self._open.get("content") or self._open.get("summary")
        if not parts or not self._pieces:
            return
        part, text = parts[-1], "".join(self._pieces)
        self._pieces = []
        part["refusal" if part["type"] == _REFUSAL else "text"] = text
        kind = {"summary_text": "reasoning_summary_text"}.get(part["type"], part["type"])
        done: Json = {"type": f"response.{kind}.done", "refusal" if kind == _REFUSAL else "text": text}
        if kind == _TEXT:
            part["logprobs"], self._logprobs = self._logprobs, []
            done["logprobs"] = [_without_bytes(row) for row in part["logprobs"]]
        yield self._place() | done
        yield self._part("done", part)

    def _part(self, happened: str, part: Json) -> Event:
        kind = "reasoning_summary_part" if part["type"] == "summary_text" else "content_part"
        return self._place() | {"type": f"response.{kind}.{happened}", "part": dict(part)}

    def _place(self) -> Event:
        """Return where the part that is being told stands."""
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": self._index}
        if self._open.get("summary"):
            return place | {"summary_index": 0}
        return place | {"content_index": len(self._open["content"]) - 1}


def _of(call: _Call) -> Event:
    assert call.item is not None
    return {"item_id": call.item["id"], "output_index": call.index}


def _empty_part(kind: str) -> Json:
    if kind == _REFUSAL:
        return {"type": _REFUSAL, "refusal": ""}
    return {"type": _TEXT, "text": "", "annotations": [], "logprobs": []}


def _custom_input(arguments: str) -> str:
    """Return the text that a custom tool is called with; arguments of another form are it themselves."""
    try:
        said = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return arguments
    given = said.get(CUSTOM_INPUT) if isinstance(said, dict) else None
    return given if isinstance(given, str) else arguments


def _logprobs_of(logprobs: Any) -> list[Json]:
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    rows = rows if isinstance(rows, list) else []
    return [_logprob(row) for row in rows if isinstance(row, dict) and "token" in row]


def _logprob(row: Json) -> Json:
    top = row.get("top_logprobs")
    others = top if isinstance(top, list) else []
    return _token(row) | {"top_logprobs": [_token(other) for other in others if isinstance(other, dict)]}


def _token(row: Json) -> Json:
    token = text_in(row.get("token"))
    spelled = row.get("bytes")
    return {
        "token": token,
        "logprob": row.get("logprob", 0.0),
        "bytes": spelled if isinstance(spelled, list) else list(token.encode("utf-8", "replace")),
    }


def _without_bytes(row: Json) -> Json:
    """Return the probabilities of a token as events tell them."""
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in row["top_logprobs"]]
    return {"token": row["token"], "logprob": row["logprob"], "top_logprobs": top}
