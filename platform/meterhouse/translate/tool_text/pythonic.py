"""Llama 4, LFM2, Olmo 3: a list of Python calls, ``[f(a=1, b="x"), g()]``, with literals as arguments.

LFM2 wraps it in ``<|tool_call_start|>`` and ``<|tool_call_end|>``; without a mark the answer is nothing but the list.
"""

from typing import Any

import msgspec

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.literal import LiteralScanner, python_value
from meterhouse.translate.tool_text.source import Mismatch, Reason, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Call, Tools

_LIST = Words(["["])
_OPEN = Words(["("])
_EQUALS = Words(["="])
_CLOSE = Words([")"])
_COMMA_OR_CLOSE = Words([",", ")"])
_COMMA_OR_END = Words([",", "]"])
_LIST_END = Words(["]"])
_END = Words(["<|tool_call_end|>"])


class Pythonic(Grammar):
    """``[f(a=1, b="x"), g()]``."""

    markers = ("<|tool_call_start|>",)
    is_bare = True

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read a list of calls; each counts once the comma or bracket behind it is here."""
        if marker:
            source.commit()
        yield from source.blanks()
        yield from source.expect(_LIST)
        while True:
            yield from source.blanks()
            name = yield from source.name(tools)
            yield from source.blanks()
            yield from source.expect(_OPEN)
            source.commit()
            values = yield from _arguments(source)
            call = tools.call_of_values(name, values)
            yield from source.blanks()
            is_last = yield from self._end_call(source, calls, call)
            if is_last:
                break
        yield from source.blanks()
        yield from source.accept(_END)

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        values: dict[str, Any] = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
        return f"[{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})]"

    def _end_call(self, source: Source, calls: Calls, call: Call) -> Steps[bool]:
        """Read what is behind a call, and add it; says whether it was the last."""
        if source.is_at_end():
            calls.add(call)
            return True
        mark = yield from source.expect(_COMMA_OR_END)
        calls.add(call)
        if mark == ",":
            yield from source.blanks()
            mark = yield from source.accept(_LIST_END)
        return mark == "]" or source.is_at_end()


def _arguments(source: Source) -> Steps[dict[str, Any]]:
    values: dict[str, Any] = {}
    yield from source.blanks()
    if (yield from source.accept(_CLOSE)):
        return values
    while True:
        yield from source.blanks()
        key = yield from source.word()
        if not key.isidentifier():
            raise Mismatch(Reason.MALFORMED)
        yield from source.blanks()
        yield from source.expect(_EQUALS)
        text = yield from source.value(LiteralScanner(is_python=True))
        try:
            values[key] = python_value(text)
        except ValueError:
            raise Mismatch(Reason.MALFORMED) from None
        yield from source.blanks()
        mark = yield from source.expect(_COMMA_OR_CLOSE)
        yield from source.blanks()
        if mark == ")" or (yield from source.accept(_CLOSE)):
            return values
