"""What a provider speaks on its wire, behind one shape: the body in, payloads or a whole body out.

Payloads are OpenAI chat completion chunks as JSON bytes, ``[DONE]`` included, whatever the provider spoke. A new wire
is one more ``UpstreamWire`` in ``UPSTREAM_WIRES``; its path, headers and quirks are fields of the provider's row.
"""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from meterhouse.errors import UpstreamDown
from meterhouse.http.sse import SseReader
from meterhouse.ids import random_base62
from meterhouse.providers.provider import Deployment, Wire
from meterhouse.translate.anthropic.asking import to_messages_request
from meterhouse.translate.anthropic.hearing import HeardStream, from_message
from meterhouse.translate.ollama_chat import OllamaChatStream, from_ollama_response, to_ollama_request


class Reader(Protocol):
    """What turns a provider's bytes into payloads."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; returns the payloads that they complete.

        Raises:
            UpstreamDown: They are none of the wire's.
        """
        ...

    def close(self) -> list[bytes]:
        """Say that the bytes have ended; returns what was still to come."""
        ...


class UpstreamWire(Protocol):
    """How chat completions are asked for, and answered, on a provider's wire."""

    @property
    def event_stream_type(self) -> str:
        """The media type of a streamed answer; another one is no answer."""
        ...

    @property
    def keeps_bodies(self) -> bool:
        """Whether ``encode`` returns what it gets, so that it takes no time."""
        ...

    def encode(self, body: bytes, deployment: Deployment, *, is_streamed: bool) -> bytes:
        """Return a chat completion request, made for the deployment, in the provider's own wire.

        Raises:
            Malformed: The wire cannot say something that was asked for.
        """
        ...

    def open_reader(self, deployment: Deployment) -> Reader:
        """Return a reader for one streamed answer, whose payloads are chat completion chunks.

        The finish reason is on a chunk of its choice; the usage on that one, or on one without choices after it; an
        error is a payload with ``error`` in it. The end is ``[DONE]``, or the end of the bytes.
        """
        ...

    def decode_whole(self, body: bytes, deployment: Deployment) -> bytes:
        """Return a whole answer as a chat completion, an error (``{"error": ...}``) as it came.

        Raises:
            UpstreamDown: It is none of the wire's.
        """
        ...


class OpenAiWire:
    """OpenAI's own, which the simulator speaks too: bytes pass as they are."""

    event_stream_type = "text/event-stream"
    keeps_bodies = True

    def encode(self, body: bytes, deployment: Deployment, *, is_streamed: bool) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the body."""
        return body

    def open_reader(self, deployment: Deployment) -> Reader:  # noqa: ARG002 - the protocol's own signature
        """Return a reader of events."""
        return SseReader()

    def decode_whole(self, body: bytes, deployment: Deployment) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the body without the blanks that keep a connection open."""
        return body.strip()


class OllamaWire:
    """Ollama's ``/api/chat``."""

    event_stream_type = "application/x-ndjson"
    keeps_bodies = False

    def encode(self, body: bytes, deployment: Deployment, *, is_streamed: bool) -> bytes:
        """Return the body for ``/api/chat``."""
        return to_ollama_request(
            body,
            upstream_model=deployment.upstream_model,
            is_streamed=is_streamed,
            default_max_tokens=deployment.provider.default_max_tokens or deployment.model.max_output_tokens,
        )

    def open_reader(self, deployment: Deployment) -> Reader:
        """Return a reader of lines."""
        return OllamaChatStream(
            completion_id=new_completion_id(), created_seconds=int(time.time()), model=deployment.upstream_model
        )

    def decode_whole(self, body: bytes, deployment: Deployment) -> bytes:
        """Return the answer as a chat completion."""
        return from_ollama_response(
            body,
            completion_id=new_completion_id(),
            created_seconds=int(time.time()),
            model=deployment.upstream_model,
        )


class AnthropicWire:
    """Anthropic's ``/v1/messages``."""

    event_stream_type = "text/event-stream"
    keeps_bodies = False

    def encode(self, body: bytes, deployment: Deployment, *, is_streamed: bool) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the body for ``/v1/messages``."""
        row = deployment.provider
        return to_messages_request(
            body,
            upstream_model=deployment.upstream_model,
            default_max_tokens=row.default_max_tokens or deployment.model.max_output_tokens,
            thinks_by_budget=row.rule_of(deployment.upstream_model).thinks_by_budget,
        )

    def open_reader(self, deployment: Deployment) -> Reader:
        """Return a reader of events."""
        return AnthropicReader(deployment)

    def decode_whole(self, body: bytes, deployment: Deployment) -> bytes:
        """Return the answer as a chat completion."""
        return from_message(
            body,
            completion_id=new_completion_id(),
            created_seconds=int(time.time()),
            model=deployment.upstream_model,
        )


class AnthropicReader:
    """Splits a stream into events and tells each as chunks."""

    def __init__(self, deployment: Deployment) -> None:
        self._events = SseReader()
        self._heard = HeardStream(
            completion_id=new_completion_id(), created_seconds=int(time.time()), model=deployment.upstream_model
        )
        self._failure: UpstreamDown | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; what came before an event that is none of the wire's is returned first."""
        if self._failure is not None:
            raise self._failure
        payloads: list[bytes] = []
        try:
            for event in self._events.feed(data):
                payloads += self._heard.take(event)
        except UpstreamDown as failure:
            if not payloads:
                raise
            self._failure = failure
        return payloads

    def close(self) -> list[bytes]:
        """Say that the bytes have ended."""
        if self._failure is not None:
            raise self._failure
        return []


_OPENAI = OpenAiWire()
UPSTREAM_WIRES: Mapping[Wire, UpstreamWire] = MappingProxyType(
    {"openai": _OPENAI, "simulator": _OPENAI, "ollama": OllamaWire(), "anthropic": AnthropicWire()}
)


def new_completion_id() -> str:
    """Return a fresh id in OpenAI's form."""
    return f"chatcmpl-{random_base62(24)}"
