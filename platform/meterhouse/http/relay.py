"""Passes a streamed answer on, byte for byte, and holds back its end.

The relay reads each data event once: it counts text, notes usage and finish reasons, and forwards the original bytes.
From the last choice's ``finish_reason`` on, everything is kept for the caller, who releases it when the record is
durable. Against a budget it never forwards more than is held: it asks for the next slice when half of one is used, and
ends the answer with ``length`` where the meter says no (design.md 6).
"""

import asyncio
import time

import msgspec

from meterhouse.errors import GatewayError, MeterDown, UpstreamDown, UpstreamError
from meterhouse.http.alike import MOST_AT_ONCE, AlikeChunks, Teller
from meterhouse.http.call import Call
from meterhouse.http.chunk import (
    MAX_NAME_LENGTH,
    UNSEEN_BYTES,
    UNSEEN_FACTOR,
    Chunk,
    Delta,
    all_text_of,
    decode_chunk,
    is_failure,
    is_set,
    read_usage,
    text_of,
)
from meterhouse.http.guard import ClientGone
from meterhouse.http.passage import OpenAnswer, RelayParts
from meterhouse.http.progress import ONLY_FIRST, Progress
from meterhouse.http.sse import DONE, DONE_FRAME, SseReader, frame
from meterhouse.http.tidy import Tidying, leave_out_usage
from meterhouse.http.usage_reading import usage_on_wire
from meterhouse.http.wire import new_completion_id
from meterhouse.metering import Demand
from meterhouse.providers.answer import Take
from meterhouse.providers.refusal import error_in_stream
from meterhouse.request import utf8_length
from meterhouse.usage import Outcome, Usage

EXTENSION_SECONDS = 1.0
LONG_TOKEN_BYTES = 6
"""More than a token of prose has on average: an answer sent letter by letter is not taken for one token per letter."""
LONGEST_TOKEN_BYTES = 32
"""No answer has so many bytes per token over a whole allowance."""
MAX_TAIL_BYTES = 1_048_576
"""What may come between the finish and ``[DONE]``; a provider that sends more is hung up on."""


class StreamRelay:
    """Relays one answer."""

    def __init__(self, call: Call, opened: OpenAnswer, parts: RelayParts) -> None:
        self._call = call
        self._opened = opened
        self._parts = parts
        self._attempt = call.tally.attempts[-1]
        self._progress = Progress(self._attempt)
        self._alike = AlikeChunks()
        self._teller: Teller = self._alike
        self._cycle = call.outlet.cycle
        self._events = opened.reader if isinstance(opened.reader, SseReader) and self._cycle is not None else None
        """What splits the provider's bytes, where they are such events as go to the client with nobody between."""
        self._passes_text = True
        """Whether what the model writes goes out as it comes."""
        asked = call.asked
        self._choices = asked.choices
        self._wants_usage = asked.chat is not None and asked.chat.request.wants_usage
        self._model = asked.model
        self._tidying = Tidying(asked.model, opened.deployment.provider.finish_reasons)
        self.decode = decode_chunk

    async def run(self) -> None:
        """Forward the answer up to its end, and settle in the tally how it went.

        It is cut where the hold is used up and no more is to be had.

        Raises:
            UpstreamError: The provider failed in mid-stream.
            ClientGone: The client left, and the provider stops billing when we hang up.
            StreamCut: We ended the stream from outside.
        """
        call, guard, progress = self._call, self._call.guard, self._progress
        answer, reader = self._opened.answer, self._opened.reader
        payloads, self._opened.payloads = self._opened.payloads, []
        try:
            has_ended = False
            while not has_ended:
                while not payloads:
                    guard.begin()
                    data = await answer.read(self._find_take())
                    guard.is_waiting = False
                    payloads = reader.feed(data) if data else reader.close() or [DONE]
                told = progress.finished
                kept = progress.end.copy() if progress.end else None
                frames = self._take(payloads)
                if not (self._is_surely_held() or await self._is_held()):
                    # Nothing of this read is forwarded, so a finish in it was not told either.
                    progress.finished, progress.end = told, kept or []
                    self._attempt.outcome = Outcome.CUT
                    return
                self._note_covered()
                has_ended = progress.has_ended
                if has_ended:
                    call.has_finish = True
                    guard.clear()
                data = b"".join(frames)
                if data and not self._pass_on(data):
                    await guard.wait(call.outlet.write(data))
                if progress.failure is not None:
                    raise progress.failure
                call.event_at_ns = time.monotonic_ns()
                # Most of its life a stream waits for more: what was forwarded is not kept until then.
                payloads = frames = []
                data = b""
            if not progress.is_done:
                await self._read_tail()
            self._attempt.outcome = Outcome.COMPLETED if call.gone_since_ns is None else Outcome.CLIENT_GONE
        except (GatewayError, asyncio.CancelledError) as error:
            call.outlet.unsent = self._held_back()
            guard.explain(error)
            raise
        finally:
            guard.is_waiting = False
            self._attempt.ended_ns = time.monotonic_ns()
            answer.release()
            if progress.extension is not None:
                progress.extension.cancel()
            self._report()

    def _pass_on(self, data: bytes) -> bool:
        """Forward at once where nobody has to be waited for; False: nothing was forwarded."""
        progress = self._progress
        is_over = progress.is_done and progress.failure is None and self._attempt.reported is not None
        if is_over and self._call.outlet.owe(data):
            # Nothing but the record is waited for any more: what came with the end leaves with it, in one write.
            self._call.look_at_ns = 0
            return True
        # Before the bytes leave: a client never has more than a checkpoint's worth beyond the last one.
        self._parts.checkpointer.note(self._call.tally)
        return self._call.guard.reason is None and self._call.outlet.pass_on(data)

    def _held_back(self) -> bytes:
        """Return what a failed answer still owes its client."""
        return b""

    def _report(self) -> None:
        """Say what was found in the answer, now that it is over."""

    def end(self, usage: Usage) -> bytes:
        """Return what is sent after the barrier: the finish, the usage if it was asked for, ``[DONE]``."""
        progress = self._progress
        is_cut = self._attempt.outcome is Outcome.CUT
        end = b"".join(progress.end)
        if is_cut:
            end += frame(self._closing_chunk())
        if self._wants_usage:
            is_usable = progress.usage_frame and not is_cut
            end += progress.usage_frame if is_usable else frame(self._usage_chunk(usage))
        return end + DONE_FRAME

    async def _read_tail(self) -> None:
        """Read what comes after the finish (usage, ``[DONE]``), for a few seconds at most."""
        call, progress = self._call, self._progress
        call.tail_since_ns = time.monotonic_ns()
        call.look_at_ns = 0
        try:
            while not progress.is_done:
                data = await call.guard.wait(self._opened.answer.read())
                self._take_tail(self._opened.reader.feed(data) if data else self._opened.reader.close())
                if not data:
                    break
        except (TimeoutError, UpstreamError, ClientGone):
            # The answer itself is whole; only its usage may be missing, and is counted then.
            self._opened.answer.abort()
        call.guard.clear()

    def _find_take(self) -> Take | None:
        """Return what passes on what comes while the request's task waits for it, and leaves that asleep.

        None: the task is to look at all that comes.
        """
        events = self._events
        if events is None or not events.is_between or self._progress.finished:
            return None
        return self._take_at_once

    def _take_at_once(self, data: bytes) -> bool:
        """Pass on text and nothing else, that is covered, to a client that reads: so it is with most of a stream."""
        told = self._teller.tell(data)
        call, cycle = self._call, self._cycle
        if told is None or call.guard.reason is not None or cycle is None or not cycle.is_open:
            return False
        chunks, text, text_bytes, sent = told
        if not self._is_surely_held(chunks, text_bytes):
            return False
        self._progress.note_text(text, text_bytes, chunks)
        # As in ``_pass_on``: before the bytes leave. What may be told holds nothing back (``_passes_text``).
        self._parts.checkpointer.note(call.tally)
        cycle.put(sent)
        call.event_at_ns = call.outlet.wrote_at_ns = time.monotonic_ns()
        return True

    def _take(self, payloads: list[bytes]) -> list[bytes]:
        """Read payloads and return the frames to forward now; the end is kept in ``progress.end``."""
        progress, alike = self._progress, self._alike
        frames: list[bytes] = []
        position, count = 0, len(payloads)
        while position < count:
            if not progress.finished and (told := alike.tell_payloads(payloads, position)) is not None:
                chunks, text, text_bytes, sent = told
                progress.note_text(text, text_bytes, chunks)
                frames.append(sent)
                position += chunks
                if position == count or chunks == MOST_AT_ONCE:
                    continue
            payload = payloads[position]
            position += 1
            if payload.startswith(DONE):
                progress.failure = None if progress.is_finished else ended_early()
                progress.has_ended = progress.is_done = progress.is_finished
                break
            try:
                chunk = self._opened.first or self.decode(payload)
                is_charged = self._note(chunk, payload)
            except UpstreamError as error:
                progress.failure = error
                break
            self._opened.first = None
            framed = self._compose(payload, chunk)
            is_finished = bool(progress.finished) and progress.is_finished
            if chunk.usage and not chunk.choices:
                progress.usage_frame = framed if is_charged else progress.usage_frame
            elif is_finished:
                progress.end.append(framed)
            else:
                # Another choice began after all that were seen had finished: what was kept was not the end.
                frames += progress.end
                frames.append(framed)
                progress.end = []
                if self._passes_text:
                    alike.learn(payload, chunk, framed)
            if is_finished and len(progress.finished) >= self._choices:
                progress.has_ended = True
                self._try_tail(payloads[position:])
                break
        return frames

    def _try_tail(self, payloads: list[bytes]) -> None:
        """Take what came with the end; the answer itself is whole, so that what fails in it takes nothing back."""
        try:
            self._take_tail(payloads)
        except UpstreamError:
            return

    def _take_tail(self, payloads: list[bytes]) -> None:
        progress = self._progress
        for payload in payloads:
            if payload.startswith(DONE):
                progress.is_done = True
                return
            chunk = self.decode(payload)
            is_charged = self._note(chunk, payload)
            framed = self._compose(payload, chunk)
            if chunk.usage and not chunk.choices:
                progress.usage_frame = framed if is_charged else progress.usage_frame
            elif chunk.choices:
                progress.end.append(framed)
                progress.tail_bytes += len(framed)
                if progress.tail_bytes > MAX_TAIL_BYTES:
                    raise UpstreamDown("The provider went on after its answer was finished.", detail="tail too long")

    def _compose(self, payload: bytes, chunk: Chunk) -> bytes:
        """Return what goes to the client for a payload: one frame, put right, with the asked model's name in it."""
        if chunk.usage and chunk.choices:
            payload = leave_out_usage(payload, chunk.usage)
        return frame(self._tidying.tidy(payload, chunk))

    def _note(self, chunk: Chunk, payload: bytes) -> bool:
        """Take from a chunk what the ledger and the end need; says whether its usage is what will be charged."""
        # Almost no chunk is a failure or has a usage: those are told without a call.
        if (chunk.error or chunk.choices is None or chunk.object == "error") and is_failure(chunk):
            raise error_in_stream(payload, self._opened.deployment)
        progress, attempt = self._progress, self._attempt
        if not progress.completion_id and chunk.id:
            progress.completion_id = chunk.id
            progress.created = chunk.created or 0
            attempt.served_model = (chunk.model or "")[:MAX_NAME_LENGTH]
        if chunk.service_tier:
            attempt.service_tier = chunk.service_tier[:MAX_NAME_LENGTH]
        may_have_usage = bool(chunk.usage) or chunk.x_groq is not None
        for choice in chunk.choices or ():
            may_have_usage = may_have_usage or bool(choice.usage)
            if choice.index not in progress.seen:
                progress.seen = progress.seen | {choice.index} if choice.index or progress.seen else ONLY_FIRST
            if choice.delta is not None:
                self._note_delta(choice.delta, choice.index, payload)
            if choice.finish_reason:
                progress.finished |= {choice.index}
                attempt.finish_reasons.append(choice.finish_reason)
        return may_have_usage and progress.note_usage(read_usage(chunk))

    def _note_delta(self, delta: Delta, index: int, payload: bytes) -> None:
        text = text_of(delta)
        if len(payload) > UNSEEN_BYTES and len(payload) > UNSEEN_FACTOR * len(text) + UNSEEN_BYTES:
            text = all_text_of(payload, index)
        if text:
            self._progress.note_text(text, utf8_length(text))
        if delta.audio and is_set(delta.audio):
            self._attempt.is_countable = False

    def _note_covered(self) -> None:
        """Take note that all that came so far is covered, so that it may be forwarded."""

    def _is_surely_held(self, more_events: int = 0, more_bytes: int = 0) -> bool:
        """Whether what came so far, and more, is covered by the hold with nothing to be asked for: so it mostly is."""
        reservation, used_tokens = self._call.tally.reservation, self._progress.used_tokens + more_bytes
        held = reservation.held_output_tokens
        if held is None:
            return True
        whole = (reservation.allowance_tokens or 0) * self._choices
        if held < whole:
            return used_tokens * 2 < held
        return used_tokens <= whole or self._least_tokens(more_events, more_bytes) <= whole

    async def _is_held(self) -> bool:
        """Whether what came so far is covered by the hold, where not surely; asks for more where it is not yet."""
        reservation, progress = self._call.tally.reservation, self._progress
        held = reservation.held_output_tokens
        whole = (reservation.allowance_tokens or 0) * self._choices
        if held is None or held >= whole:
            return progress.is_finished
        if progress.used_tokens * 2 >= held and progress.extension is None and not progress.is_refused:
            progress.extension = self._parts.tasks.start(self._extend(whole))
        while progress.used_tokens > (reservation.held_output_tokens or 0) < whole:
            if not await self._is_extended(whole):
                return False
        return True

    def _least_tokens(self, more_events: int, more_bytes: int) -> int:
        """Return what the output can hardly be below: the provider's own count, or a token per event of some length."""
        attempt = self._attempt
        reported = attempt.reported or attempt.partial
        told = reported.output_tokens if reported is not None else 0
        output_bytes = attempt.output_bytes + more_bytes
        by_events = min(attempt.output_events + more_events, output_bytes // LONG_TOKEN_BYTES)
        return told + max(by_events, output_bytes // LONGEST_TOKEN_BYTES)

    async def _is_extended(self, whole: int) -> bool:
        """Wait at most a second for an extension that is needed now."""
        self._call.event_at_ns = time.monotonic_ns()
        task = self._progress.extension or self._parts.tasks.start(self._extend(whole))
        self._progress.extension = task
        done, _ = await self._call.guard.wait(asyncio.wait({task}, timeout=EXTENSION_SECONDS))
        return bool(done) and task.result()

    async def _extend(self, whole: int) -> bool:
        reservation, progress = self._call.tally.reservation, self._progress
        more = min(Demand.SLICE_TOKENS * self._choices, whole - (reservation.held_output_tokens or 0))
        try:
            is_granted = await self._parts.meter.extend(reservation, more)
        except MeterDown:
            is_granted = False
        progress.is_refused = not is_granted
        progress.extension = None
        return is_granted

    def _closing_chunk(self) -> bytes:
        progress = self._progress
        indexes = sorted(progress.seen | set(range(self._choices)))
        choices: list[dict[str, object]] = [
            {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}
            for index in indexes
            if index not in progress.finished
        ]
        return msgspec.json.encode(self._chunk_head() | {"choices": choices})

    def _usage_chunk(self, usage: Usage) -> bytes:
        return msgspec.json.encode(self._chunk_head() | {"choices": [], "usage": usage_on_wire(usage)})

    def _chunk_head(self) -> dict[str, object]:
        progress = self._progress
        return {
            "id": progress.completion_id or new_completion_id(),
            "object": "chat.completion.chunk",
            "created": progress.created or int(time.time()),
            "model": self._model,
        }


def ended_early() -> UpstreamDown:
    """Return the error for a stream that ended before its answer was finished."""
    return UpstreamDown(
        "The provider's stream ended before the answer was finished.",
        detail="no finish_reason",
        code="upstream_stream_ended",
    )
