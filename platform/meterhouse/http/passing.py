"""The passage of what is passed through: a request on a wire that the provider has itself.

The body goes as it came, but for what ``BodyEditor.edit_passed`` puts right; the answer comes back as its own events,
each in one frame, under the asked model's name. What an event says to the ledger (text, usage, the end) is a
``Listener``'s to tell, one for each streamed answer. The relay is chat's own, so its promises are: the hold, the
extensions, the checkpoints, the end that waits for the record.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from meterhouse.asked import Asked
from meterhouse.errors import GatewayError, UpstreamDown, UpstreamError
from meterhouse.http.alike import MOST_BYTES, Told
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.call import Call
from meterhouse.http.chunk import MAX_NAME_LENGTH, decode_chunk, is_failure
from meterhouse.http.over_chat import OVER_CHAT
from meterhouse.http.passage import OpenAnswer, Passage, RelayParts, Whole, WholeBody
from meterhouse.http.progress import ONLY_FIRST
from meterhouse.http.relay import MAX_TAIL_BYTES, StreamRelay, ended_early
from meterhouse.http.sse import CARRIAGE_RETURN, DONE, EVENT_END, SseReader, named_frame, split_events
from meterhouse.http.tidy import rename_model
from meterhouse.http.usage_reading import Fields, ReadUsage, note_usage
from meterhouse.http.wire import Reader
from meterhouse.providers.provider import Deployment, EndpointName, Provider
from meterhouse.providers.refusal import error_in_stream, no_answer
from meterhouse.request import Attempt, utf8_length
from meterhouse.usage import Outcome, Usage

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(slots=True)
class Heard:
    """What one event of an answer says to the ledger."""

    frame: bytes = b""
    """The event as the client gets it, its blank line included; empty: it gets nothing."""
    text: str = ""
    """What the model wrote in it: content, thoughts, arguments of calls. It is counted where no usage comes."""
    usage: ReadUsage | None = None
    is_end: bool = False
    """The end of the answer begins here: this event and all after it wait for the record."""
    is_last: bool = False
    """Nothing comes after it."""


class Listener(Protocol):
    """Listens to one streamed answer. It may remember what came; ``attempt`` is where names and reasons are noted."""

    def hear(self, payload: bytes, attempt: Attempt) -> Heard:
        """Read the data of an event.

        Raises:
            UpstreamError: It says that the provider failed, or it is none of the wire's.
        """
        ...

    def tell(self, data: bytes) -> Told | None:
        """Tell of events that only say text, as ``Teller`` does. What is not passed on then is heard after all."""
        ...

    def took(self) -> None:
        """Note that what was told last reaches the client; it is not heard any more."""
        ...

    def told(self) -> None:
        """Note that all that was heard reaches the client; what is heard after the last time does not, if it is cut."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole although ``Heard.is_end`` was not seen: then ``[DONE]`` is no failure."""
        ...

    def cut(self, usage: Usage) -> bytes:
        """Return the events that end an answer whose allowance is used up, in the words of ``length``."""
        ...

    def close(self, usage: Usage) -> bytes:
        """Return what follows the end, cut or not, on a wire where something does: ``[DONE]``."""
        ...

    def fail(self, error: GatewayError, request_id: str) -> bytes:
        """Return the event that ends the stream with an error, its blank line included."""
        ...


class PassingRelay(StreamRelay):
    """Relays an answer that is passed through. ``listen`` must be called before ``run``."""

    _listener: Listener

    def listen(self, listener: Listener) -> "PassingRelay":
        """Say who listens to the answer; returns the relay."""
        self._listener = self._teller = listener
        return self

    def end(self, usage: Usage) -> bytes:
        """Return what is sent after the barrier: the provider's own end, or that of an answer that was cut."""
        frames = list(self._progress.end)
        if self._attempt.outcome is Outcome.CUT:
            frames.append(self._listener.cut(usage))
        return b"".join([*frames, self._listener.close(usage)])

    def _take_at_once(self, data: bytes) -> bool:
        is_taken = super()._take_at_once(data)
        if is_taken:
            self._listener.took()
        return is_taken

    def _note_covered(self) -> None:
        self._listener.told()

    def _take(self, payloads: list[bytes]) -> list[bytes]:
        progress = self._progress
        frames: list[bytes] = []
        for index, payload in enumerate(payloads):
            if payload.startswith(DONE):
                self._finish(is_last=True)
                progress.has_ended = self._listener.is_finished
                progress.failure = None if progress.has_ended else ended_early()
                break
            try:
                heard = self._hear(payload)
            except UpstreamError as error:
                progress.failure = error
                break
            if not heard.is_end and not self._listener.is_finished:
                # More began after all that was seen had finished: what was kept was not the end.
                frames += [*progress.end, heard.frame]
                progress.end, progress.tail_bytes = [], 0
                continue
            if (failure := self._keep(heard.frame)) is not None:
                progress.failure = failure
                break
            if not heard.is_end:
                continue
            progress.has_ended = True
            self._finish(is_last=heard.is_last)
            self._try_tail(payloads[index + 1 :])
            break
        return frames

    def _take_tail(self, payloads: list[bytes]) -> None:
        progress = self._progress
        for payload in payloads:
            if progress.is_done or payload.startswith(DONE):
                progress.is_done = True
                return
            heard = self._hear(payload)
            progress.is_done = heard.is_last
            if (failure := self._keep(heard.frame)) is not None:
                raise failure

    def _keep(self, frame: bytes) -> UpstreamError | None:
        """Keep a frame for the end; returns why no more can be kept."""
        progress = self._progress
        progress.end.append(frame)
        progress.tail_bytes += len(frame)
        if progress.tail_bytes <= MAX_TAIL_BYTES:
            return None
        return UpstreamDown("The provider went on after its answer was finished.", detail="tail too long")

    def _finish(self, *, is_last: bool) -> None:
        """Note the end: for the relay an answer has one choice; whether all of several ended is the listener's."""
        self._progress.seen = self._progress.finished = ONLY_FIRST
        self._progress.is_done = is_last

    def _hear(self, payload: bytes) -> Heard:
        heard = self._listener.hear(payload, self._attempt)
        if heard.text:
            self._progress.note_text(heard.text, utf8_length(heard.text))
        self._progress.note_usage(heard.usage)
        return heard


class PassedBody:
    """A JSON answer that is not streamed: the provider's own bytes under the asked model's name."""

    content_type = b"application/json"

    def __init__(self, call: Call, body: bytes) -> None:
        self._body = body
        self._served = call.tally.attempt.served_model or None
        self._asked = call.asked.model

    def body(self, usage: Usage) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return what the client gets."""
        return rename_model(self._body, self._served, self._asked)


class PassThrough(ABC):
    """What is the same for every wire with JSON bodies; a wire says what its own bodies and events mean."""

    endpoint: EndpointName
    bound_field: str | None = None
    """What the wire calls the bound of an answer; None: it has none."""

    def path(self, provider: Provider) -> str:
        """Return the provider's path of the wire."""
        return provider.endpoints[self.endpoint]

    def encode(self, asked: Asked, recipient: Recipient, editor: BodyEditor) -> bytes:
        """Return the body as it came, for this recipient."""
        fields = editor.edit_passed(asked, recipient, self.bound_field)
        self.adapt(fields, recipient, editor)
        return editor.encode(fields)

    def event_stream_type(self, provider: Provider) -> str:  # noqa: ARG002 - the protocol's own signature
        """Return that of events."""
        return "text/event-stream"

    def open_reader(self, deployment: Deployment) -> Reader:  # noqa: ARG002 - the protocol's own signature
        """Return a reader of events, of which only the data counts."""
        return SseReader()

    def check_first(self, payload: bytes, deployment: Deployment) -> None:
        """Raise the error that the first payload is, if it is one."""
        if is_failure(decode_chunk(payload)):
            raise error_in_stream(payload, deployment)

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the body, if it is a JSON object and no error."""
        body = answer.body.strip()
        if is_failure(decode_chunk(body)):
            raise error_in_stream(body, deployment)
        return body

    def open_relay(self, call: Call, opened: OpenAnswer, parts: RelayParts) -> StreamRelay:
        """Return a relay with a listener of this wire."""
        listener = self.open_listener(call.asked, opened.deployment)
        call.outlet.fail_with(listener.fail)
        return PassingRelay(call, opened, parts).listen(listener)

    def read_whole(self, call: Call, answer: WholeBody, parts: RelayParts) -> Whole:  # noqa: ARG002 - the protocol's own signature
        """Return the answer as it came, noted."""
        self.note_whole(call, check_object(answer.body))
        return PassedBody(call, answer.body)

    def note_whole(self, call: Call, fields: dict[str, msgspec.Raw]) -> None:
        """Note usage, model, tier and text of a whole answer."""
        attempt = call.tally.attempt
        attempt.served_model = text_in(fields, "model")[:MAX_NAME_LENGTH]
        attempt.service_tier = text_in(fields, "service_tier")[:MAX_NAME_LENGTH]
        wire = decode_or_none(fields.get("usage"))
        if isinstance(wire, dict):
            note_usage(attempt, self.read_usage(wire))
        if attempt.reported is None:
            self.note_text(fields, attempt)
        attempt.outcome = Outcome.CLIENT_GONE if call.is_draining else Outcome.COMPLETED

    @abstractmethod
    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:
        """Change what the wire, or the provider's row, wants otherwise; raises Malformed where that cannot be."""

    def open_listener(self, asked: Asked, deployment: Deployment) -> Listener:  # noqa: ARG002 - for wires that have one
        """Return what listens to one streamed answer; of a wire without streams none is ever asked for."""
        raise no_answer("a stream on a wire that has none")

    @abstractmethod
    def read_usage(self, wire: Fields) -> ReadUsage:
        """Read a usage object of this wire."""

    @abstractmethod
    def note_text(self, fields: dict[str, msgspec.Raw], attempt: Attempt) -> None:
        """Put what a whole answer says into the attempt, to be counted: nobody reported a usage."""


def choose_passage(passed: PassThrough, asked: Asked, provider: Provider) -> Passage | None:
    """Return the wire's own passage where the provider has the wire, else the one over chat where that is possible."""
    if passed.endpoint in provider.endpoints:
        return passed
    return OVER_CHAT if asked.chat is not None else None


def tell_texts(data: bytes, read: Callable[[bytes], tuple[str, str]]) -> Told | None:
    """Tell of events by what ``read`` returns for each: its type, and the text that is all that it says, or none."""
    if len(data) > MOST_BYTES or CARRIAGE_RETURN in data or not data.endswith(EVENT_END):
        return None
    texts: list[str] = []
    frames: list[bytes] = []
    for payload in split_events(data.removesuffix(EVENT_END)):
        try:
            kind, text = read(payload)
        except UpstreamError:
            return None
        if not text:
            return None
        texts.append(text)
        frames.append(named_frame(kind, payload))
    text = "".join(texts)
    return (len(texts), text, utf8_length(text), b"".join(frames)) if texts else None


def decode_or_none(raw: msgspec.Raw | None) -> Any:
    """Return the value of a raw field; None where there is none, or it is no JSON: the client gets it as it came."""
    try:
        return msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def text_in(fields: dict[str, msgspec.Raw], name: str) -> str:
    """Return a field that is a text; empty where it is something else."""
    raw = fields.get(name)
    if raw is None or not bytes(raw).startswith(b'"'):
        return ""
    return msgspec.json.decode(raw, type=str)


def check_object(payload: bytes) -> dict[str, msgspec.Raw]:
    """Decode a payload one level deep.

    Raises:
        UpstreamDown: It is no JSON object.
    """
    try:
        return _fields_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_answer("not a JSON object") from None
