"""What a provider speaks on its wire, behind one shape: the body in, payloads or a whole body out.

Payloads are OpenAI chat completion chunks as JSON bytes, ``[DONE]`` included, whatever the provider spoke.
"""

import time
from typing import Protocol

from meterhouse.http.sse import SseReader
from meterhouse.ids import random_base62
from meterhouse.providers.provider import Deployment
from meterhouse.translate.ollama_chat import OllamaChatStream, from_ollama_response, to_ollama_request

EVENT_STREAM_TYPES = {"openai": "text/event-stream", "simulator": "text/event-stream", "ollama": "application/x-ndjson"}


class Reader(Protocol):
    """What turns a provider's bytes into payloads."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; returns the payloads that they complete."""
        ...

    def close(self) -> list[bytes]:
        """Say that the bytes have ended; returns what was still to come."""
        ...


def encode_body(body: bytes, deployment: Deployment, *, is_streamed: bool) -> bytes:
    """Return the body in the provider's own wire."""
    if deployment.provider.wire == "ollama":
        return to_ollama_request(
            body,
            upstream_model=deployment.upstream_model,
            is_streamed=is_streamed,
            default_max_tokens=deployment.provider.default_max_tokens or deployment.model.max_output_tokens,
        )
    return body


def open_reader(deployment: Deployment) -> Reader:
    """Return a reader for a streamed answer."""
    if deployment.provider.wire == "ollama":
        return OllamaChatStream(
            completion_id=new_completion_id(), created_seconds=int(time.time()), model=deployment.upstream_model
        )
    return SseReader()


def decode_whole(body: bytes, deployment: Deployment) -> bytes:
    """Return a whole answer as an OpenAI chat completion."""
    if deployment.provider.wire == "ollama":
        return from_ollama_response(
            body,
            completion_id=new_completion_id(),
            created_seconds=int(time.time()),
            model=deployment.upstream_model,
        )
    return body.strip()


def new_completion_id() -> str:
    """Return a fresh id in OpenAI's form."""
    return f"chatcmpl-{random_base62(24)}"
