"""Rewrites the answers of deployments whose text holds more than text: thoughts between tags, tool calls.

The provider's own bytes are what is counted and billed (``relay``, ``whole``); only what goes to the client changes.
What is held back here was counted and is covered by the hold, so that it can be let go whenever the answer ends.
"""

from dataclasses import dataclass, field

import msgspec

from meterhouse.http.call import Call
from meterhouse.http.chunk import Chunk, LenientChunk
from meterhouse.http.relay import StreamRelay
from meterhouse.http.sse import frame
from meterhouse.http.tool_text import find_tool_text, report
from meterhouse.telemetry.metrics import Metrics
from meterhouse.translate.think_tags import Held, ThoughtsApart, is_no_tag, split_whole
from meterhouse.translate.tool_text.answer import ToolTextAnswer, Waiting, texts_of
from meterhouse.usage import Outcome, Usage


@dataclass(slots=True)
class Rewriting:
    """What is done to one answer: thoughts are told apart first, then the text that is left is searched for calls."""

    thoughts: ThoughtsApart | None
    tool_text: ToolTextAnswer | None
    held_thoughts: Held = field(default_factory=list)
    held_text: Waiting = field(default_factory=list)

    def rewrite_chunk(self, payload: bytes) -> list[bytes]:
        """Return the payloads to send instead of one of a stream: the same, another, several or none."""
        if self.thoughts is not None:
            payload = self.thoughts.rewrite_chunk(payload)
            if self.thoughts.is_over:
                self.thoughts = None
        if not payload:
            return []
        return [payload] if self.tool_text is None else self.tool_text.rewrite_chunk(payload)

    def note(self) -> None:
        """Remember what is held back now: all of it is covered by the hold."""
        self.held_thoughts = self.thoughts.waiting() if self.thoughts is not None else []
        self.held_text = self.tool_text.waiting() if self.tool_text is not None else []

    def waiting(self) -> list[tuple[int, dict[str, str]]]:
        """Return what was remembered, as (index, delta): of a choice first the text that may have been a call."""
        found = [(index, {"content": text}) for index, text in texts_of(self.held_text).items()]
        for index, reasoning, text in self.held_thoughts:
            found.append((index, {"reasoning_content": reasoning} if reasoning else {"content": text}))
        return found


def find_rewriting(call: Call, first: Chunk | None) -> Rewriting | None:
    """Return what rewrites the streamed answer that begins with a chunk; None where it stays as it is."""
    assert call.deployment is not None
    provider = call.deployment.provider
    tool_text = find_tool_text(call) if provider.tool_call_format is not None else None
    has_thoughts = provider.reads_think_tags
    if has_thoughts and call.asked.choices == 1:
        # Most answers begin with a text that is no tag, nor may become one: there are no thoughts in those.
        text = find_only_text(first)
        has_thoughts = text is None or not is_no_tag(text)
    if tool_text is None and not has_thoughts:
        return None
    return Rewriting(ThoughtsApart(call.asked.choices) if has_thoughts else None, tool_text)


def find_only_text(chunk: Chunk | None) -> str | None:
    """Return what a chunk of an answer's one choice says, which may be nothing; None: it is to be looked at closer."""
    # Of a chunk that was read leniently the text is another.
    if chunk is None or isinstance(chunk, LenientChunk) or chunk.choices is None or len(chunk.choices) != 1:
        return None
    choice = chunk.choices[0]
    delta = choice.delta
    if choice.index or choice.finish_reason or delta is None:
        return None
    if delta.reasoning_content or delta.reasoning or delta.tool_calls:
        return None
    return delta.content or ""


def rewrite_whole(call: Call, body: bytes, metrics: Metrics) -> bytes:
    """Return an answer that is not streamed as the client gets it."""
    assert call.deployment is not None
    provider = call.deployment.provider
    if provider.reads_think_tags:
        body = split_whole(body)
    tool_text = find_tool_text(call) if provider.tool_call_format is not None else None
    if tool_text is not None:
        body = tool_text.rewrite_body(body)
        report(call, tool_text, metrics)
    return body


class RewritingRelay(StreamRelay):
    """Relays an answer that is rewritten. ``rewrite`` must be called before ``run``."""

    _rewriting: Rewriting

    def rewrite(self, rewriting: Rewriting) -> "RewritingRelay":
        """Say what rewrites the answer; returns the relay."""
        self._rewriting = rewriting
        self._passes_text = False
        self._is_beginning = True
        """Whether nothing was given to what rewrites yet."""
        return self

    def _held_back(self) -> bytes:
        # What is held back goes out with the failure.
        return self._waiting_frames()

    def _report(self) -> None:
        if self._rewriting.tool_text is not None:
            report(self._call, self._rewriting.tool_text, self._parts.metrics)

    def end(self, usage: Usage) -> bytes:
        """Return what is sent after the barrier; of an answer that was cut also what was held back until then."""
        end = super().end(usage)
        return self._waiting_frames() + end if self._attempt.outcome is Outcome.CUT else end

    def _compose(self, payload: bytes, chunk: Chunk) -> bytes:
        rewriting, compose = self._rewriting, super()._compose
        if self._passes_text:
            # Of most answers nothing is to be told apart after the first words.
            return compose(payload, chunk)
        if self._is_beginning and self._choices == 1 and rewriting.tool_text is None:
            # Many servers say nothing in their first chunk, and a text that is no tag in the second.
            text = find_only_text(chunk)
            if text is not None and is_no_tag(text):
                rewriting.thoughts, self._passes_text = None, True
            if text == "" or self._passes_text:
                return compose(payload, chunk)
        self._is_beginning = False
        rows = rewriting.rewrite_chunk(payload)
        self._passes_text = rewriting.thoughts is None and rewriting.tool_text is None
        return b"".join([compose(row, chunk) for row in rows])

    def _note_covered(self) -> None:
        # A read that is not covered is not forwarded: then what waited before it is what may still be told.
        self._rewriting.note()

    def _waiting_frames(self) -> bytes:
        head = self._chunk_head()
        rows = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index, delta in self._rewriting.waiting()
        ]
        return b"".join(frame(msgspec.json.encode(head | {"choices": [row]})) for row in rows)
