"""The shapes of answers and errors for the OpenAPI page (wire.md 1.3 to 1.5).

Only described, never built: an answer is a provider's own bytes, and may carry more than is named here. What a request
is checked against is ``meterhouse.request``.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class DescribedCall(msgspec.Struct):
    """A function and its arguments, which are JSON in a string."""

    name: str
    arguments: str


class DescribedToolCall(msgspec.Struct):
    """A call of a tool; ``index`` only in chunks, whose later pieces leave out all but the arguments."""

    type: Literal["function", "custom"]
    function: DescribedCall | None = None
    id: str | None = None
    index: int | None = None


class DescribedMessage(msgspec.Struct):
    """What a choice says; in a chunk, a piece of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[DescribedToolCall] | None = None
    annotations: list[dict[str, Any]] | None = None
    audio: dict[str, Any] | None = None


class ChatCompletionChoice(msgspec.Struct):
    """One of ``n`` answers."""

    index: int
    message: DescribedMessage
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class ChatCompletionChunkChoice(msgspec.Struct):
    """A piece of one of ``n`` answers; ``finish_reason`` is null until its last."""

    index: int
    delta: DescribedMessage
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class CompletionUsage(msgspec.Struct):
    """What was used, as it is charged."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None


class ChatCompletion(msgspec.Struct):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: Annotated[int, Meta(description="Unix seconds")]
    model: Annotated[str, Meta(description="As it was asked for")]
    choices: list[ChatCompletionChoice]
    usage: CompletionUsage
    service_tier: str | None = None
    system_fingerprint: str | None = None


class ChatCompletionChunk(msgspec.Struct):
    """The data of one event of a streamed answer; the last event's data is ``[DONE]``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionChunkChoice]
    usage: Annotated[
        CompletionUsage | None, Meta(description="On one more chunk without choices, if `include_usage` was asked")
    ] = None
    service_tier: str | None = None
    system_fingerprint: str | None = None


class ResponseUsage(msgspec.Struct):
    """What a response used, as it is charged."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, Any] | None = None
    output_tokens_details: dict[str, Any] | None = None


class ResponseObject(msgspec.Struct):
    """A response; what was asked for is told back beside what is named here."""

    id: str
    object: Literal["response"]
    created_at: Annotated[int, Meta(description="Unix seconds")]
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: Annotated[str, Meta(description="As it was asked for")]
    output: Annotated[
        list[dict[str, Any]], Meta(description="Messages, reasoning, calls of functions and custom tools")
    ]
    store: Annotated[Literal[False], Meta(description="Nothing is stored")]
    usage: ResponseUsage | None = None
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None


class ResponseEvent(msgspec.Struct):
    """The data of one event of a streamed response; the last is of the type `response.completed` or `.incomplete`."""

    type: str
    sequence_number: int
    response: Annotated[ResponseObject | None, Meta(description="In the first two events and the last")] = None
    item: dict[str, Any] | None = None
    delta: str | None = None


class ErrorObject(msgspec.Struct):
    """What went wrong, and what to change."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct):
    """Every answer that is not a success, and the last event of a stream that failed."""

    error: ErrorObject


class SimpleMessages(msgspec.Struct):
    """The body of ``POST /api/chat``; every other field of a chat completion is understood as well."""

    messages: list[dict[str, Any]]
    model: Annotated[str | None, Meta(description="The operator's default where none is given")] = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class SimpleMessage(msgspec.Struct):
    """The body of ``POST /chat`` and ``POST /stream``; other fields as at ``/api/chat``."""

    message: str
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class SimpleResponse(msgspec.Struct):
    """The answer of ``POST /chat``."""

    response: str
    reasoning_content: Annotated[str, Meta(description="What a thinking model thought")] | None = None


class SimpleContent(msgspec.Struct):
    """The data of one event; ``done`` only at ``POST /stream``."""

    content: str
    reasoning_content: str | None = None
    finish_reason: Annotated[str, Meta(description="Where the answer ended early: `length`, ...")] | None = None
    done: bool | None = None


class CompletionChoice(msgspec.Struct):
    """One of the answers of a legacy completion; in a stream, a piece of it."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class Completion(msgspec.Struct):
    """A legacy completion, or the data of one event of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None


class EmbeddingRow(msgspec.Struct):
    """The vector of one input: numbers, or base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(msgspec.Struct):
    """What was used, as it is charged."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct):
    """The vectors of all inputs, in their order."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingRow]
    usage: EmbeddingsUsage


class SoundForm(msgspec.Struct):
    """The fields of a form with a sound; others pass as they are."""

    model: str
    file: Annotated[str, Meta(description="The file itself", extra_json_schema={"format": "binary"})]
    language: str | None = None
    prompt: str | None = None
    response_format: str | None = None
    temperature: float | None = None


class Transcription(msgspec.Struct):
    """What was said."""

    text: str
