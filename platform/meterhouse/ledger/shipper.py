"""Ships the journal of this process to SQL, by reading its files like everybody else who reads a journal.

What is shipped when is decided here. Where there is a clerk, its hand writes: batches go to it as they stand in the
journal, and come back as acknowledged. This process writes a batch itself where there is no clerk just now, after the
clerk or itself found the store down, and while it is more than ``OWN_HAND_SECONDS`` behind: then the clerk is what is
slow. A batch whose answer was lost is written once more, which changes nothing.

Invariant: records reach SQL in their order; the place is kept until SQL has acknowledged; while somebody holds a pause
at a position, nothing beyond it is in SQL. A batch is bounded, a store that is down is tried again for ever. Not here:
the journals of dead processes (``adopter``), and how to talk to the clerk (``desk``).
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol
from weakref import WeakSet

from meterhouse.errors import StoreDown
from meterhouse.ledger.batch import Contents, Summary, charged_nanos
from meterhouse.ledger.journal import Journal
from meterhouse.ledger.reader import Damage, Entry, JournalReader
from meterhouse.ledger.record import Shipping, Terminal, decode_for_shipping, select_terminals
from meterhouse.ledger.store import InsertsRecords
from meterhouse.metering import Clock
from meterhouse.telemetry.logs import Event, Log

MAX_DELAY_MS = 5_000
LATE_MS = 60_000
"""Where the store takes records, but slowly, one that is this late means that it is degraded."""
MOST_BATCH_BYTES = 4 * 1_048_576
"""Of the entries of a batch; one more slice of them may be on top."""
OWN_HAND_SECONDS = 3

_SLICE_RECORDS = 64
"""How many records are read before others get their turn on the event loop."""
_OUTAGE_SLICES = 64
_NOTHING = Summary([], [], 0)
_TURN_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Lag:
    """How far SQL is behind the journal."""

    unshipped_records: int
    """Records of the journal, whatever they say."""
    oldest_age_ms: int
    """How long ago the oldest request ended that SQL is known not to have."""
    unshipped_nanos: int
    """Charges that were read and are not in SQL; while SQL answers, what is not read yet is one interval old."""


class ShipsBatches(Protocol):
    """Writes batches for this process, in another one; ``desk.ClerkLine`` does."""

    @property
    def is_there(self) -> bool:
        """Whether it can be asked now."""
        ...

    async def ship(self, entries: list[Entry]) -> Summary | None:
        """Write a batch; None when that is not known to be done.

        Raises:
            StoreDown: SQL does not take it now.
        """
        ...


@dataclass(slots=True)
class _Batch:
    """What was read and not yet acknowledged by SQL."""

    position: int
    contents: Contents
    """What of it was decoded here."""
    entries: list[Entry] = field(default_factory=list)
    size_bytes: int = 0
    terminals: int = 0
    oldest_ended_ms: int | None = None
    """When the first request of it ended."""

    def add(self, entries: list[Entry], origin: str) -> None:
        """Take entries as they stand in the journal; only the first TERMINAL is decoded."""
        self.entries += entries
        self.size_bytes += sum([len(data) for _, data in entries])
        terminals = select_terminals(entries)
        self.terminals += len(terminals)
        if terminals and self.oldest_ended_ms is None:
            self.oldest_ended_ms = _ended_ms(terminals[0], origin)

    def is_full(self, most_records: int) -> bool:
        """Whether nothing more is to be read into it."""
        is_long = self.terminals >= most_records or len(self.entries) >= 4 * most_records
        return is_long or self.size_bytes >= MOST_BATCH_BYTES


class Pause:
    """A point at which shipping stands still; an asynchronous context manager, to be entered once.

    It counts from the moment it is made, so that nothing appended later can pass it before it is entered. One that is
    never entered ends with its last reference.
    """

    __slots__ = ("__weakref__", "_enter", "_leave", "position")

    def __init__(
        self,
        position: int,
        enter: Callable[["Pause"], Coroutine[Any, Any, None]],
        leave: Callable[["Pause"], None],
    ) -> None:
        self.position = position
        self._enter = enter
        self._leave = leave

    async def __aenter__(self) -> None:
        await self._enter(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(self)


class Shipper:
    """Ships one journal."""

    def __init__(
        self,
        store: InsertsRecords,
        journal: Journal,
        clock: Clock,
        log: Log,
        *,
        interval_ms: int = 200,
        batch_records: int = 1_000,
    ) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._log = log
        self._interval_ms = interval_ms
        self._delay_ms = interval_ms
        self._batch_records = batch_records
        self._reader = journal.open_reader(self._report_damage)
        self._ahead: JournalReader | None = None
        self._batch = _Batch(0, Contents(self._see))
        self._open: dict[str, int] = {}
        """The position of the first INTENT of each request whose TERMINAL is not in SQL, in the order of positions."""
        self._turn = asyncio.Lock()
        self._pauses: WeakSet[Pause] = WeakSet()
        self._shipped = 0
        self._seen = 0
        self._seen_nanos = 0
        self._shipped_nanos = 0
        self._is_store_down = False
        self._damages = 0
        self._caught_up_at = time.monotonic()
        self.clerk: ShipsBatches | None = None
        """Whose hand writes; None: this process's alone."""
        self.by_clerk = self.by_hand = 0
        """How many batches the one and the other has written."""

    @property
    def shipped_position(self) -> int:
        """SQL has everything up to here."""
        return self._shipped

    @property
    def is_store_down(self) -> bool:
        """Whether the last batch could not be shipped: what is journaled waits."""
        return self._is_store_down

    @property
    def damages(self) -> int:
        """How many places of this journal could not be read back; 0 unless the disk lies."""
        return self._damages

    @property
    def lag(self) -> Lag:
        """How far SQL is behind."""
        ended_ms = self._batch.oldest_ended_ms
        age_ms = 0 if ended_ms is None else self._clock.now_ms() - ended_ms
        return Lag(self._journal.position - self._shipped, max(0, age_ms), self._seen_nanos - self._shipped_nanos)

    @property
    def is_late(self) -> bool:
        """Whether the store is down, or so far behind that its state must be said; every request asks."""
        ended_ms = self._batch.oldest_ended_ms
        return self._is_store_down or (ended_ms is not None and self._clock.now_ms() - ended_ms > LATE_MS)

    async def run(self) -> None:
        """Ship for ever, at every interval what there is; slower while the store is down."""
        while True:
            await asyncio.sleep(self._delay_ms / 1000)
            await self.ship_available()

    async def ship_available(self) -> bool:
        """Ship what was appended before this call; False when the store (or a pause) stopped it."""
        position = self._journal.position
        while await self._step_in_turn(position):
            pass
        return self._shipped >= position

    async def ship_until(self, position: int) -> None:
        """Return when SQL has everything up to a position, however long the store takes."""
        while self._shipped < position:
            if not await self._step_in_turn(position):
                await asyncio.sleep(self._delay_ms / 1000)

    async def drain(self, timeout_seconds: float) -> bool:
        """Ship everything at shutdown; False when time ran out, and then the next start adopts the rest."""
        try:
            await asyncio.wait_for(self.ship_until(self._journal.position), timeout_seconds)
        except TimeoutError:
            return False
        return True

    def paused_at(self, position: int) -> Pause:
        """Stand still at a position: inside, SQL has every record up to it and none beyond.

        Raises:
            ValueError: SQL has more already. A position just taken from the journal never is too early.
        """
        if position < self._shipped:
            raise ValueError(f"position {position} is shipped already: SQL has everything up to {self._shipped}")
        pause = Pause(position, self._enter, self._leave)
        self._pauses.add(pause)
        return pause

    async def _enter(self, pause: Pause) -> None:
        try:
            await self._take_turn(pause)
        except BaseException:
            self._pauses.discard(pause)
            raise
        try:
            while self._shipped < pause.position:
                if not await self._step(pause.position):
                    await asyncio.sleep(self._delay_ms / 1000)
        except BaseException:
            self._leave(pause)
            raise

    async def _take_turn(self, pause: Pause) -> None:
        """Wait for the turn, and let an earlier pause that was made and is not entered yet go first."""
        await self._turn.acquire()
        while any(other.position < pause.position for other in self._pauses):
            self._turn.release()
            await asyncio.sleep(_TURN_SECONDS)
            await self._turn.acquire()

    def _leave(self, pause: Pause) -> None:
        self._pauses.discard(pause)
        self._turn.release()

    async def _step_in_turn(self, position: int) -> bool:
        async with self._turn:
            return await self._step(min([position, *(pause.position for pause in self._pauses)]))

    async def _step(self, until: int) -> bool:
        """Ship one batch; False when there was nothing, or the store is down (then the next try comes later)."""
        before = self._shipped
        try:
            await self._ship_batch(until)
        except (StoreDown, OSError) as error:
            if not self._is_store_down:
                self._log.warning(Event.SHIPPER_RETRYING, error=str(getattr(error, "detail", "") or error))
            self._is_store_down = True
            self._delay_ms = min(self._delay_ms * 2, max(MAX_DELAY_MS, self._interval_ms))
            await self._look_ahead()
            return False
        if self._is_store_down:
            self._log.warning(Event.SHIPPER_RECOVERED, unshipped_records=self._journal.position - self._shipped)
        self._is_store_down = False
        self._delay_ms = self._interval_ms
        return self._shipped > before

    async def _ship_batch(self, until: int) -> None:
        batch = self._batch
        while not batch.is_full(self._batch_records):
            entries = self._reader.read(until=until, max_records=_SLICE_RECORDS)
            batch.position = self._reader.position or 0
            if not entries:
                self._caught_up_at = time.monotonic()
                break
            batch.add(entries, self._reader.path)
            await asyncio.sleep(0)
        summary = _NOTHING
        if batch.entries:
            summary = await self._ask_clerk(batch) or await self._write(batch)
        if batch.position > self._shipped:
            self._finish(batch, summary)

    async def _ask_clerk(self, batch: _Batch) -> Summary | None:
        """Let the clerk write the batch; None when this process has to. Raises StoreDown as the clerk met it."""
        is_known = batch.entries[0][0] <= self._seen  # its charges are counted, at least in part
        is_behind = time.monotonic() - self._caught_up_at > OWN_HAND_SECONDS
        if self.clerk is None or not self.clerk.is_there or self._is_store_down or is_known or is_behind:
            return None
        try:
            summary = await self.clerk.ship(batch.entries)
        except StoreDown:
            await self._read(batch)  # so that what waits is known
            raise
        if summary is not None:
            self.by_clerk += 1
            self._seen = batch.entries[-1][0]
            self._seen_nanos += summary.nanos
        return summary

    async def _write(self, batch: _Batch) -> Summary:
        await self._read(batch)
        if batch.contents.records:
            await self._store.insert(batch.contents.records)
        self.by_hand += 1
        return batch.contents.summarize()

    async def _read(self, batch: _Batch) -> None:
        await batch.contents.read(batch.entries, origin=self._reader.path)

    def _finish(self, batch: _Batch, summary: Summary) -> None:
        self._shipped = batch.position
        self._shipped_nanos += summary.nanos
        self._batch = _Batch(batch.position, Contents(self._see))
        for request_id, position in summary.opened:
            self._open.setdefault(request_id, position)
        for request_id in summary.settled:
            self._open.pop(request_id, None)
        # Whoever adopts this journal needs the INTENTs of running requests and everything after them.
        first_open = next(iter(self._open.values()), None)
        self._journal.mark_shipped(self._shipped if first_open is None else min(self._shipped, first_open - 1))

    def _see(self, position: int, payload: Shipping) -> None:
        if position > self._seen:
            self._seen = position
            self._seen_nanos += charged_nanos(payload)

    async def _look_ahead(self) -> None:
        """Sum up, while the store is down, what waits for it: a bounded part at each try."""
        reader = self._ahead
        if reader is None or (reader.position or 0) < (self._reader.position or 0):
            reader = self._ahead = self._reader.fork(lambda _: None)
        for _ in range(_OUTAGE_SLICES):
            entries = reader.read(until=self._journal.position, max_records=_SLICE_RECORDS)
            if not entries:
                return
            for position, data in entries:
                self._see(position, decode_for_shipping(data, origin=reader.path))
            await asyncio.sleep(0)

    def _report_damage(self, damage: Damage) -> None:
        self._damages += 1
        self._log.error(
            Event.JOURNAL_CORRUPTED,
            file=str(damage.path),
            offset_bytes=damage.offset_bytes,
            lost_records=damage.lost_records,
        )


def _ended_ms(data: bytes, origin: str) -> int | None:
    """Return when the request of a TERMINAL ended."""
    payload = decode_for_shipping(data, origin=origin)
    if not isinstance(payload, Terminal) or not payload.records:
        return None
    return payload.records[0].admitted_at_ms + payload.records[0].duration_ms
