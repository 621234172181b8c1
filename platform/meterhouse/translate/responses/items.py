"""The input of ``/v1/responses`` as the messages of a chat completion (wire.md 1.10).

What the assistant did in a row becomes one message of its own: its thoughts, its text, its calls, because a chat
provider wants the outputs of tools right after the message that called them.
"""

from typing import Any

import msgspec

from meterhouse.errors import Malformed
from meterhouse.translate.responses.check import parts_of
from meterhouse.translate.responses.shape import ResponsesItem, ResponsesPart, ResponsesRequest

Message = dict[str, Any]
CUSTOM_INPUT = "input"
"""The one argument of the function that a custom tool becomes."""

_TEXTS = frozenset({"input_text", "output_text", "text", "refusal"})
_DETAILS = {"original": "high"}
"""Chat completions end at ``high``."""


def to_messages(request: ResponsesRequest) -> list[Message]:
    """Return the messages, the instructions first.

    Raises:
        Malformed: A part that chat completions have no place for, or nothing at all.
    """
    messages = _Messages()
    if request.instructions:
        messages.rows.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.rows.append({"role": "user", "content": request.input})
        return messages.rows
    for index, item in enumerate(request.input):
        messages.add(item, f"input[{index}]")
    messages.close()
    if not messages.rows:
        raise Malformed("'input' says nothing: send at least one message.", param="input")
    return messages.rows


class _Messages:
    """The messages so far, and the assistant's that is still being put together."""

    def __init__(self) -> None:
        self.rows: list[Message] = []
        self._open: Message | None = None

    def add(self, item: ResponsesItem, param: str) -> None:
        """Add one item."""
        kind = item.kind
        if kind == "message" and item.role == "assistant":
            self._say(_assistant_text(item, param))
        elif kind == "message":
            self.close()
            role = "system" if item.role == "developer" else item.role
            self.rows.append({"role": role, "content": _content(item, param)})
        elif kind == "reasoning":
            self._think(item)
        elif kind.endswith("_output"):
            self.close()
            self.rows.append({"role": "tool", "tool_call_id": item.call_id, "content": _output(item, param)})
        else:
            self._call(item)

    def close(self) -> None:
        """End the assistant's message; one that holds nothing but thoughts is left out."""
        if self._open is not None and ("tool_calls" in self._open or self._open["content"] is not None):
            self.rows.append(self._open)
        self._open = None

    def _message(self) -> Message:
        if self._open is None:
            self._open = {"role": "assistant", "content": None}
        return self._open

    def _say(self, text: str) -> None:
        if self._open is not None and self._open["content"] is not None and "tool_calls" not in self._open:
            self.close()
        message = self._message()
        said = message["content"]
        message["content"] = text if said is None else f"{said}\n\n{text}"

    def _think(self, item: ResponsesItem) -> None:
        shown = item.content if isinstance(item.content, list) and item.content else item.summary
        text = "\n\n".join(part.text for part in shown or () if part.text)
        if not text:
            return  # encrypted, or nothing: only who wrote it could read it
        if self._open is not None and self._open["content"] is not None and "tool_calls" not in self._open:
            self.close()
        message = self._message()
        thought = message.get("reasoning_content")
        message["reasoning_content"] = f"{thought}\n\n{text}" if thought else text

    def _call(self, item: ResponsesItem) -> None:
        is_custom = item.kind == "custom_tool_call"
        arguments = msgspec.json.encode({CUSTOM_INPUT: item.input}).decode() if is_custom else item.arguments
        call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": arguments}}
        self._message().setdefault("tool_calls", []).append(call)


def _assistant_text(item: ResponsesItem, param: str) -> str:
    if isinstance(item.content, str):
        return item.content
    texts = []
    for path, part in parts_of(item, param):
        if part.type not in _TEXTS:
            raise _no_place(path, part, "a message of the assistant")
        texts.append((part.refusal if part.type == "refusal" else part.text) or "")
    return "".join(texts)


def _content(item: ResponsesItem, param: str) -> str | list[dict[str, Any]]:
    if isinstance(item.content, str):
        return item.content
    parts = [_part(part, path) for path, part in parts_of(item, param)]
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _output(item: ResponsesItem, param: str) -> str | list[dict[str, Any]]:
    if isinstance(item.output, str):
        return item.output
    parts = []
    for path, part in parts_of(item, param):
        if part.type not in _TEXTS:
            raise _no_place(path, part, "the output of a tool")
        parts.append({"type": "text", "text": part.text or ""})
    if len(parts) == 1:
        return parts[0]["text"]
    return parts or ""


def _part(part: ResponsesPart, path: str) -> dict[str, Any]:
    if part.type in _TEXTS:
        return {"type": "text", "text": (part.refusal if part.type == "refusal" else part.text) or ""}
    if part.type == "input_image":
        if not part.image_url:
            raise _missing(f"{path}.image_url")
        detail = {"detail": _DETAILS.get(part.detail, part.detail)} if part.detail else {}
        return {"type": "image_url", "image_url": {"url": part.image_url, **detail}}
    if part.type == "input_audio":
        if part.input_audio is None:
            raise _missing(f"{path}.input_audio")
        return {
            "type": "input_audio",
            "input_audio": {"data": part.input_audio.data, "format": part.input_audio.format},
        }
    if not part.file_data:
        raise Malformed(
            f"This model reads a file only from '{path}.file_data': send the content itself.",
            param=path,
            code="unsupported_value",
        )
    named = {"filename": part.filename} if part.filename else {}
    return {"type": "file", "file": {**named, "file_data": part.file_data}}


def _no_place(path: str, part: ResponsesPart, place: str) -> Malformed:
    text = f"This model takes no part of type '{part.type}' in {place}: send text."
    return Malformed(text, param=f"{path}.type", code="unsupported_value")


def _missing(param: str) -> Malformed:
    return Malformed(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
