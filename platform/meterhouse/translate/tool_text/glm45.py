"""GLM-4.5 to GLM-5: ``<tool_call>``, the name, keys and values between marks; values are bare text.

4.5 and 4.6 break lines between the parts (sometimes as a backslash and an n), 4.7 and 5 do not.
"""

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.source import Mismatch, Reason, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools
from meterhouse.translate.tool_text.values import write_values

_CLOSE = "</tool_call>"
_NEXT = Words(["<arg_key>", _CLOSE])
_KEY_END = Words(["</arg_key>"])
_VALUE = Words(["<arg_value>"])
_VALUE_END = Words(["</arg_value>"])
_WRITTEN_BREAK = Words(["\\n"])


class Glm45(Grammar):
    """``<tool_call>name⏎<arg_key>k</arg_key>⏎<arg_value>v</arg_value>⏎…</tool_call>``."""

    markers = ("<tool_call>",)

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read a call."""
        del marker
        yield from _gap(source)
        name = yield from source.name(tools)
        texts: dict[str, str] = {}
        while True:
            yield from _gap(source)
            mark = yield from source.expect(_NEXT)
            if mark == _CLOSE:
                break
            key = yield from _part(source, _KEY_END)
            yield from _gap(source)
            yield from source.expect(_VALUE)
            texts[key.strip()] = yield from _part(source, _VALUE_END)
        calls.add(tools.call_of_texts(name, texts))

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        values = write_values(arguments)
        parts = [f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items()]
        return f"<tool_call>{name}\n{''.join(parts)}</tool_call>"


def _part(source: Source, end: Words) -> Steps[str]:
    text, mark = yield from source.until(end)
    if not mark:
        raise Mismatch(Reason.UNFINISHED)
    return text


def _gap(source: Source) -> Steps[None]:
    yield from source.blanks()
    while (yield from source.accept(_WRITTEN_BREAK)):
        yield from source.blanks()
