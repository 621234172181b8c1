"""Mistral: ``[TOOL_CALLS]``, then a JSON array of calls (v0.3), or ``f[ARGS]{json}`` for each (v11 and later)."""

import msgspec
from msgspec import Raw

from meterhouse.translate.call_id import NewCallId, new_short_call_id
from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.hermes import read_object
from meterhouse.translate.tool_text.literal import LiteralScanner
from meterhouse.translate.tool_text.source import Mismatch, Reason, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools

_MARKER = "[TOOL_CALLS]"
_CALL_ID = "[CALL_ID]"
_ARGUMENTS = "[ARGS]"
_AFTER_NAME = Words([_CALL_ID, _ARGUMENTS])
_AFTER_ID = Words([_ARGUMENTS])


class Mistral(Grammar):
    """``[TOOL_CALLS] [{"name": "f", "arguments": {..}}]`` and ``[TOOL_CALLS]f[ARGS]{..}``."""

    markers = (_MARKER,)

    @property
    def new_call_id(self) -> NewCallId:
        """What makes the ids of its calls."""
        return new_short_call_id

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read the calls behind a marker."""
        del marker
        yield from source.blanks()
        if (yield from source.peek()) == "[":
            text = yield from source.value(LiteralScanner())
            found = [tools.call_of_json(row) for row in _rows(text)]
            for call in found:
                calls.add(call)
            return
        name = yield from source.name(tools)
        mark = yield from source.expect(_AFTER_NAME)
        if mark == _CALL_ID:
            yield from source.word()
            yield from source.expect(_AFTER_ID)
        arguments = yield from read_object(source, LiteralScanner())
        calls.add(tools.call_of_object(name, arguments))

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        return f'{_MARKER} [{{"name": "{name}", "arguments": {arguments}}}]'


def _rows(text: str) -> list[str]:
    try:
        return [bytes(row).decode() for row in msgspec.json.decode(text, type=list[Raw])]
    except (msgspec.DecodeError, RecursionError):
        raise Mismatch(Reason.MALFORMED) from None
