"""Brings the journals of dead processes into SQL, and shipped segments again into a database restored to earlier.

A journal whose locks can be taken has no owner any more. Its records are shipped as they are; its attempts without an
end become ``worker_lost`` (``lost``). Only then are its segments marked as shipped, oldest first.

Invariant: doing it twice, or again after a crash in the middle, changes nothing in SQL; what cannot be read is
reported and left where it is. Not here: the journal of this process (``shipper``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.folder import JournalPolicy, SegmentFolder, SegmentName, State
from meterhouse.ledger.lost import OpenRequests
from meterhouse.ledger.reader import Damage, JournalReader
from meterhouse.ledger.record import UnreadableJournal, decode
from meterhouse.ledger.segment import SegmentFile, SegmentScanner
from meterhouse.ledger.store import InsertsRecords
from meterhouse.telemetry.logs import Event, Log
from meterhouse.usage import UsageRecord

_SLICE_RECORDS = 64
_TRIES = 500
"""To take a lock that is held for a moment: for up to five seconds."""
_PAUSE_SECONDS = 0.01

_Work = Callable[[SegmentFolder, Sequence[SegmentName]], Awaitable["AdoptionReport"]]


@dataclass(frozen=True, slots=True)
class AdoptionReport:
    """What came of it."""

    journals: int = 0
    records: int = 0
    """Usage records that SQL did not have yet."""
    worker_lost: int = 0
    """Attempts that died with their process, whether SQL had them or not."""
    nanos: int = 0
    """The charges of all records that were read, whether SQL had them or not."""
    torn: int = 0
    """Places that could not be read."""

    def __add__(self, other: "AdoptionReport") -> "AdoptionReport":
        return AdoptionReport(
            self.journals + other.journals,
            self.records + other.records,
            self.worker_lost + other.worker_lost,
            self.nanos + other.nanos,
            self.torn + other.torn,
        )


class Adopter:
    """Adopts and replays. Memory is bounded by a batch and by the requests that a journal had open at once."""

    def __init__(
        self,
        store: InsertsRecords,
        files: FileLayer,
        log: Log,
        *,
        batch_records: int = 1_000,
        on_shipped: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare.

        Args:
            store: where records go.
            files: the file system.
            log: where an adoption and what cannot be read are told of.
            batch_records: how many records go at once.
            on_shipped: is told the id of an adopted journal when SQL has all of it and before its segments are marked,
                so that whatever stops it, the next adoption tells again.
        """
        self._on_shipped = on_shipped
        self._store = store
        self._files = files
        self._log = log
        self._batch_records = batch_records

    async def adopt(self, folder: Path) -> AdoptionReport:
        """Ship every journal of a folder whose owner is dead.

        Raises:
            StoreDown: SQL cannot take the records now; nothing is marked, so a later call does it all.
            UnreadableJournal: A newer version wrote a journal; the others are adopted nevertheless.
            OSError: The folder or a file cannot be read.
        """
        return await self._for_each(folder, self._adopt_journal, "seg")

    async def replay(self, folder: Path) -> AdoptionReport:
        """Offer SQL everything that the segments of a folder hold, the shipped ones too; marks nothing.

        A journal that still has an owner gives its finished requests only.

        Raises:
            StoreDown, UnreadableJournal, OSError: As ``adopt``.
        """
        return await self._for_each(folder, self._replay_journal, "seg", "shipped")

    async def _for_each(self, folder: Path, work: _Work, *states: State) -> AdoptionReport:
        host = SegmentFolder(folder, self._files, JournalPolicy())
        total = AdoptionReport()
        unreadable: UnreadableJournal | None = None
        try:
            names = host.list_segments(*states)
        except FileNotFoundError:
            names = []
        for journal_id, group in groupby(names, key=lambda name: name.journal_id):
            try:
                report = await work(host, list(group))
            except UnreadableJournal as error:
                self._log.error(Event.JOURNAL_CORRUPTED, journal_id=journal_id, error=str(error))
                unreadable = unreadable or error
                continue
            total += report
        if unreadable is not None:
            raise unreadable
        return total

    async def _adopt_journal(self, host: SegmentFolder, names: Sequence[SegmentName]) -> AdoptionReport:
        held: list[SegmentFile] = []
        try:
            for name in names:
                file = host.lock(name)
                if file is None:
                    return AdoptionReport()  # somebody else is adopting it
                held.append(file)
            report = await self._ship(held, is_dead=True)
            if self._on_shipped is not None:
                await self._on_shipped(names[0].journal_id)
            self._log.warning(
                Event.JOURNAL_ADOPTED,
                journal_id=names[0].journal_id,
                records=report.records,
                worker_lost=report.worker_lost,
                torn=report.torn,
            )
            while held:
                self._put_away(host, held.pop(0))
        except BlockingIOError:
            return AdoptionReport()  # its owner lives
        finally:
            for file in held:
                host.release(file)
        return report

    async def _replay_journal(self, host: SegmentFolder, names: Sequence[SegmentName]) -> AdoptionReport:
        held: list[SegmentFile] = []
        is_dead = True
        try:
            for name in names:
                try:
                    file = await self._lock_shipped(host, name) if name.state == "shipped" else host.lock(name)
                except BlockingIOError:
                    is_dead = False
                    file = host.open_unlocked(name)
                if file is None and name.state == "seg":
                    # Its owner has marked it since the folder was read.
                    file = host.open_unlocked(replace(name, state="shipped"))
                if file is not None:
                    held.append(file)
            return await self._ship(held, is_dead=is_dead)
        finally:
            for file in held:
                host.release(file)

    async def _lock_shipped(self, host: SegmentFolder, name: SegmentName) -> SegmentFile | None:
        """Lock a shipped segment; None when it is being made into something else.

        Somebody has the lock for a moment only: the owner that has marked it, and lets go of it next; or who takes it
        for another one, and changes its name next.
        """
        for _ in range(_TRIES):
            with suppress(BlockingIOError):
                return host.lock(name)
            await asyncio.sleep(_PAUSE_SECONDS)
        return None

    def _put_away(self, host: SegmentFolder, file: SegmentFile) -> None:
        """Mark a segment, or remove the reserve of its journal, in which nothing was ever written."""
        scanner = SegmentScanner(self._files, file)
        if scanner.read_header() is None and not scanner.is_torn:
            host.discard(file)
        else:
            host.mark_shipped(file)

    async def _ship(self, segments: Sequence[SegmentFile], *, is_dead: bool) -> AdoptionReport:
        """Write the records of one journal into SQL, in batches."""
        damages: list[Damage] = []
        reader = JournalReader(self._files, lambda: segments, damages.append)
        requests = OpenRequests()
        sink = _Sink(self._store, self._batch_records)
        while entries := reader.read(until=None, max_records=_SLICE_RECORDS):
            for _, data in entries:
                sink.add(requests.take(decode(data, origin=reader.path)))
            await sink.flush_if_full()
        lost = 0
        if is_dead:
            reader.finish()
            for record in requests.list_lost():
                lost += 1
                sink.add((record,))
                await sink.flush_if_full()
        await sink.flush()
        for damage in damages:
            self._log.error(
                Event.JOURNAL_CORRUPTED,
                file=str(damage.path),
                offset_bytes=damage.offset_bytes,
                lost_records=damage.lost_records,
            )
        return AdoptionReport(1, sink.inserted, lost, sink.nanos, len(damages))


class _Sink:
    """Collects records and writes them in batches."""

    def __init__(self, store: InsertsRecords, batch_records: int) -> None:
        self._store = store
        self._batch_records = batch_records
        self._batch: list[UsageRecord] = []
        self.inserted = 0
        self.nanos = 0

    def add(self, records: Sequence[UsageRecord]) -> None:
        self._batch.extend(records)

    async def flush_if_full(self) -> None:
        await asyncio.sleep(0)  # others get their turn on the event loop, full or not
        if len(self._batch) >= self._batch_records:
            await self.flush()

    async def flush(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self.inserted += await self._store.insert(batch)
            self.nanos += sum(record.charge_nanos for record in batch)
