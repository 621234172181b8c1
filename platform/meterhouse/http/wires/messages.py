"""Anthropic's ``POST /v1/messages``: over chat completions, or passed through to who serves it (wire.md 1.11)."""

from collections.abc import Callable

from msgspec import structs
from starlette.types import Scope

from meterhouse.asked import Asked, ask_chat
from meterhouse.errors import GatewayError, Malformed
from meterhouse.http.body import check_lengths, parse_chat
from meterhouse.http.inference import InferenceEndpoint, InferenceParts
from meterhouse.http.intake import MAX_VALUES
from meterhouse.http.middleware import header
from meterhouse.http.outlet import Dialect
from meterhouse.http.over_chat import OVER_CHAT
from meterhouse.http.passage import ClientWire, Passage
from meterhouse.http.respond import Envelope
from meterhouse.http.wires.chat import CHAT
from meterhouse.http.wires.passed_messages import PassedMessages
from meterhouse.providers.provider import Provider
from meterhouse.translate.anthropic.reading import MessagesAsked, read_request
from meterhouse.translate.anthropic.words import error_body, error_event, error_status
from meterhouse.translate.anthropic.writing import MessagesWriter

MESSAGES = "/v1/messages"
VERSIONS = ("2023-06-01", "2026-10-21")
BETAS = frozenset(
    {
        "claude-code-20250219",
        "context-1m-2025-08-07",
        "context-management-2025-06-27",
        "effort-2025-11-24",
        "fine-grained-tool-streaming-2025-05-14",
        "interleaved-thinking-2025-05-14",
        "output-128k-2025-02-19",
        "prompt-caching-2024-07-31",
        "prompt-caching-scope-2026-01-05",
        "structured-outputs-2025-11-13",
        "thinking-display-updates-2026-08-18",
        "token-efficient-tools-2025-02-19",
    }
)
"""Betas that change how an answer is made and nothing of what is stored, run or charged for at Anthropic."""

_LONG_FIELDS = frozenset({"messages", "system", "tools"})


class MessagesEnvelope:
    """``{"type": "error", "error": {type, message}, "request_id"}``."""

    request_id_header: bytes | None = b"request-id"

    def status(self, error: GatewayError) -> int:
        """Return the error's own, but for Anthropic's 529."""
        return error_status(error)

    def body(self, error: GatewayError, request_id: str) -> bytes:
        """Return the envelope."""
        return error_body(error, request_id)

    def event(self, error: GatewayError, request_id: str) -> bytes:
        """Return the envelope as an event named ``error``."""
        return error_event(error, request_id)


MESSAGES_ENVELOPE = MessagesEnvelope()
PASSED_MESSAGES = PassedMessages(MESSAGES_ENVELOPE)


class MessagesWire:
    """Anthropic's messages."""

    path = MESSAGES
    operation = CHAT
    most_values = MAX_VALUES
    passage: Passage | None = None
    envelope: Envelope = MESSAGES_ENVELOPE

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Check a request; its form as a chat completion is what it is measured by."""
        return ask_messages(read_request(body))

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:
        """Pass it through where the provider has messages, else go over chat completions if it can be told so."""
        # Where we search an answer's text for calls, what the server itself makes of it on this wire is of no use.
        if "messages" in provider.endpoints and (asked.chat is None or provider.tool_call_format is None):
            return PASSED_MESSAGES
        return OVER_CHAT if asked.chat is not None else None

    def open_dialect(self, asked: Asked) -> Dialect | None:  # noqa: ARG002 - the protocol's own signature
        """Return a writer for one answer."""
        return MessagesWriter()


class MessagesEndpoint(InferenceEndpoint):
    """The endpoint, which minds Anthropic's headers."""

    def __init__(self, parts: InferenceParts, wire: ClientWire) -> None:
        super().__init__(parts, wire, read_headers=read_versions)


def ask_messages(found: MessagesAsked) -> Asked:
    """Return what a request asks for; raises Malformed where it asks for more than is read."""
    check_lengths(found.fields, _LONG_FIELDS, found.fields)
    asked = ask_chat(parse_chat(found.body))
    asked.size = structs.replace(asked.size, text_bytes=asked.size.text_bytes + found.untold_bytes)
    asked.fields = dict(found.fields)
    # Every tool that was let in runs at the caller, Anthropic's own ones too.
    asked.unpriced = None
    if found.only_anthropic is not None:
        asked.chat, asked.chat_refusal = None, found.only_anthropic
    return asked


def read_versions(scope: Scope) -> dict[str, str]:
    """Return the headers that go to Anthropic: the version, and those betas of the caller's that may pass.

    Raises:
        Malformed: The version is none that is known.
    """
    version = header(scope, b"anthropic-version") or VERSIONS[0]
    if version not in VERSIONS:
        raise Malformed(
            f"anthropic-version: This version is not known. Known are {' and '.join(VERSIONS)}.",
            param="anthropic-version",
            code="unsupported_value",
        )
    found = {"anthropic-version": version}
    asked = (name.strip() for name in (header(scope, b"anthropic-beta") or "").split(","))
    if betas := sorted(BETAS.intersection(asked)):
        found["anthropic-beta"] = ",".join(betas)
    return found
