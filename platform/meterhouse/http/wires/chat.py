"""``POST /v1/chat/completions``, and the simple chat endpoints, which are translated into it at the two ends."""

from collections.abc import Callable

from meterhouse.asked import Asked, ask_chat
from meterhouse.errors import GatewayError
from meterhouse.http.body import parse_chat
from meterhouse.http.intake import MAX_VALUES
from meterhouse.http.outlet import Dialect
from meterhouse.http.over_chat import OVER_CHAT
from meterhouse.http.passage import Passage
from meterhouse.http.respond import OPENAI_ENVELOPE, Envelope, OpenAiEnvelope, error_body
from meterhouse.providers.provider import Provider
from meterhouse.translate.simple_chat import SimpleChat

CHAT_COMPLETIONS = "/v1/chat/completions"
CHAT = "chat"
"""OpenTelemetry's name of the operation, whatever the wire."""


class ChatWire:
    """OpenAI's chat completions."""

    path = CHAT_COMPLETIONS
    operation = CHAT
    most_values = MAX_VALUES
    passage: Passage | None = OVER_CHAT
    envelope: Envelope = OPENAI_ENVELOPE

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Check a chat completion request."""
        return ask_chat(parse_chat(body))

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:  # noqa: ARG002 - the protocol's own signature
        """Return the one way: every provider has chat completions."""
        return OVER_CHAT

    def open_dialect(self, asked: Asked) -> Dialect | None:  # noqa: ARG002 - the protocol's own signature
        """Return none."""
        return None


class SimpleWire:
    """One of the simple chat wires."""

    operation = CHAT
    most_values = MAX_VALUES
    passage: Passage | None = OVER_CHAT

    def __init__(self, simple: SimpleChat) -> None:
        self.path = simple.path
        self._simple = simple
        self._dialect = SimpleDialect(simple)
        self.envelope: Envelope = SimpleEnvelope(simple)

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Turn the body into OpenAI's and check that."""
        found = self._simple.read(body, default_model)
        parsed = parse_chat(found.body)
        parsed.defaulted = found.defaulted
        return ask_chat(parsed)

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:  # noqa: ARG002 - the protocol's own signature
        """Return the one way: every provider has chat completions."""
        return OVER_CHAT

    def open_dialect(self, asked: Asked) -> Dialect | None:  # noqa: ARG002 - the protocol's own signature
        """Return the wire's, which remembers nothing and is one for all answers."""
        return self._dialect


class SimpleDialect:
    """Writes answers on a simple wire."""

    def __init__(self, simple: SimpleChat) -> None:
        self.frames = simple.frames
        self.write_body = simple.write_body
        self._write_event = simple.write_event

    def fail(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the wire's event for an error."""
        return self._write_event(error_body(error))


class SimpleEnvelope(OpenAiEnvelope):
    """OpenAI's, with the wire's own event."""

    def __init__(self, simple: SimpleChat) -> None:
        self._write_event = simple.write_event

    def event(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the wire's event for an error."""
        return self._write_event(error_body(error))
