"""DeepSeek V3, R1-0528 and V3.1: calls between marks with full-width bars; V3 fences its JSON, V3.1 does not.

The marks that open and close the whole section are optional here: what counts are the marks of each call.
"""

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.hermes import read_object
from meterhouse.translate.tool_text.literal import LiteralScanner
from meterhouse.translate.tool_text.source import Mismatch, Reason, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools

_BAR = "\uff5c"
_SECTION = f"<{_BAR}tool▁calls▁begin{_BAR}>"
_SECTION_END = f"<{_BAR}tool▁calls▁end{_BAR}>"
_CALL = f"<{_BAR}tool▁call▁begin{_BAR}>"
_CALL_END = f"<{_BAR}tool▁call▁end{_BAR}>"
_SEPARATOR = f"<{_BAR}tool▁sep{_BAR}>"
_KIND = "function"
_BEGIN = Words([_CALL])
_HEAD_END = Words([_SEPARATOR])
_FENCE = Words(["```"])
_LANGUAGE = Words(["json"])
_END = Words([_CALL_END])
_SECTION_CLOSE = Words([_SECTION_END])


class DeepseekV3(Grammar):
    """Between the marks of a call: the kind, a separator, the name and fenced JSON; or name, separator and JSON."""

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
        return f"{_SECTION}{_CALL}{_KIND}{_SEPARATOR}{name}\n```json\n{arguments}\n```{_CALL_END}{_SECTION_END}"

    def _read_call(self, source: Source, tools: Tools, calls: Calls) -> Steps[None]:
        name = yield from source.name(_Heads(tools))
        yield from source.expect(_HEAD_END)
        yield from source.blanks()
        is_fenced = (yield from source.peek()) != "{"
        if is_fenced:
            if name != _KIND:
                raise Mismatch(Reason.MALFORMED)
            name = yield from source.name(tools)
            yield from source.blanks()
            yield from source.expect(_FENCE)
            yield from source.accept(_LANGUAGE)
        arguments = yield from read_object(source, LiteralScanner())
        calls.add(tools.call_of_object(name, arguments))
        yield from source.blanks()
        if is_fenced:
            yield from source.accept(_FENCE)
            yield from source.blanks()
        yield from source.accept(_END)


class _Heads:
    """What a call may begin with: the kind (V3), or a function's name (V3.1)."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def is_name(self, name: str) -> bool:
        """Whether it is one of them."""
        return name == _KIND or self._tools.is_name(name)

    def begins_name(self, text: str) -> bool:
        """Whether one of them begins so."""
        return _KIND.startswith(text) or self._tools.begins_name(text)
