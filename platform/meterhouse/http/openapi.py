"""The description of the API: adds the inference endpoints, whose schemas are msgspec's, to what FastAPI makes."""

from typing import Any

import msgspec
from fastapi import FastAPI

from meterhouse.http.described import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Embeddings,
    ErrorAnswer,
    ResponseEvent,
    ResponseObject,
    SimpleContent,
    SimpleMessage,
    SimpleMessages,
    SimpleResponse,
    SoundForm,
    Transcription,
)
from meterhouse.http.described_messages import (
    CountedTokens,
    CountTokensRequest,
    MessagesAnswer,
    MessagesErrorAnswer,
    MessagesEvent,
    MessagesRequest,
)
from meterhouse.http.wires.completions import CompletionRequest
from meterhouse.http.wires.embeddings import EmbeddingsRequest
from meterhouse.http.wires.media import ImageRequest, ModerationRequest, SpeechRequest
from meterhouse.request import ChatRequest
from meterhouse.translate.responses.shape import ResponsesRequest

_SHAPES = (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    ModerationRequest,
    ImageRequest,
    SpeechRequest,
    Completion,
    Embeddings,
    SoundForm,
    Transcription,
    ChatCompletion,
    ChatCompletionChunk,
    ErrorAnswer,
    ResponsesRequest,
    ResponseObject,
    ResponseEvent,
    SimpleMessages,
    SimpleMessage,
    SimpleResponse,
    SimpleContent,
    MessagesRequest,
    MessagesAnswer,
    MessagesEvent,
    MessagesErrorAnswer,
    CountTokensRequest,
    CountedTokens,
)
_JSON = "application/json"
_EVENTS = "text/event-stream"
_FORM = "multipart/form-data"

Schema = dict[str, Any]


class OpenApi:
    """Makes the description once, when it is first asked for."""

    def __init__(self, app: FastAPI) -> None:
        self._make = app.openapi
        self._schema: Schema | None = None

    def __call__(self) -> Schema:
        """Return the description."""
        if self._schema is None:
            self._schema = self._build()
        return self._schema

    def _build(self) -> Schema:
        schema = self._make()
        shapes, definitions = msgspec.json.schema_components(_SHAPES, ref_template="#/components/schemas/{name}")
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions)
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"bearer": []}]
        schema["paths"].update(_inference_paths(dict(zip(_SHAPES, shapes, strict=True))))
        for path in schema["paths"].values():
            for operation in path.values():
                operation.get("responses", {}).pop("422", None)
                if "health" in operation.get("tags", ()):
                    operation["security"] = []
        return schema


def _inference_paths(shapes: dict[Any, Schema]) -> Schema:
    errors = shapes[ErrorAnswer]
    content = shapes[SimpleContent]
    return {
        **_messages_paths(shapes),
        "/v1/chat/completions": _post(
            "create_chat_completion",
            "Create a chat completion, streamed or not",
            shapes[ChatRequest],
            "A chat completion, or with `stream` the events of one, ended by `[DONE]`",
            {_JSON: shapes[ChatCompletion], _EVENTS: shapes[ChatCompletionChunk]},
            errors,
        ),
        **_passed_paths(shapes),
        "/v1/responses": _post(
            "create_response",
            "Create a response, streamed or not",
            shapes[ResponsesRequest],
            "A response, or with `stream` its events",
            {_JSON: shapes[ResponseObject], _EVENTS: shapes[ResponseEvent]},
            errors,
        ),
        "/api/chat": _post(
            "simple_chat",
            "Chat, streamed as simple events",
            shapes[SimpleMessages],
            'Events `data: {"content": "..."}`, ended by `data: [DONE]`',
            {_EVENTS: content},
            errors,
        ),
        "/chat": _post(
            "simple_message",
            "Say one thing, get one answer",
            shapes[SimpleMessage],
            "The answer",
            {_JSON: shapes[SimpleResponse]},
            errors,
        ),
        "/stream": _post(
            "simple_stream",
            "Say one thing, get the answer in named events",
            shapes[SimpleMessage],
            "Events named `message` with `content` and `done`; one named `error` where it fails",
            {_EVENTS: content},
            errors,
        ),
    }


def _passed_paths(shapes: dict[Any, Schema]) -> Schema:
    errors = shapes[ErrorAnswer]
    text, sound = {"type": "string"}, {"type": "string", "format": "binary"}
    heard = {_JSON: shapes[Transcription], "text/plain": text}
    paths = {
        "/v1/completions": _post(
            "create_completion",
            "Complete a prompt (the legacy wire), streamed or not",
            shapes[CompletionRequest],
            "A completion, or with `stream` the events of one, ended by `[DONE]`",
            {_JSON: shapes[Completion], _EVENTS: shapes[Completion]},
            errors,
        ),
        "/v1/embeddings": _post(
            "create_embeddings",
            "Embed texts or tokens",
            shapes[EmbeddingsRequest],
            "A vector for each input, as numbers or as base64 of little-endian float32",
            {_JSON: shapes[Embeddings]},
            errors,
        ),
    }
    for path, name, summary, request, answers in (
        ("/v1/moderations", "create_moderation", "Classify texts or images", ModerationRequest, {_JSON: {}}),
        ("/v1/images/generations", "create_image", "Draw images", ImageRequest, {_JSON: {}}),
        ("/v1/audio/speech", "create_speech", "Say a text", SpeechRequest, {"audio/mpeg": sound}),
        ("/v1/audio/transcriptions", "create_transcription", "Write down a sound", SoundForm, heard),
        ("/v1/audio/translations", "create_translation", "Write down a sound in English", SoundForm, heard),
    ):
        paths[path] = _post(name, summary, shapes[request], "The provider's answer", answers, errors)
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        content = paths[path]["post"]["requestBody"]["content"]
        content[_FORM] = content.pop(_JSON)
    return paths


def _messages_paths(shapes: dict[Any, Schema]) -> Schema:
    errors = shapes[MessagesErrorAnswer]
    return {
        "/v1/messages": _post(
            "create_message",
            "Create a message on Anthropic's wire, streamed or not",
            shapes[MessagesRequest],
            "A message, or with `stream` its events, ended by `message_stop`",
            {_JSON: shapes[MessagesAnswer], _EVENTS: shapes[MessagesEvent]},
            errors,
        ),
        "/v1/messages/count_tokens": _post(
            "count_message_tokens",
            "Count the tokens of a prompt on Anthropic's wire",
            shapes[CountTokensRequest],
            "The count",
            {_JSON: shapes[CountedTokens]},
            errors,
        ),
    }


def _post(
    operation_id: str, summary: str, request: Schema, description: str, answers: Schema, errors: Schema
) -> Schema:
    failure = {_JSON: {"schema": errors}}
    return {
        "post": {
            "tags": ["inference"],
            "summary": summary,
            "operationId": operation_id,
            "requestBody": {"required": True, "content": {_JSON: {"schema": request}}},
            "responses": {
                "200": {
                    "description": description,
                    "content": {media_type: {"schema": shape} for media_type, shape in answers.items()},
                },
                "4XX": {"description": "The request, the key or a limit", "content": failure},
                "5XX": {"description": "A provider, or this server", "content": failure},
            },
        }
    }
