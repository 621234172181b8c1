"""Tells a model of its tools in the prompt, for servers that must not get ``tools``.

The functions become a part of the system message; earlier calls become text as the family writes it, and their results
a user's message: a server that knows no tools knows no role ``tool`` either. Only messages that change are rebuilt.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.translate.tool_text.grammar import Grammar

_SYSTEM_ROLES = frozenset({"system", "developer"})
_RESULT_ROLES = frozenset({"tool", "function"})
_messages_decoder = msgspec.json.Decoder(list[dict[str, Raw]])
_tools_decoder = msgspec.json.Decoder(list[dict[str, Raw]])
_any_decoder = msgspec.json.Decoder()
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages with the tools in them, and how many bytes of text that added to what the request brought."""

    messages: list[Message]
    added_bytes: int


def render_prompt(
    messages: Raw, tools: Raw | None, tool_choice: str | dict[str, Any] | None, grammar: Grammar
) -> Prompt:
    """Return a request's messages with its tools and its earlier calls as text."""
    renderer = _Renderer(grammar)
    rows = list(renderer.rows(_messages_decoder.decode(messages)))
    text = _describe(tools, tool_choice, grammar) if tools is not None and tool_choice != "none" else ""
    if text:
        renderer.added_bytes += len(text.encode())
        if rows and _value(rows[0].get("role")) in _SYSTEM_ROLES:
            rows[0] = {**rows[0], "content": _appended(_value(rows[0].get("content")), text)}
        else:
            rows.insert(0, {"role": "system", "content": text})
    return Prompt(rows, renderer.added_bytes)


def _describe(tools: Raw, tool_choice: str | dict[str, Any] | None, grammar: Grammar) -> str:
    rows = [row["function"] for row in _tools_decoder.decode(tools) if "function" in row]
    functions = [msgspec.json.format(bytes(row), indent=-1).decode() for row in rows if bytes(row) != b"null"]
    if not functions:
        return ""
    example = grammar.write("FUNCTION", '{"ARGUMENT": "VALUE"}')
    parts = [
        "You can call functions. These are they, one on each line, as JSON:",
        "\n".join(functions),
        "To call a function, answer with nothing but this, its name and arguments in their places:",
        example,
        "Do so once for each call. Where no call is needed, answer in words.",
    ]
    if tool_choice == "required":
        parts.append("This time at least one call is needed.")
    elif isinstance(tool_choice, dict):
        function = tool_choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        parts += [f"This time call the function {name}."] if isinstance(name, str) else []
    return "\n\n".join(parts)


def _appended(content: object, text: str) -> object:
    if isinstance(content, list):
        return [*content, {"type": "text", "text": text}]
    return f"{content}\n\n{text}" if content else text


@dataclass(slots=True)
class _Renderer:
    """Turns calls and their results into text, message by message."""

    grammar: Grammar
    added_bytes: int = 0
    names: dict[str, str] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)

    def rows(self, messages: list[dict[str, Raw]]) -> Iterator[Message]:
        for message in messages:
            if _value(message.get("role")) in _RESULT_ROLES:
                self._note_result(message)
                continue
            yield from self._take_results()
            calls = _value(message.get("tool_calls"))
            yield self._with_calls(message, calls) if isinstance(calls, list) and calls else message
        yield from self._take_results()

    def _with_calls(self, message: dict[str, Raw], calls: list[Any]) -> Message:
        content = _value(message.get("content"))
        parts = [content] if isinstance(content, str) and content else []
        for call in calls:
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                continue
            name, arguments = str(function.get("name", "")), str(function.get("arguments") or "{}")
            self.names[str(call.get("id", ""))] = name
            try:
                parts.append(self.grammar.write(name, arguments))
            except msgspec.DecodeError:
                parts.append(f"{name}\n{arguments}")
            self.added_bytes += len(parts[-1].encode())
        row: Message = {name: value for name, value in message.items() if name != "tool_calls"}
        return {**row, "content": "\n".join(parts)}

    def _note_result(self, message: dict[str, Raw]) -> None:
        content = _value(message.get("content"))
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        name = self.names.get(str(_value(message.get("tool_call_id"))), "") or str(_value(message.get("name")) or "")
        head = f"Result of the call of {name}:" if name else "Result of the call:"
        self.added_bytes += len(head.encode()) + 2
        self.results.append(f"{head}\n{content or ''}")

    def _take_results(self) -> Iterator[Message]:
        if self.results:
            yield {"role": "user", "content": "\n\n".join(self.results)}
            self.results = []


def _value(raw: object) -> Any:
    return _any_decoder.decode(raw) if isinstance(raw, Raw) else raw
