"""Reads a chat completion that is not streamed: the same tally, one body instead of events."""

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


class WholeAnswer:
    """A chat completion, noted in the tally; ``body`` gives what the client gets."""

    content_type = b"application/json"

    def __init__(self, call: Call, answer: WholeBody) -> None:
        chunk = answer.chunk
        assert call.deployment is not None
        assert chunk is not None, "a chat completion is read where it is decoded"
        self._chunk = chunk
        self._body = body = answer.body
        self._model = call.asked.model
        self._finish_reasons = call.deployment.provider.finish_reasons
        attempt = call.tally.attempts[-1]
        attempt.served_model = (chunk.model or "")[:MAX_NAME_LENGTH]
        attempt.service_tier = (chunk.service_tier or "")[:MAX_NAME_LENGTH]
        read = read_usage(chunk)
        if read is not None:
            note_usage(attempt, read)
        # A usage that cannot be true is not charged, so it is not shown either.
        is_reported = attempt.reported is not None
        self._has_usage = is_reported and bool(chunk.usage)
        if not is_reported:
            _note_text(attempt, chunk, body)
        attempt.outcome = Outcome.COMPLETED if call.gone_since_ns is None else Outcome.CLIENT_GONE

    def rewrite(self, body: bytes) -> None:
        """Give the client this instead; what is counted and charged stays what the provider sent."""
        self._body = body

    def body(self, usage: Usage) -> bytes:
        """Return the provider's bytes under the asked model name, with our usage where it sent none."""
        body = tidy(self._body, self._chunk, self._model, self._finish_reasons)
        if self._has_usage:
            return body
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields["usage"] = msgspec.Raw(msgspec.json.encode(usage_on_wire(usage)))
        return msgspec.json.encode(fields)


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
