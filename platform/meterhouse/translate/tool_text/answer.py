"""OpenAI's chunks and bodies with the calls that a model wrote as text in ``tool_calls``.

A payload in which nothing changes comes back as the same bytes; in the others only what must change does. Whatever has
not the shape that is expected passes as it came. Not here: what the calls look like (the families), what is billed.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.translate.call_id import NewCallId
from meterhouse.translate.tool_text.grammar import Grammar
from meterhouse.translate.tool_text.parser import Piece, ToolTextParser
from meterhouse.translate.tool_text.tools import Call, Tools

MAX_CHOICES = 128
"""No request has more choices (wire.md 1.2); those beyond it pass as they came."""

Fields = dict[str, Any]
Waiting = list[tuple[int, list[str], int, str]]
"""Per choice what came and was neither said nor called: pieces, how many of them count, and what follows them."""

_fields_decoder = msgspec.json.Decoder(dict[str, Raw])
_choices_decoder = msgspec.json.Decoder(list[dict[str, Raw]])
_any_decoder = msgspec.json.Decoder()
_NULL = Raw(b"null")
_EMPTY = (b"null", b"[]", b'""')


class ToolTextAnswer:
    """One answer, streamed or whole."""

    def __init__(self, grammar: Grammar, tools: Tools, new_call_id: NewCallId | None = None) -> None:
        self._grammar = grammar
        self._tools = tools
        self._new_call_id = new_call_id or grammar.new_call_id
        self._parsers: dict[int, ToolTextParser] = {}
        self._with_role: set[int] = set()

    @property
    def results(self) -> Counter[str]:
        """How many calls there were, and how many texts that looked like one and were none, by reason."""
        return sum((parser.results for parser in self._parsers.values()), Counter())

    def rewrite_chunk(self, payload: bytes) -> list[bytes]:
        """Return the payloads to send instead of one of a stream: the same, another, several or none."""
        found = _read_choices(payload)
        if found is None:
            return [payload]
        fields, choices = found
        rows: list[Fields] = []
        is_changed = False
        for choice in choices:
            changed = self._rewrite_choice(choice)
            is_changed |= changed is not None
            rows += [dict(choice)] if changed is None else changed
        if not is_changed:
            return [payload]
        last = len(rows) - 1
        payloads = []
        for number, row in enumerate(rows):
            out: Fields = {**fields, "choices": [row]}
            if number < last:
                out.pop("usage", None)
            payloads.append(msgspec.json.encode(out))
        return payloads

    def rewrite_body(self, body: bytes) -> bytes:
        """Return a whole answer with its calls in ``tool_calls``."""
        found = _read_choices(body)
        if found is None:
            return body
        fields, choices = found
        rows = [self._rewrite_message(choice) for choice in choices]
        if all(row is None for row in rows):
            return body
        kept = [row or choice for row, choice in zip(rows, choices, strict=True)]
        return msgspec.json.encode({**fields, "choices": kept})

    def waiting(self) -> Waiting:
        """Return what is held back, cheaply; ``texts_of`` makes texts of it."""
        return [(index, *parser.waiting()) for index, parser in self._parsers.items() if not parser.is_over]

    # --- streams

    def _rewrite_choice(self, choice: Mapping[str, Raw]) -> list[Fields] | None:
        """Return what to send instead of a choice; None: send it as it is."""
        parser = self._parser(choice)
        delta = _read_fields(choice.get("delta"))
        finish = _read(choice.get("finish_reason"))
        if delta is None and finish:
            delta = {}  # some servers say nothing but the finish; what was held back comes with it all the same
        if parser is None or delta is None:
            return None
        content = _read(delta.get("content"))
        said = content if isinstance(content, str) else ""
        own = delta.get("tool_calls", _NULL)
        has_own = bytes(own) not in _EMPTY
        if parser.is_over:
            return self._renumbered(choice, delta, parser) if has_own and parser.calls else None
        pieces = parser.feed(said) if said else []
        if finish or has_own:
            pieces = _joined([*pieces, *parser.finish(is_cut=finish == "length")])
        is_turned = finish == "stop" and parser.calls > 0
        if not is_turned and not (has_own and parser.calls) and pieces == ([said] if said else []):
            return self._first(choice, delta, content)
        return self._rows(choice, delta, parser, pieces)

    def _first(self, choice: Mapping[str, Raw], delta: Mapping[str, Raw], content: object) -> list[Fields] | None:
        """Say null instead of the empty text of a first delta: if nothing but calls follows, there is no content."""
        index = _index_of(choice)
        is_first = index not in self._with_role and "role" in delta
        self._with_role.add(index)
        return [{**choice, "delta": {**delta, "content": None}}] if is_first and content == "" else None

    def _rows(
        self, choice: Mapping[str, Raw], delta: Mapping[str, Raw], parser: ToolTextParser, pieces: list[Piece]
    ) -> list[Fields]:
        number = parser.calls - sum(isinstance(piece, Call) for piece in pieces)
        deltas: list[Fields] = []
        for piece in pieces:
            if isinstance(piece, Call):
                deltas.append({"tool_calls": [{"index": number, **self._write_call(piece)}]})
                number += 1
            else:
                deltas.append({"content": piece})
        rest = self._rest_of(choice, delta)
        if rest:
            deltas[:1] = [{**rest, **(deltas[0] if deltas else {})}]
        own = _renumber(delta.get("tool_calls", _NULL), parser.calls)
        if own:
            deltas.append({"tool_calls": own})
        finish = _read(choice.get("finish_reason"))
        has_more = any(bytes(choice.get(name, _NULL)) != b"null" for name in ("logprobs", "usage"))
        if finish or (has_more and not deltas):
            deltas.append({})
        rows: list[Fields] = [{**choice, "delta": row, "finish_reason": None} for row in deltas]
        for row in rows[1:]:
            if "logprobs" in row:
                row["logprobs"] = None
        for row in rows[:-1]:
            row.pop("usage", None)
        if finish:
            rows[-1]["finish_reason"] = "tool_calls" if finish == "stop" and parser.calls else finish
        return rows

    def _rest_of(self, choice: Mapping[str, Raw], delta: Mapping[str, Raw]) -> Fields:
        """Return what a delta says besides content and calls; a role that was said before says nothing."""
        index = _index_of(choice)
        rest: Fields = {
            name: value
            for name, value in delta.items()
            if name not in {"content", "tool_calls"}
            and bytes(value) != b"null"
            and not (name == "role" and index in self._with_role)
        }
        if "role" in rest:
            self._with_role.add(index)
        return rest

    def _renumbered(
        self, choice: Mapping[str, Raw], delta: Mapping[str, Raw], parser: ToolTextParser
    ) -> list[Fields] | None:
        """Number the calls that the server found itself behind ours."""
        own = _renumber(delta["tool_calls"], parser.calls)
        return [{**choice, "delta": {**delta, "tool_calls": own}}] if own else None

    # --- bodies

    def _rewrite_message(self, choice: Mapping[str, Raw]) -> Fields | None:
        """Return a choice with its calls; None: it has none, and stays as it is."""
        parser = self._parser(choice)
        message = _read_fields(choice.get("message"))
        if parser is None or message is None:
            return None
        content = _read(message.get("content"))
        if not isinstance(content, str):
            return None
        finish = _read(choice.get("finish_reason"))
        pieces = _joined([*parser.feed(content), *parser.finish(is_cut=finish == "length")])
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [self._write_call(piece) for piece in pieces if isinstance(piece, Call)]
        if not calls:
            return None if text == content else {**choice, "message": {**message, "content": text}}
        own = _read(message.get("tool_calls"))
        row: Fields = {**choice, "message": {**message, "content": text or None}}
        row["message"]["tool_calls"] = [*calls, *own] if isinstance(own, list) else calls
        if finish == "stop":
            row["finish_reason"] = "tool_calls"
        return row

    # --- both

    def _parser(self, choice: Mapping[str, Raw]) -> ToolTextParser | None:
        index = _index_of(choice)
        parser = self._parsers.get(index)
        if parser is None and len(self._parsers) < MAX_CHOICES:
            parser = self._parsers[index] = ToolTextParser(self._grammar, self._tools)
        return parser

    def _write_call(self, call: Call) -> Fields:
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": self._new_call_id(), "type": "function", "function": function}


def texts_of(waiting: Waiting) -> dict[int, str]:
    """Return what was held back, by choice; choices of which nothing was are left out."""
    texts = {index: "".join(held[:length]) + rest for index, held, length, rest in waiting}
    return {index: text for index, text in texts.items() if text}


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Put texts together that follow each other."""
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _read_choices(payload: bytes) -> tuple[dict[str, Raw], list[dict[str, Raw]]] | None:
    try:
        fields = _fields_decoder.decode(payload)
        choices = _choices_decoder.decode(fields["choices"]) if "choices" in fields else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return (fields, choices) if choices else None


def _read_fields(raw: Raw | None) -> dict[str, Raw] | None:
    try:
        return _fields_decoder.decode(raw) if raw is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read(raw: Raw | None) -> Any:
    try:
        return _any_decoder.decode(raw) if raw is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _index_of(choice: Mapping[str, Raw]) -> int:
    index = _read(choice.get("index"))
    return index if isinstance(index, int) else 0


def _renumber(raw: Raw, offset: int) -> list[Any]:
    """Return calls with indexes behind ours; nothing where it is no list of calls."""
    calls = _read(raw)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return []
    return [{**call, "index": call["index"] + offset} if isinstance(call.get("index"), int) else call for call in calls]
