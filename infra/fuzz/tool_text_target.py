"""Fuzzes the parser of tool calls in text, in every format; ``infra/test --fuzz`` runs it.

What must hold for any text: nothing is raised; however it is cut, the same words and calls come out; what comes out has
no more characters than went in, calls aside; and no more is held back than the bound.
"""

import sys

import atheris

with atheris.instrument_imports(include=["meterhouse"]):
    from meterhouse.translate.tool_text import GRAMMARS
    from meterhouse.translate.tool_text.parser import Piece, ToolTextParser
    from meterhouse.translate.tool_text.source import MAX_HELD_CHARACTERS
    from meterhouse.translate.tool_text.tools import Tools

FORMATS = sorted(GRAMMARS)
SHORT = 100
SCHEMAS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "f": {"type": "object", "properties": {"a": {}, "b": {"type": "array"}}},
}
WORDS = (
    *("get_weather", "f", "{", "}", "[", "]", '"', "'", ":", ",", ";", "=", "(", ")", "\n", " ", "\\", "\\u0041"),
    *(
        '{"name": "f", "arguments": {}}',
        '"parameters"',
        "city",
        "true",
        "None",
        "1.5e3",
        "-",
        "0",
        "\x00",
        "\u00e9",
        "\u2028",
    ),
    *(
        "<tool_call>",
        "</tool_call>",
        "<function=",
        "</function>",
        "<parameter=",
        "</parameter>",
        "<arg_key>",
        "</arg_key>",
    ),
    *(
        "<arg_value>",
        "</arg_value>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
    ),
    *(
        "<\uff5ctool\u2581call\u2581begin\uff5c>",
        "<\uff5ctool\u2581call\u2581end\uff5c>",
        "<\uff5ctool\u2581sep\uff5c>",
        "<\uff5ctool\u2581calls\u2581begin\uff5c>",
        "functions.f:0",
        "```json",
    ),
    *("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>", "<think>", "</think>", "f(a=1)", "[f()]"),
)


def read(name: str, parts: list[str]) -> list[Piece]:
    """Return what comes out of a text that comes in parts; neighbouring words are one."""
    parser = ToolTextParser(GRAMMARS[name], Tools(SCHEMAS))
    out: list[Piece] = []
    for piece in [piece for part in parts for piece in parser.feed(part)] + parser.finish():
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return [piece for piece in out if piece != ""]


def test_one_input(data: bytes) -> None:
    """Try one input: a format, then words, letters and cuts."""
    provider = atheris.FuzzedDataProvider(data)
    name = FORMATS[provider.ConsumeIntInRange(0, len(FORMATS) - 1)]
    parts: list[str] = [""]
    while provider.remaining_bytes() and len(parts) < 60:  # noqa: PLR2004 - enough for every rule of every format
        choice = provider.ConsumeIntInRange(0, len(WORDS) + 8)
        if choice < len(WORDS):
            parts[-1] += WORDS[choice]
        elif choice < len(WORDS) + 5:
            parts[-1] += provider.ConsumeUnicodeNoSurrogates(provider.ConsumeIntInRange(0, 6))
        else:
            parts.append("")
    text = "".join(parts)
    whole, cut = read(name, [text]), read(name, parts)
    if whole != cut:
        raise AssertionError(f"{name}: {parts!r}: {whole!r}, {cut!r}")
    if len(text) <= SHORT and read(name, list(text)) != whole:
        raise AssertionError(f"{name}: {text!r}, letter by letter")
    said = sum(len(piece) for piece in whole if isinstance(piece, str))
    if said > len(text) or said > MAX_HELD_CHARACTERS + len(text):
        raise AssertionError(f"{name}: {text!r} grew to {whole!r}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
