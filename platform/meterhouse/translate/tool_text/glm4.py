"""GLM-4-9B and GLM-4-0414: the bare name of a function, a line break, its arguments as a JSON object.

No mark begins a call, so one is looked for only where nothing but calls came before it. Several calls are turns of
their own behind ``<|assistant|>``; a server that hides special tokens leaves nothing of that but white space. White
space around an answer is an artefact of the model's template.
"""

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.hermes import read_object
from meterhouse.translate.tool_text.literal import LiteralScanner
from meterhouse.translate.tool_text.source import Mismatch, Reason, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools

_ASSISTANT = "<|assistant|>"
_LINE_BREAK = Words(["\n", "\r\n"])
_BLANK = Words([" ", "\t"])
_END = Words(["<|observation|>", "<|user|>", "<|endoftext|>"])


class Glm4(Grammar):
    """``name⏎{json}``."""

    markers = (_ASSISTANT,)
    is_bare = True
    trims = True

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read a call."""
        if marker:
            yield from source.blanks()
        name = yield from source.name(tools)
        while (yield from source.accept(_BLANK)):
            pass
        if not (yield from source.accept(_LINE_BREAK)):
            raise Mismatch(Reason.MALFORMED)
        yield from source.blanks()
        if (yield from source.peek()) == "{":
            source.commit()
        text = yield from read_object(source, LiteralScanner())
        calls.add(tools.call_of_object(name, text))
        yield from source.blanks()
        yield from source.accept(_END)

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        return f"{name}\n{arguments}"
