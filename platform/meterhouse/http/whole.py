"""Reads a chat completion that is not streamed: the same tally, one body instead of events."""

from collections.abc import Mapping

import msgspec

from meterhouse.http.call import Call
from meterhouse.http.chunk import (
    MAX_NAME_LENGTH,
    UNSEEN_BYTES,
    UNSEEN_FACTOR,
    Chunk,
    all_text_of,
    is_set,
    read_usage,
    text_of,
)
from meterhouse.http.passage import WholeBody
from meterhouse.http.tidy import tidy
from meterhouse.http.usage_reading import note_usage, usage_on_wire
from meterhouse.request import Attempt, utf8_length
from meterhouse.usage import Outcome, Usage

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class WholeAnswer(msgspec.Struct, eq=False):
    """A chat completion, noted in the tally; ``body`` gives what the client gets."""

    payload: bytes
    """What the client gets is made of this; what is counted and charged is what the provider sent."""
    chunk: Chunk
    """The provider's body, decoded."""
    model: str
    """The name that was asked for."""
    finish_reasons: Mapping[str, str]
    """Of the provider's row."""
    has_usage: bool
    """Whether the provider's body tells a usage that the client may see."""
    content_type: bytes = b"application/json"

    def body(self, usage: Usage) -> bytes:
        """Return the provider's bytes under the asked model name, with our usage where it sent none."""
        body = tidy(self.payload, self.chunk, self.model, self.finish_reasons)
        if self.has_usage:
            return body
        try:
            fields = _fields_decoder.decode(body)
        except UnicodeDecodeError:
            return body  # a name in it is no text, as in ``tidy``
        fields["usage"] = msgspec.Raw(msgspec.json.encode(usage_on_wire(usage)))
        return msgspec.json.encode(fields)


def note_whole(call: Call, answer: WholeBody) -> WholeAnswer:
    """Note a chat completion in the tally."""
    chunk = answer.chunk
    assert call.deployment is not None
    assert chunk is not None, "a chat completion is read where it is decoded"
    attempt = call.tally.attempts[-1]
    attempt.served_model = (chunk.model or "")[:MAX_NAME_LENGTH]
    attempt.service_tier = (chunk.service_tier or "")[:MAX_NAME_LENGTH]
    read = read_usage(chunk)
    if read is not None:
        note_usage(attempt, read)
    is_reported = attempt.reported is not None
    if not is_reported:
        _note_text(attempt, chunk, answer.body)
    attempt.outcome = Outcome.COMPLETED if call.gone_since_ns is None else Outcome.CLIENT_GONE
    # A usage that cannot be true is not charged, so it is not shown either.
    has_usage = is_reported and bool(chunk.usage)
    return WholeAnswer(answer.body, chunk, call.asked.model, call.deployment.provider.finish_reasons, has_usage)


def _note_text(attempt: Attempt, chunk: Chunk, body: bytes) -> None:
    """Note what came, to be counted: its provider did not say how much it is."""
    for choice in chunk.choices or ():
        message = choice.message
        if message is None:
            continue
        text = text_of(message)
        if len(body) > UNSEEN_FACTOR * len(text) + UNSEEN_BYTES:
            text = all_text_of(body, choice.index)
        attempt.output_bytes += utf8_length(text)
        attempt.output_events += bool(text)
        attempt.text.append(text)
        if message.audio and is_set(message.audio):
            attempt.is_countable = False
