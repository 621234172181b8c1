"""The turns of a client that speaks Anthropic's wire, as OpenAI's messages: for ``reading``.

A user's turn becomes the results of tools, each a message, then what else the user says. What OpenAI's messages cannot
say is noted in a ``Telling`` with the reason, and stands there in a form that can be measured.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.request import utf8_length

Message = dict[str, Any]
Parts = list[dict[str, Any]]


class Source(msgspec.Struct):
    """Where an image or a document is."""

    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""
    content: "str | list[Block] | None" = None


class Block(msgspec.Struct):
    """A block of content, of any type that is known."""

    type: str
    text: str = ""
    source: Source | str | None = None
    title: str | None = None
    context: str | None = None
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")
    tool_use_id: str = ""
    content: "str | list[Block] | None" = None
    thinking: str = ""
    signature: str = ""
    data: str = ""


class Turn(msgspec.Struct):
    """A message of Anthropic's."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Telling:
    """What was found on the way that OpenAI's messages cannot say."""

    __slots__ = ("only_anthropic", "untold_bytes")

    def __init__(self) -> None:
        self.only_anthropic: Malformed | None = None
        self.untold_bytes = 0

    def leave_to_anthropic(self, reason: str, param: str) -> None:
        """Note why no other provider can be told; the first reason is the one that a caller sees."""
        if self.only_anthropic is None:
            self.only_anthropic = Malformed(reason, param=param, code="unsupported_value")


def tell_system(system: str | Sequence[Block] | None, telling: Telling) -> Iterator[Message]:
    """Yield the system prompt as a message, if there is one."""
    if system:
        parts = system if isinstance(system, str) else [_part(block, "system", telling) for block in system]
        yield {"role": "system", "content": _plain(parts)}


def tell_turn(turn: Turn, index: int, telling: Telling) -> Iterator[Message]:
    """Yield what a turn is as messages.

    Raises:
        Malformed: a block is unknown, names what is stored, or stands where none of its type may.
    """
    param = f"messages[{index}].content"
    if turn.role == "assistant":
        yield _assistant(turn.content, param, telling)
    elif isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
    else:
        yield from _said(turn.role, turn.content, param, telling)


def _said(role: str, blocks: list[Block], param: str, telling: Telling) -> Iterator[Message]:
    parts: Parts = []
    for block in blocks:
        if block.type == "tool_result" and role == "user":
            text, others = _result(block, param, telling)
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
            parts += others
        else:
            parts.append(_part(block, param, telling))
    if parts or not blocks:
        yield {"role": role, "content": _plain(parts)}


def _plain(parts: str | Parts) -> str | Parts:
    """Return one text as that, for there are servers that take no parts."""
    if isinstance(parts, list) and len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _result(block: Block, param: str, telling: Telling) -> tuple[str, Parts]:
    """Return a result's text, and its other parts: a message of OpenAI's for a tool has text alone."""
    if not block.tool_use_id:
        raise Malformed("tool_use_id: Field required.", param=f"{param}.tool_use_id")
    if not isinstance(block.content, list):
        return block.content or "", []
    parts = [_part(inner, param, telling) for inner in block.content]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return "\n".join(texts), [part for part in parts if part["type"] != "text"]


def _assistant(content: str | list[Block], param: str, telling: Telling) -> Message:
    message: Message = {"role": "assistant"}
    if isinstance(content, str):
        return {**message, "content": content}
    parts: Parts = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in content:
        if block.type in {"thinking", "redacted_thinking"}:
            telling.untold_bytes += utf8_length(block.signature) + utf8_length(block.data)
            thoughts.append(block.thinking)
        elif block.type == "tool_use":
            arguments = msgspec.json.format(bytes(block.input), indent=-1).decode()
            function = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
        else:
            parts.append(_part(block, param, telling))
    if any(part["type"] != "text" for part in parts):
        telling.leave_to_anthropic("This model's own messages have text alone.", param)
    # One text, for there are servers that take no parts from the assistant.
    message["content"] = "".join(part["text"] for part in parts if part["type"] == "text") or (None if calls else "")
    if thought := "".join(thoughts):
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _part(block: Block, param: str, telling: Telling) -> dict[str, Any]:
    match block.type:
        case "text":
            return {"type": "text", "text": block.text}
        case "image":
            return {"type": "image_url", "image_url": {"url": _url(block, param)}}
        case "document":
            return _document(block, param, telling)
        case "search_result":
            telling.leave_to_anthropic("This model reads no search results.", param)
            return {"type": "text", "text": _searched(block)}
    raise Malformed(
        f"Blocks of type {block.type[:40]!r} are not supported here: they are of what Anthropic stores or runs, or of"
        " nothing that is known.",
        param=param,
        code="unsupported_value",
    )


def _url(block: Block, param: str) -> str:
    source = block.source
    if isinstance(source, Source) and source.type == "base64":
        return f"data:{source.media_type};base64,{source.data}"
    if isinstance(source, Source) and source.type == "url":
        return source.url
    raise _stored(param)


def _document(block: Block, param: str, telling: Telling) -> dict[str, Any]:
    source = block.source
    telling.untold_bytes += utf8_length(block.title or "") + utf8_length(block.context or "")
    if not isinstance(source, Source) or source.type not in {"base64", "text", "url", "content"}:
        raise _stored(param)
    if source.type == "text":
        return {"type": "text", "text": source.data}
    name = block.title or "document"
    if source.type == "base64":
        file_data = f"data:{source.media_type};base64,{source.data}"
        return {"type": "file", "file": {"filename": name, "file_data": file_data}}
    telling.leave_to_anthropic("This model reads documents only as base64 or text.", param)
    if source.type == "url":
        return {"type": "file", "file": {"filename": source.url}}
    if isinstance(source.content, list):
        texts = [_part(inner, param, telling).get("text", "") for inner in source.content]
        # Pictures inside a document are counted as what has no bound.
        kind = "text" if all(inner.type == "text" for inner in source.content) else "document"
        return {"type": kind, "text": "\n".join(texts)}
    return {"type": "text", "text": source.content or ""}


def _searched(block: Block) -> str:
    source = block.source if isinstance(block.source, str) else ""
    inner = block.content if isinstance(block.content, list) else []
    return "\n".join([source, block.title or "", *(each.text for each in inner)])


def _stored(param: str) -> Malformed:
    return Malformed(
        "A source is base64, text or an address here; what is stored at a provider is not supported.",
        param=param,
        code="unsupported_parameter",
    )
