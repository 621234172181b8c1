"""Keeps what running requests have used so far where a crash cannot reach it.

Once a second, all streams whose use moved are written, so many in one CHECKPOINT; a stream that moves by 256 tokens
before that is written at once. Every quarter of a lease, the reservations are renewed with the same figures. Counts
only.
Invariant: whoever goes over all of them lets others have their turn between one handful and the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Protocol

from meterhouse.errors import JournalDown
from meterhouse.ledger.record import Checkpoint, CheckpointEntry, encode
from meterhouse.ledger.settler import AppendsToJournal
from meterhouse.metering import Use
from meterhouse.money import charge
from meterhouse.request import BYTES_PER_TOKEN, Attempt, Tally
from meterhouse.usage import Usage

TOKENS_PER_CHECKPOINT = 256
MOST_AT_ONCE = 256
"""So many are looked at in one turn of the loop, which takes a millisecond or two."""


class RenewsLeases(Protocol):
    """What renewal needs of the meter."""

    async def renew(self, uses: dict[str, Use]) -> None:
        """Renew leases by request id."""
        ...


class KeepsCheckpoints(AppendsToJournal, Protocol):
    """What checkpoints need of the journal."""

    def barrier(self, position: int) -> Awaitable[None]:
        """Return what is done when everything up to a position is durable, or fails with JournalDown."""
        ...


class Checkpointer:
    """The live tallies of this process, and how far each is on disk."""

    def __init__(self, journal: KeepsCheckpoints) -> None:
        self._journal = journal
        self._position = 0
        self._live: dict[str, Tally] = {}
        self._on_watched: Callable[[Tally], None] | None = None

    @property
    def live(self) -> dict[str, Tally]:
        """Requests that were admitted and are not settled, by request id."""
        return self._live

    def watch(self, tally: Tally) -> None:
        """Follow a request until it is settled."""
        self._live[tally.request_id] = tally
        if self._on_watched is not None:
            self._on_watched(tally)

    def tell(self, on_watched: Callable[[Tally], None] | None) -> None:
        """Have a function called with each request that is followed from now on; None: no more."""
        self._on_watched = on_watched

    def forget(self, tally: Tally) -> None:
        """Stop following a request."""
        self._live.pop(tally.request_id, None)

    def note(self, tally: Tally) -> None:
        """Write a checkpoint at once if a stream is 256 tokens past its last one."""
        attempt, due_tokens = tally.attempts[-1], tally.checkpointed_tokens + TOKENS_PER_CHECKPOINT
        # At nearly each read of a stream few have come: that is told without a call.
        if (
            attempt.output_events < due_tokens
            and attempt.output_bytes <= (due_tokens - 1) * BYTES_PER_TOKEN
            and attempt.reported is None
            and attempt.partial is None
        ):
            return
        tokens = _output_tokens(attempt)
        if tokens >= due_tokens:
            self._write([(tally, tokens)])

    async def checkpoint(self) -> None:
        """Write down all streams that moved since their last checkpoint, a handful in a record, and in a turn."""
        for handful in self._handfuls(list(self._live.values())):
            moved = [
                (tally, tokens)
                for tally in handful
                if tally.attempts and (tokens := _output_tokens(tally.attempts[-1])) != tally.checkpointed_tokens
            ]
            if moved:
                self._write(moved)
            await asyncio.sleep(0)

    async def make_durable(self) -> None:
        """Have the disk keep what was written last.

        No answer waits for a checkpoint, and where none ends for a while nothing else has the journal synced: all that
        long it would keep every record in memory too, half a megabyte a second of ten thousand streams.
        """
        with suppress(JournalDown):
            await self._journal.barrier(self._position)

    async def renew(self, meter: RenewsLeases) -> None:
        """Renew the leases of all live requests with what each has used so far, a handful in a turn."""
        # Of an organization as many together as can be: the meter asks for each by itself.
        tallies = sorted(self._live.values(), key=lambda tally: tally.principal.organization_id)
        for handful in self._handfuls(tallies):
            await meter.renew({tally.request_id: _use(tally) for tally in handful})
            await asyncio.sleep(0)

    def _handfuls(self, tallies: list[Tally]) -> Iterator[list[Tally]]:
        """Give all of these that are live still when their turn comes."""
        live = self._live
        for first in range(0, len(tallies), MOST_AT_ONCE):
            yield [tally for tally in tallies[first : first + MOST_AT_ONCE] if tally.request_id in live]

    def _write(self, moved: list[tuple[Tally, int]]) -> None:
        """Write how far these are, each with its output tokens by now."""
        entries = tuple([_entry(tally, tally.attempts[-1], tokens) for tally, tokens in moved])
        try:
            self._position = self._journal.append(encode(Checkpoint(entries)))
        except JournalDown:
            return  # the stream goes on; its TERMINAL decides whether its end is released
        for tally, tokens in moved:
            tally.checkpointed_tokens = tokens


def charge_so_far(tally: Tally) -> int | None:
    """Return what a running request would be charged if it ended now, in nanos; None where that has no price."""
    return None if not tally.attempts or tally.attempt.price is None else _use(tally).charge_nanos


def _output_tokens(attempt: Attempt) -> int:
    return attempt.reported.output_tokens if attempt.reported is not None else attempt.output_tokens_estimate


def _entry(tally: Tally, attempt: Attempt, output_tokens: int) -> CheckpointEntry:
    is_reported = attempt.reported is not None
    return CheckpointEntry(tally.request_id, attempt.number, _usage(tally, attempt, output_tokens), is_reported)


def _usage(tally: Tally, attempt: Attempt, output_tokens: int) -> Usage:
    if attempt.reported is not None:
        return attempt.reported
    held_tokens = tally.reservation.held_output_tokens
    if held_tokens is not None:
        # A quarter of the bytes may be more than the provider was told to stop at, and a budget holds no more.
        output_tokens = min(output_tokens, held_tokens)
    return Usage(input_tokens=tally.input_tokens_estimate, output_tokens=output_tokens)


def _use(tally: Tally) -> Use:
    if not tally.attempts:
        return Use(is_sent=False, total_tokens=0, charge_nanos=0)
    attempt = tally.attempt
    if attempt.first_event_ns is None and attempt.reported is None:
        return Use(is_sent=True, total_tokens=0, charge_nanos=0)
    usage = _usage(tally, attempt, attempt.output_tokens_estimate)
    nanos = 0
    if attempt.price is not None:
        nanos = charge(
            attempt.price,
            usage,
            admitted_at_ms=tally.reservation.admitted_at_ms,
            service_tier=attempt.service_tier or None,
            request_units=attempt.request_units,
        ).nanos
    return Use(is_sent=True, total_tokens=usage.total_tokens, charge_nanos=nanos)
