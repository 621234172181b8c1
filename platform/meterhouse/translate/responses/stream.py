"""Chat completions, streamed or whole, as what ``/v1/responses`` answers.

Both ways go through the same items, so a stream adds up to what the body would be. Invariant: pure but for ids and the
clock, which are handed in; the events stand in the order that the SDK's stream helper demands.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from meterhouse.translate.responses.answer import TIERS, Answering, Json, failure_of, usage_of
from meterhouse.translate.responses.output import Output
from meterhouse.translate.said import choices_of, index_in, read_answer

DONE = b"[DONE]"
_encoder = msgspec.json.Encoder()


class ResponseStream:
    """Turns the payloads of one streamed chat completion into events."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._output = Output(answering)
        self._sequence = 0
        self._has_begun = False
        self._is_over = False

    def events(self, payload: bytes) -> bytes:
        """Return the events that a payload makes, as bytes on the wire; ``[DONE]`` makes the last.

        Raises:
            UpstreamDown: The payload is no JSON object, or the answer is longer than is kept.
        """
        if self._is_over:
            return b""
        if payload.startswith(DONE):
            return b"".join(self._frames(self._finish()))
        chunk = read_answer(payload)
        return b"".join(self._frames(self._take(chunk)))

    def fail(self, error: Json) -> bytes:
        """Return the events that end the stream with an error, which has the four fields of OpenAI's envelope."""
        return b"" if self._is_over else b"".join(self._frames(self._fail(error)))

    def _frames(self, events: Iterator[Json]) -> Iterator[bytes]:
        for event in events:
            name = event["type"].encode()
            yield (
                b"event: " + name + b"\ndata: " + _encoder.encode(event | {"sequence_number": self._sequence}) + b"\n\n"
            )
            self._sequence += 1

    def _begin(self) -> Iterator[Json]:
        if not self._has_begun:
            self._has_begun = True
            for name in ("response.created", "response.in_progress"):
                yield {"type": name, "response": self._answering.snapshot(is_over=False)}

    def _take(self, chunk: Json) -> Iterator[Json]:
        yield from self._begin()
        note(self._answering, chunk)
        for choice in _choices(chunk):
            if isinstance(delta := choice.get("delta"), dict):
                yield from self._output.take(delta, choice.get("logprobs"))

    def _finish(self) -> Iterator[Json]:
        yield from self._begin()
        yield from self._output.finish(self._answering.status)
        yield self._end()

    def _fail(self, error: Json) -> Iterator[Json]:
        yield from self._begin()
        for _ in self._output.finish("incomplete"):
            pass  # what was begun stays as it is in the last snapshot, and is not said to be done
        self._answering.error = failure_of(error)
        yield self._end()
        yield error_event(error)

    def _end(self) -> Json:
        self._is_over = True
        answering = self._answering
        return {"type": f"response.{answering.status}", "response": answering.snapshot(is_over=True)}


def error_event(error: Json) -> Json:
    """Return the event of an error, from the four fields of OpenAI's envelope.

    The SDKs know the flat fields, and raise what stands under ``error`` in any event: a loop over a stream must not end
    as if all were well.
    """
    told = {name: error.get(name) for name in ("code", "message", "param")}
    return {"type": "error", **told, "error": {**told, "type": error.get("type")}}


def to_response(body: bytes, answering: Answering) -> bytes:
    """Return the response object for a whole chat completion; raises UpstreamDown as ``ResponseStream.events``."""
    whole = read_answer(body)
    note(answering, whole)
    output = Output(answering)
    for choice in _choices(whole):
        if isinstance(message := choice.get("message"), dict):
            # The events are what a stream would send; here only the items count.
            for _ in output.take(message, choice.get("logprobs")):
                pass
    for _ in output.finish(answering.status):
        pass
    return _encoder.encode(answering.snapshot(is_over=True))


def note(answering: Answering, chunk: Json) -> None:
    """Take from a chunk or a body what is not said by the model: tier, usage, how it ended."""
    tier = chunk.get("service_tier")
    if isinstance(tier, str) and tier in TIERS:
        answering.service_tier = tier
    if isinstance(usage := chunk.get("usage"), dict):
        answering.usage = usage_of(usage)
    for choice in _choices(chunk):
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            answering.finish_reason = reason


def _choices(chunk: Json) -> list[dict[str, Any]]:
    """Return the one choice there is."""
    return [choice for choice in choices_of(chunk) if index_in(choice.get("index")) == 0]
