"""The shapes of Anthropic's wire for the OpenAPI page (wire.md 1.11).

Only described, never built or read: what a request is checked against is ``translate.anthropic.reading``.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Blocks = list[dict[str, Any]]


class MessagesTurn(msgspec.Struct):
    """One turn of the conversation: a text, or blocks of text, image, document, tool_use, tool_result, thinking."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/messages/count_tokens``."""

    model: str
    messages: list[MessagesTurn]
    system: str | Blocks | None = None
    tools: Annotated[Blocks, Meta(description="Tools that the client runs")] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """The body of ``POST /v1/messages``."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


class MessagesUsage(msgspec.Struct):
    """What was used; the input leaves out what a cache had to do with."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class MessagesAnswer(msgspec.Struct):
    """A message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: Blocks
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessagesUsage


class MessagesEvent(msgspec.Struct):
    """The data of one event, which is named after its type; what else it has depends on that."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    ]


class MessagesError(msgspec.Struct):
    """What went wrong; our code is ``details.error_code``."""

    type: str
    message: str
    details: dict[str, str] | None = None


class MessagesErrorAnswer(msgspec.Struct):
    """An error."""

    type: Literal["error"]
    error: MessagesError
    request_id: str


class CountedTokens(msgspec.Struct):
    """How many tokens a prompt has."""

    input_tokens: int
