"""OpenAI's messages as Anthropic's turns, system prompt apart: for ``asking``.

System messages come out, neighbours of one role become one turn, results of tools open the user's turn. Of the
assistant's thoughts only those with Anthropic's own signature go back (``thinking_blocks``): it refuses any others.
"""

import base64
import binascii
from typing import Any

import msgspec

from meterhouse.errors import Malformed
from meterhouse.translate.call_arguments import read_arguments

Turn = dict[str, Any]
Blocks = list[dict[str, Any]]


class _Url(msgspec.Struct):
    url: str


class _File(msgspec.Struct):
    filename: str | None = None
    file_data: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _Url | None = None
    file: _File | None = None
    cache_control: dict[str, Any] | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct):
    function: _Function | None = None
    id: str = ""
    cache_control: dict[str, Any] | None = None


class _ThinkingBlock(msgspec.Struct):
    type: str
    thinking: str = ""
    signature: str = ""
    data: str = ""


class ChatMessage(msgspec.Struct):
    """What is read of a message."""

    role: str
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    thinking_blocks: list[_ThinkingBlock] | None = None
    cache_control: dict[str, Any] | None = None


def to_turns(messages: list[ChatMessage]) -> tuple[Blocks, list[Turn]]:
    """Return the system prompt, and the turns.

    Raises:
        Malformed: there is a part that Anthropic does not read, or no message beside the system's.
    """
    system: Blocks = []
    turns: list[Turn] = []
    for position, message in enumerate(messages):
        blocks = _content(message, position)
        if message.role in {"system", "developer"}:
            system += blocks
            continue
        role = "user"
        if message.role == "assistant":
            role = "assistant"
            blocks = [*_thoughts(message), *blocks, *_calls(message, position)]
        elif message.role in {"tool", "function"}:
            blocks = [_result(message, blocks, position)]
        if not blocks:
            continue  # Anthropic refuses an empty turn, and it says nothing
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise Malformed("This model needs a message beside those of the system.", param="messages")
    return system, turns


def _content(message: ChatMessage, position: int) -> Blocks:
    content = message.content
    if isinstance(content, list):
        found = [block for part in content if (block := _block(part, position))]
    else:
        found = [{"type": "text", "text": content}] if content else []
    if not found and message.refusal:
        found = [{"type": "text", "text": message.refusal}]
    if found and message.cache_control is not None and message.role not in {"tool", "function"}:
        found[-1].setdefault("cache_control", message.cache_control)
    return found


def _block(part: _Part, position: int) -> dict[str, Any]:
    """Return the block of a part; nothing for an empty text, which Anthropic refuses."""
    text = part.text if part.type == "text" else part.refusal if part.type == "refusal" else None
    if text is not None:
        block: dict[str, Any] = {"type": "text", "text": text} if text else {}
    elif part.type == "image_url" and part.image_url is not None:
        block = {"type": "image", "source": _image(part.image_url.url, position)}
    elif part.type == "file" and part.file is not None and part.file.file_data is not None:
        block = _document(part.file, part.file.file_data, position)
    else:
        raise Malformed(
            f"This model does not read parts of type {part.type[:40]!r}.", param=f"messages[{position}].content"
        )
    if block and part.cache_control is not None:
        block["cache_control"] = part.cache_control
    return block


def _image(url: str, position: int) -> dict[str, Any]:
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    media_type, data = _data_url(url, position, "invalid_image_url")
    return {"type": "base64", "media_type": media_type, "data": data}


def _document(file: _File, file_data: str, position: int) -> dict[str, Any]:
    media_type, data = _data_url(file_data, position, "invalid_value")
    if media_type == "application/pdf":
        source = {"type": "base64", "media_type": media_type, "data": data}
    elif media_type == "text/plain":
        source = {"type": "text", "media_type": media_type, "data": _decoded(data, position)}
    else:
        raise Malformed("This model reads files of PDF and of plain text.", param=f"messages[{position}].content")
    block: dict[str, Any] = {"type": "document", "source": source}
    if file.filename:
        block["title"] = file.filename
    return block


def _data_url(url: str, position: int, code: str) -> tuple[str, str]:
    head, comma, data = url.partition(",")
    media_type = head.removeprefix("data:").removesuffix(";base64")
    if not comma or not head.startswith("data:") or not head.endswith(";base64") or not media_type:
        raise Malformed(
            "This model reads a data: URL in base64, or an image by its address.",
            param=f"messages[{position}].content",
            code=code,
        )
    return media_type, data


def _decoded(data: str, position: int) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise Malformed("A file is no text in base64.", param=f"messages[{position}].content") from error


def _thoughts(message: ChatMessage) -> Blocks:
    found: Blocks = []
    for block in message.thinking_blocks or ():
        if block.type == "redacted_thinking" and block.data:
            found.append({"type": "redacted_thinking", "data": block.data})
        elif block.type == "thinking" and block.signature:
            found.append({"type": "thinking", "thinking": block.thinking, "signature": block.signature})
    return found


def _calls(message: ChatMessage, position: int) -> Blocks:
    found: Blocks = []
    for index, call in enumerate(message.tool_calls or ()):
        arguments = read_arguments(call.function.arguments if call.function else None, position, index)
        assert call.function is not None
        block = {"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments}
        if call.cache_control is not None:
            block["cache_control"] = call.cache_control
        found.append(block)
    return found


def _result(message: ChatMessage, blocks: Blocks, position: int) -> dict[str, Any]:
    if not message.tool_call_id:
        raise Malformed(
            "Missing required parameter: 'tool_call_id'.",
            param=f"messages[{position}].tool_call_id",
            code="missing_required_parameter",
        )
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    if blocks:
        is_plain = len(blocks) == 1 and blocks[0].keys() == {"type", "text"}
        result["content"] = blocks[0]["text"] if is_plain else blocks
    if message.cache_control is not None:
        result["cache_control"] = message.cache_control
    return result
