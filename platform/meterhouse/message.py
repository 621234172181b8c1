"""One message of a chat completion request, as it is checked (wire.md 1.2). Unknown fields pass, but for ``Plain``."""

from typing import Literal

import msgspec


class ImageUrl(msgspec.Struct):
    """Where an image is: an address or a ``data:`` URI."""

    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct):
    """Base64 audio."""

    data: str
    format: str


class FileReference(msgspec.Struct):
    """A file inside the request, or the id of one that is stored upstream (refused)."""

    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None
    file: FileReference | None = None


class FunctionCall(msgspec.Struct):
    """A call of a function, as the assistant wrote it."""

    name: str = ""
    arguments: str = ""


class CustomCall(msgspec.Struct):
    """A call of a custom tool."""

    name: str = ""
    input: str = ""


class ToolCall(msgspec.Struct):
    """A tool call in the history."""

    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class AudioReference(msgspec.Struct):
    """A spoken answer that is stored upstream (refused)."""

    id: str | None = None


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    audio: AudioReference | None = None
    prefix: bool | None = None
    partial: bool | None = None


class PlainPart(Part, forbid_unknown_fields=True):
    """A part of nothing but fields that are known."""


class PlainFunctionCall(FunctionCall, forbid_unknown_fields=True):
    """The same of a call of a function."""


class PlainCustomCall(CustomCall, forbid_unknown_fields=True):
    """The same of a call of a custom tool."""


class PlainToolCall(ToolCall, forbid_unknown_fields=True):
    """The same of a tool call."""

    function: PlainFunctionCall | None = None
    custom: PlainCustomCall | None = None


class PlainMessage(Message, forbid_unknown_fields=True):
    """A message of nothing but fields that are known, in its parts and calls too."""

    content: str | list[PlainPart] | None = None  # type: ignore[assignment]  # they are Parts
    tool_calls: list[PlainToolCall] | None = None  # type: ignore[assignment]  # they are ToolCalls
    function_call: PlainFunctionCall | None = None
