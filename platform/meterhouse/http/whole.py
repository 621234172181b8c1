"""Reads a chat completion that is not streamed: the same tally, one body instead of events."""

from collections.abc import Callable

import msgspec

from meterhouse.http.call import Call
from meterhouse.http.chunk import (
    MAX_NAME_LENGTH,
    UNSEEN_BYTES,
    UNSEEN_FACTOR,
    all_text_of,
    decode_chunk,
    is_set,
    read_usage,
    text_of,
)
from meterhouse.http.tidy import tidy
from meterhouse.http.usage_reading import note_usage, usage_on_wire
from meterhouse.request import utf8_length
from meterhouse.usage import Outcome, Usage


class WholeAnswer:
    """A chat completion, noted in the tally; ``body`` gives what the client gets."""

    content_type = b"application/json"

    def __init__(self, call: Call, body: bytes) -> None:
        self._body = body
        self._model = call.asked.model
        attempt = call.tally.attempt
        assert call.deployment is not None
        self._finish_reasons = call.deployment.provider.finish_reasons
        chunk = decode_chunk(body)
        attempt.served_model = (chunk.model or "")[:MAX_NAME_LENGTH]
        attempt.service_tier = (chunk.service_tier or "")[:MAX_NAME_LENGTH]
        for choice in chunk.choices or ():
            if choice.message is not None:
                text = text_of(choice.message)
                if len(body) > UNSEEN_FACTOR * len(text) + UNSEEN_BYTES:
                    text = all_text_of(body, choice.index)
                attempt.output_bytes += utf8_length(text)
                attempt.output_events += bool(text)
                attempt.text.append(text)
                if is_set(choice.message.audio):
                    attempt.is_countable = False
        read = read_usage(chunk)
        # A usage that cannot be true is not charged, so it is not shown either.
        self._has_usage = is_set(chunk.usage) and read is not None and read.usage is not None
        if read is not None:
            note_usage(attempt, read)
        attempt.outcome = Outcome.CLIENT_GONE if call.is_draining else Outcome.COMPLETED
        self._chunk = chunk

    def rewrite(self, rewrite: Callable[[bytes], bytes]) -> None:
        """Change what the client gets; what is counted and charged stays what the provider sent."""
        self._body = rewrite(self._body)

    def body(self, usage: Usage) -> bytes:
        """Return the provider's bytes under the asked model name, with our usage where it sent none."""
        body = tidy(self._body, self._chunk, self._model, self._finish_reasons)
        if self._has_usage:
            return body
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields["usage"] = msgspec.Raw(msgspec.json.encode(usage_on_wire(usage)))
        return msgspec.json.encode(fields)
