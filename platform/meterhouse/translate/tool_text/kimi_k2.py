"""Kimi K2 and K2.5: calls between marks, each with an id ``functions.NAME:NUMBER`` that holds the function's name.

Sometimes the id is only a number; the call is then the one function that takes its arguments, if there is just one.
"""

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.hermes import read_object
from meterhouse.translate.tool_text.literal import LiteralScanner
from meterhouse.translate.tool_text.source import Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools

_SECTION = "<|tool_calls_section_begin|>"
_SECTION_END = "<|tool_calls_section_end|>"
_CALL = "<|tool_call_begin|>"
_ARGUMENTS = "<|tool_call_argument_begin|>"
_CALL_END = "<|tool_call_end|>"
_BEGIN = Words([_CALL])
_ID_END = Words([_ARGUMENTS])
_END = Words([_CALL_END])
_SECTION_CLOSE = Words([_SECTION_END])
_PREFIX = "functions."


class KimiK2(Grammar):
    """``…begin|>functions.f:0<|tool_call_argument_begin|>{..}<|tool_call_end|>`` in a section."""

    markers = (_SECTION, _CALL)

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read the calls of a section."""
        if marker == _SECTION:
            yield from source.blanks()
            yield from source.expect(_BEGIN)
        while True:
            yield from self._read_call(source, tools, calls)
            yield from source.blanks()
            if not (yield from source.accept(_BEGIN)):
                break
            source.commit()
        yield from source.accept(_SECTION_CLOSE)

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        return f"{_SECTION}{_CALL}{_PREFIX}{name}:0{_ARGUMENTS}{arguments}{_CALL_END}{_SECTION_END}"

    def _read_call(self, source: Source, tools: Tools, calls: Calls) -> Steps[None]:
        yield from source.blanks()
        call_id = yield from source.word()
        yield from source.blanks()
        yield from source.expect(_ID_END)
        arguments = yield from read_object(source, LiteralScanner())
        name = _name_of(call_id) or tools.find_by_keys(arguments)
        calls.add(tools.call_of_object(name, arguments))
        yield from source.blanks()
        yield from source.accept(_END)


def _name_of(call_id: str) -> str:
    """Return the function's name in an id; ``""`` where the id is only a number."""
    name, colon, number = call_id.removeprefix(_PREFIX).rpartition(":")
    return name if colon and number.isdecimal() else "" if number.isdecimal() else number
