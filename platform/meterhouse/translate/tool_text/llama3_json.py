"""Llama 3.1 and 3.2: a JSON object with ``name`` and ``parameters``, several separated by ``;``.

``<|python_tag|>`` may stand before it; without it, the whole answer is calls. An object with other keys than those of
a call is let go at the first of them, so that an answer in JSON is not held up.
"""

from meterhouse.translate.tool_text.grammar import Calls, Grammar
from meterhouse.translate.tool_text.hermes import read_object
from meterhouse.translate.tool_text.literal import LiteralScanner
from meterhouse.translate.tool_text.source import Source, Steps, Words
from meterhouse.translate.tool_text.tools import Tools

_KEYS = frozenset({"name", "parameters", "arguments", "type", "id"})
_SEPARATOR = Words([";"])
_END = Words(["<|eom_id|>", "<|eot_id|>"])


class Llama3Json(Grammar):
    """``{"name": "f", "parameters": {..}}; {..}``."""

    markers = ("<|python_tag|>",)
    is_bare = True

    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read calls."""
        if marker:
            source.commit()
        while True:
            scanner = LiteralScanner(keys=_KEYS)
            try:
                text = yield from read_object(source, scanner)
            finally:
                if scanner.has_key and not scanner.is_broken:
                    source.commit()
            calls.add(tools.call_of_json(text))
            yield from source.blanks()
            if not (yield from source.accept(_SEPARATOR)):
                break
            yield from source.blanks()
            if source.is_at_end():
                break
        yield from source.accept(_END)

    def write(self, name: str, arguments: str) -> str:
        """Write a call."""
        return f'{{"name": "{name}", "parameters": {arguments}}}'
