"""The body of ``POST /v1/responses`` as it is checked (wire.md 1.10): types, and the ranges that OpenAI defines.

Only what is looked at is named. Unknown fields pass, because a provider that has the endpoint gets the raw fields, and
whatever becomes a chat completion is checked once more as one. Not here: what is refused (``check``).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from meterhouse.message import InputAudio
from meterhouse.request import MetadataValue, Name64, TokenCount

ToolName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_-]+$")]


class ResponsesPart(msgspec.Struct):
    """A part of a message's content, of a tool's output or of a reasoning item."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    filename: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    input_audio: InputAudio | None = None


class ResponsesItem(msgspec.Struct):
    """An item of the input. What each type needs of it is checked by ``check`` and ``items``."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ResponsesPart] | None = None
    summary: list[ResponsesPart] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Any = None
    input: str | None = None
    output: Any = None

    @property
    def kind(self) -> str:
        """The type; a message and a reference may leave it out."""
        if self.type:
            return self.type
        return "item_reference" if self.role is None and self.id is not None else "message"


class ResponsesFormat(msgspec.Struct):
    """The shape of the answer; the fields of a schema stand beside its type."""

    type: str
    name: Name64 | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesText(msgspec.Struct):
    """How the answer's text is to be."""

    format: ResponsesFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesReasoning(msgspec.Struct):
    """How the model is to think, and what it shows of that."""

    effort: Annotated[str, Meta(max_length=32)] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    mode: str | None = None

    @property
    def wants_summary(self) -> bool:
        """Whether a summary was asked for, under its name of today or its old one."""
        return (self.summary or self.generate_summary) is not None


class ResponsesTool(msgspec.Struct):
    """A tool that the model may call; functions are flat here."""

    type: str
    name: ToolName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None


class ResponsesCacheOptions(msgspec.Struct):
    """How a prompt is cached at the provider."""

    comparison_response_id: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/responses``."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | list[ResponsesItem]
    background: bool | None = None
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], MetadataValue], Meta(max_length=16)] | None = None
    moderation: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: ResponsesCacheOptions | None = None
    reasoning: ResponsesReasoning | None = None
    safety_identifier: Annotated[str, Meta(max_length=128)] | None = None
    service_tier: Annotated[str, Meta(max_length=32)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    text: ResponsesText | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[ResponsesTool] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
