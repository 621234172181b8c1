"""The seams of the one inference path: what a client wire is, and how its requests go through a deployment.

A request is passed through where the provider has its wire (``passing.PassThrough``), else it goes over chat
completions where it can be translated (``over_chat.OverChat``, with a ``Dialect`` at the outlet), else it is refused
before anything is held. Keys, limits, holds, attempts, settlement and barrier know none of this, so that their promises
hold on every wire. Only protocols here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from meterhouse.asked import Asked
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.chunk import Chunk
from meterhouse.http.outlet import Dialect
from meterhouse.http.respond import Envelope
from meterhouse.http.tasks import Tasks
from meterhouse.http.wire import Reader
from meterhouse.ledger.checkpointer import Checkpointer
from meterhouse.metering import Meter
from meterhouse.providers.answer import Answer
from meterhouse.providers.provider import Deployment, Provider
from meterhouse.telemetry.metrics import Metrics
from meterhouse.usage import Usage

if TYPE_CHECKING:
    from meterhouse.http.call import Call
    from meterhouse.http.relay import StreamRelay


class OpenAnswer(msgspec.Struct):
    """An answer whose first data event is here: the reader goes on where ``payloads`` end."""

    passage: "Passage"
    """By which it was asked for."""
    answer: Answer
    reader: Reader
    payloads: list[bytes]
    deployment: Deployment
    first: Chunk | None = None
    """The first of the payloads, where that is a chunk of chat completions and was read already."""


class WholeBody(msgspec.Struct):
    """The body of an answer that is not streamed."""

    passage: "Passage"
    """By which it was asked for."""
    body: bytes
    answer: Answer
    """With which it came, and which is over."""
    chunk: Chunk | None = None
    """What ``decode_whole`` has read of a chat completion, for ``read_whole``."""

    @property
    def content_type(self) -> str:
        """The media type that it came with."""
        return self.answer.content_type


@dataclass(frozen=True, slots=True)
class RelayParts:
    """What a relay works with."""

    meter: Meter
    checkpointer: Checkpointer
    tasks: Tasks
    metrics: Metrics


class Whole(Protocol):
    """An answer that is not streamed, read and noted in the tally."""

    @property
    def content_type(self) -> bytes:
        """The media type that the client gets."""
        ...

    def body(self, usage: Usage) -> bytes:
        """Return what the client gets; ``usage`` is what was charged, for where the provider sent none."""
        ...


class Passage(Protocol):
    """How a request goes through a deployment, and how what comes back is read. Without state: one for all requests."""

    def path(self, provider: Provider) -> str:
        """Return what follows the provider's base URL."""
        ...

    def encode(self, asked: Asked, recipient: Recipient, editor: BodyEditor) -> bytes:
        """Return the body that goes to the deployment.

        Raises:
            Malformed: It does not take something that was asked for; another deployment may.
        """
        ...

    def event_stream_type(self, provider: Provider) -> str:
        """Return the media type of a streamed answer; another one is no answer."""
        ...

    def open_reader(self, deployment: Deployment) -> Reader:
        """Return what splits one streamed answer into payloads."""
        ...

    def check_first(self, payload: bytes, deployment: Deployment) -> Chunk | None:
        """Look at the first payload of a stream; returns it as it was read, where it is a chunk of chat completions.

        Raises:
            UpstreamError: It is an error, so that another deployment may answer, or no payload of this wire.
        """
        ...

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the body of an answer that is not streamed, ready for ``read_whole``.

        Raises:
            UpstreamError: It is an error, or no answer.
        """
        ...

    def open_relay(self, call: "Call", opened: OpenAnswer, parts: RelayParts) -> "StreamRelay":
        """Return what relays a streamed answer; the call's outlet is told how the client reads it."""
        ...

    def read_whole(self, call: "Call", answer: WholeBody, parts: RelayParts) -> Whole:
        """Read an answer that is not streamed; the call's outlet is told how the client reads it."""
        ...


class ClientWire(Protocol):
    """What clients speak at one path: how a request is read, how it may be answered, how errors look."""

    @property
    def path(self) -> str:
        """The path, which is also the route in logs and metrics."""
        ...

    @property
    def operation(self) -> str:
        """What the records call it, by OpenTelemetry's names where there is one."""
        ...

    @property
    def most_values(self) -> int:
        """How many JSON values a body may have; 0: it is no JSON, but a form."""
        ...

    @property
    def passage(self) -> Passage | None:
        """How every provider is asked whatever there is; None: ``find_passage`` says how, and whether."""
        ...

    @property
    def envelope(self) -> Envelope:
        """The shape of its errors."""
        ...

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:
        """Check a body, measure it, and put it as a chat completion too where it has such a form.

        Args:
            body: as it came, within the bound of all bodies.
            content_type: the header, empty where there is none.
            default_model: gives the model of a wire that need not name one; raises Malformed where there is none.

        Raises:
            Malformed: With ``param`` and a code as OpenAI names them.
        """
        ...

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:
        """Return how a provider is asked this; None: it cannot be."""
        ...

    def open_dialect(self, asked: Asked) -> Dialect | None:
        """Return what writes an answer that comes as chat completions; None: it is the client's own wire."""
        ...
