"""Qwen3-Coder and its kin: ``<function=f>`` with ``<parameter=k>`` blocks; closers may be missing.

Values are bare text. A value's own closer ends it anywhere; where it is missing, only what begins a line does, so that
a value which speaks of the marks is not torn.
"""

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.source import Mismatch, Reason, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools
from meterhouse.translate.tool_text.values import write_values

_CALL = "<tool_call>"
_FUNCTION = "<function="
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"
_FUNCTION_END = "</function>"
_CALL_END = "</tool_call>"
_BEGIN = Words([_FUNCTION])
_NAME_END = Words([">"])
_NEXT = Words([_PARAMETER, _FUNCTION_END, _CALL_END])
_VALUE_END = Words([_PARAMETER_END, f"\n{_PARAMETER}", f"\n{_FUNCTION_END}", f"\n{_CALL_END}"])
_CLOSE = Words([_CALL_END])


class Qwen3Coder(Grammar):
    """``<tool_call>⏎<function=f>⏎<parameter=k>⏎v⏎</parameter>⏎</function>⏎</tool_call>``."""

    markers = (_CALL, _FUNCTION)

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read a call."""
        if marker == _CALL:
            yield from source.blanks()
            yield from source.expect(_BEGIN)
        name = yield from source.name(tools)
        yield from source.expect(_NAME_END)
        texts: dict[str, str] = {}
        yield from source.blanks()
        mark = yield from _next(source)
        while mark == _PARAMETER:
            key, is_named = yield from source.until(_NAME_END)
            if not is_named:
                raise Mismatch(Reason.UNFINISHED)
            text, end = yield from source.until(_VALUE_END)
            if not end and source.is_cut:
                raise Mismatch(Reason.UNFINISHED)
            texts[key.strip()] = text.removeprefix("\n").removesuffix("\n")
            mark = end.removeprefix("\n")
            if mark == _PARAMETER_END:
                yield from source.blanks()
                mark = yield from _next(source)
        calls.add(tools.call_of_texts(name, texts))
        if mark == _FUNCTION_END:
            yield from source.blanks()
            yield from source.accept(_CLOSE)

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        values = write_values(arguments)
        parts = [f"{_PARAMETER}{key}>\n{value}\n{_PARAMETER_END}\n" for key, value in values.items()]
        return f"{_CALL}\n{_FUNCTION}{name}>\n{''.join(parts)}{_FUNCTION_END}\n{_CALL_END}"


def _next(source: Source) -> Steps[str]:
    """Read what follows a part; ``""`` where the model ended, or began the next call without this one's end."""
    mark = yield from source.accept(_NEXT)
    if not mark and source.is_at_end() and source.is_cut:
        raise Mismatch(Reason.UNFINISHED)
    if not mark and not source.is_at_end() and (yield from source.peek()) != "<":
        raise Mismatch(Reason.MALFORMED)
    return mark
