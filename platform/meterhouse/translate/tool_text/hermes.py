"""Hermes, Qwen 2.5 and Qwen 3: ``<tool_call>``, a JSON object, ``</tool_call>``; the closing mark may be missing."""

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.literal import LiteralScanner
from meterhouse.translate.tool_text.source import Mismatch, Reason, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools

_CLOSE = Words(["</tool_call>"])


class Hermes(Grammar):
    """``<tool_call>⏎{"name": "f", "arguments": {..}}⏎</tool_call>``, one block per call."""

    markers = ("<tool_call>",)

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read a call."""
        del marker
        text = yield from read_object(source, LiteralScanner())
        calls.add(tools.call_of_json(text))
        yield from source.blanks()
        yield from source.accept(_CLOSE)

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def read_object(source: Source, scanner: LiteralScanner) -> Steps[str]:
    """Read a JSON object, and the white space before it.

    Raises:
        Mismatch: Something else is here.
    """
    yield from source.blanks()
    first = yield from source.peek()
    if first != "{":
        raise Mismatch(Reason.MALFORMED if first else Reason.UNFINISHED)
    return (yield from source.value(scanner))
