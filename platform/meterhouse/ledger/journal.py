"""The journal of one process: records that survive it, written by the event loop, made durable off it.

A position counts the records of this journal. ``append`` is one write and no wait; ``append_end`` lets its record
share the write of the next one, ``admit`` that of its turn of the loop; a ``barrier`` is done when everything up to a
position is durable, together with everybody else who waits (group commit).

When a sync fails, nothing that it covered is believed: all that is not acknowledged yet is written again into a new
segment and that is synced. When this fails too, the journal is down: whoever waits is told, nothing is admitted, and
once a second it tries again with everything that it still owes.

Invariant: an acknowledged record can be read back; a record of a request that runs is not lost while the process
lives. Never fork after ``open``. Not here: what a record says (``record``), which bytes go where (``chain``), reading
(``reader``), making files (``supply``).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from meterhouse.errors import JournalDown
from meterhouse.ids import new_request_id
from meterhouse.ledger.admission import Admission, Admissions
from meterhouse.ledger.chain import SegmentChain
from meterhouse.ledger.figures import JournalFigures, read_figures
from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.folder import JournalPolicy, SegmentFolder
from meterhouse.ledger.reader import Damage, JournalReader
from meterhouse.ledger.segment import FRAME_BYTES, HEADER_BYTES, SegmentFile, SegmentWriter
from meterhouse.ledger.supply import SegmentSupply
from meterhouse.ledger.sync_watch import SyncWatch
from meterhouse.ledger.syncer import Syncer, start_syncer
from meterhouse.ledger.waiters import Waiters, down
from meterhouse.metering import Clock
from meterhouse.telemetry.logs import Event, Log

_CLOSE_SECONDS = 5.0


class Journal:
    """One process's journal. It is made, and all its methods are called, on one event loop."""

    def __init__(self, folder: Path, files: FileLayer, clock: Clock, policy: JournalPolicy, log: Log) -> None:
        self.journal_id = new_request_id()  # a UUIDv7: a folder lists journals by age
        self.folder = folder
        self._files = files
        self._policy = policy
        self._log = log
        self._supply = SegmentSupply(SegmentFolder(folder, files, policy), self.journal_id)
        self._chain = SegmentChain(files, clock, self._supply, has_sync=policy.durability == "fsync")
        self._syncer: Syncer | None = None
        """None while it is not open, and with durability ``write``: nothing is synced then."""
        self._loop = asyncio.get_running_loop()
        self._waiters = Waiters()
        self._admissions = Admissions(self._loop, self._write_deferred)
        self._watch = SyncWatch(self._loop, policy.stall_seconds, self._write_deferred, self._go_down)
        self._syncing: tuple[int, list[SegmentWriter]] | None = None
        self._is_due = False
        self._retry: asyncio.TimerHandle | None = None
        self._shipped = 0
        self._is_open = False
        self._is_closing = False
        self._is_admitting = False
        self._is_down = False
        self._is_replacing = False
        """Everything that is not acknowledged is about to be written again; waits for a segment or a sync."""
        self.has_alarm = False
        """Whether what is not in SQL takes half of the room that it may take, or more."""
        self._failed_in_a_row = 0

    # --- what it says of itself

    @property
    def position(self) -> int:
        """How many records were appended: the position of the last one."""
        return self._chain.position

    @property
    def durable_position(self) -> int:
        """Everything up to here is acknowledged."""
        return self._chain.durable

    @property
    def is_writable(self) -> bool:
        """Whether a new request may be admitted."""
        return self._is_admitting

    @property
    def synced_by(self) -> str:
        """Who makes it durable: the kernel, a thread (and why not the kernel), or nobody."""
        return self._syncer.name if self._syncer is not None else "nobody"

    @property
    def figures(self) -> JournalFigures:
        """What the metrics say."""
        return read_figures(self._chain, self._waiters, self._watch, self._supply)

    # --- opening and closing

    async def open(self) -> None:
        """Make the first segment and start what syncs.

        Raises:
            JournalDown: The folder cannot keep a journal; the message says why and names it.
        """
        try:
            self._chain.begin(await self._supply.open(self._on_supply))
        except OSError as error:
            message = f"The journal folder {self.folder} cannot be written: {error.strerror or error}."
            raise JournalDown(message, detail=repr(error)) from error
        if self._policy.durability == "fsync":
            self._syncer = await start_syncer(self._files, self._on_synced)
        self._is_open = True
        self._on_supply()  # what became of the reserve meanwhile
        folder = str(self.folder)
        self._log.info(Event.JOURNAL_OPENED, journal_id=self.journal_id, folder=folder, synced_by=self.synced_by)

    async def close(self) -> None:
        """Make everything durable if the disk allows it, and let go of all files.

        Segments that SQL has are marked as shipped; the others are adopted by whoever starts next.
        """
        if not self._is_open or self._is_closing:
            return
        self._is_closing = True
        self._write_deferred()
        self._update()
        with suppress(JournalDown, TimeoutError):
            await asyncio.wait_for(self.barrier(self._chain.position), _CLOSE_SECONDS)
        self._is_open = False
        self._watch.close()
        if self._retry is not None:
            self._retry.cancel()
        self._waiters.fail(partial(down, "closed"))
        if self._syncer is not None and not await self._syncer.stop():
            return  # the disk hangs: the files stay open and locked, with whoever is stuck in them
        files = self._chain.list_files()
        if self._chain.position == 0:
            await self._supply.close(discarded=files)
        elif self._shipped >= self._chain.position:
            await self._supply.close(shipped=files)
        else:
            await self._supply.close(released=files)

    # --- writing

    def append(self, payload: bytes, *, is_admission: bool = False) -> int:
        """Write one record; returns its position, for ``barrier``.

        Args:
            payload: not empty, and smaller than a segment.
            is_admission: the record begins something new (an INTENT): refused while the journal is down, full, or
                down to its last segment. Records of what runs already are then kept in memory, and a barrier fails.

        Raises:
            JournalDown: The record is not in the journal and will not be.
        """
        if not self._is_admitting and (is_admission or not self._is_open):
            raise down("not writable")
        chain = self._chain
        try:
            if chain.write(payload):
                self._admissions.give()
                return chain.position
        except OSError as error:
            self._log.error(Event.JOURNAL_WRITE_FAILED, journal_id=self.journal_id, error=str(error))
        self._admit_slowly()
        self._append_slowly(payload, is_admission=is_admission)
        return chain.position

    def admit(self, payload: bytes) -> Admission:
        """Append an INTENT; it is written with those of the same turn of the loop, and what it is of waits for that.

        Raises:
            JournalDown: As ``append``, where that is known at once; else the admission says it.
        """
        if self._is_admitting and self._chain.defer(payload, is_admission=True):
            return self._admissions.add(payload)
        self.append(payload, is_admission=True)
        return Admission(payload, None, is_given=True)

    def append_end(self, payload: bytes) -> int:
        """Append one record that somebody is about to await the barrier of; returns and raises as ``append``.

        It is written with the next record, and at the latest in the loop's next turn or, where a sync runs, when that
        has ended or is looked at (``sync_watch``). What the disk does not take then is kept in memory, as ever.
        """
        chain = self._chain
        if not self._is_admitting or not chain.defer(payload):
            return self.append(payload)
        if self._syncing is None and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._dispatch)
        return chain.position

    def barrier(self, position: int) -> asyncio.Future[None]:
        """Return what is done when everything up to a position is durable (written, with durability ``write``).

        It fails with JournalDown where that is not durable, and cannot be made so now.
        """
        waiting: asyncio.Future[None] = self._loop.create_future()
        if position <= self._chain.durable:
            waiting.set_result(None)
        elif self._is_down or not self._is_open:
            self._waiters.refuse(waiting, down("down"))
        else:
            self._waiters.add(position, waiting)
            if self._syncing is None and not self._is_due:
                # Not at once: whoever else comes to a barrier in this turn of the loop shares the sync.
                self._is_due = True
                self._loop.call_soon(self._dispatch)
        return waiting

    # --- shipping

    def open_reader(self, on_damage: Callable[[Damage], None]) -> JournalReader:
        """Return a reader of this journal, from its first record on."""
        return JournalReader(self._files, self.list_segments, on_damage, self._intact_position)

    def _intact_position(self) -> int:
        """Return up to where the files must hold everything: after a sync that failed, only what is acknowledged."""
        return self._chain.durable if self._failed_in_a_row or self._is_replacing else self._chain.written

    def list_segments(self) -> list[SegmentFile]:
        """Return the segments that hold records and are not given up, by number; nothing waits to be written then."""
        self._write_deferred()
        return self._chain.list_files()

    def mark_shipped(self, position: int) -> None:
        """Say that SQL has everything up to a position, and that nothing up to it will be needed again."""
        self._shipped = max(self._shipped, position)
        done = self._chain.take_shipped(self._shipped, self._syncing[1] if self._syncing else [])
        if done or self.has_alarm:  # with the alarm on, others of the folder may have made room
            self._supply.put_away(done)

    # --- the slow path

    def _write_deferred(self) -> None:
        """Write what waits for the next record; what the disk does not take is kept in memory, like any record."""
        try:
            if self._chain.write_deferred():
                self._admissions.give()
                return
        except OSError as error:
            self._log.error(Event.JOURNAL_WRITE_FAILED, journal_id=self.journal_id, error=str(error))
        self._flush()
        self._update()
        self._admit_slowly()

    def _admit_slowly(self) -> None:
        """Append what waits for an admission one by one, as far as the disk takes it."""
        left = self._chain.drop_intents()
        self._admissions.give_each(partial(self.append, is_admission=True), left)

    def _append_slowly(self, payload: bytes, *, is_admission: bool) -> None:
        """Append a record that does not simply fit: the segment is full, or the disk takes nothing."""
        chain = self._chain
        if len(payload) + FRAME_BYTES + HEADER_BYTES > self._policy.segment_bytes:
            raise down(f"a record of {len(payload)} bytes is larger than a segment")
        if chain.pending_bytes + len(payload) > self._policy.max_pending_bytes:
            raise down("too much waits for the disk")
        is_first = not chain.is_owing
        chain.hold(payload)
        if is_first:  # otherwise others wait already, until there is a segment
            self._flush()
        if is_admission and chain.written < chain.position:
            chain.take_back()
            self._update()  # what waited for this record may be owed now
            raise down("no segment to write to")
        self._update()

    def _flush(self) -> None:
        try:
            self._chain.flush()
        except OSError as error:
            self._go_down(error)

    # --- durability

    def _dispatch(self) -> None:
        """Give the syncer its next job, if somebody waits for it and it has none."""
        self._is_due = False
        if self._syncing is None:
            self._write_deferred()
            if self._waiters.waiting and not self._is_replacing:
                self._sync()

    def _sync(self) -> None:
        if self._syncer is not None and self._chain.written > self._chain.durable:
            segments = self._chain.list_unsynced()
            self._syncing = self._chain.written, segments
            self._watch.begin()
            self._syncer.sync([segment.file.descriptor for segment in segments])

    def _on_synced(self, failure: OSError | None) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is None:
            return
        self._watch.end(failure)
        if failure is None:
            self._failed_in_a_row = 0
            self._chain.acknowledge(syncing[0])
            self._waiters.wake(self._chain.durable)
            if self._is_admitting and not self._is_replacing:  # nothing is amiss
                self._dispatch()
                return
        else:
            self._failed_in_a_row += 1
            lost = self._chain.position - self._chain.durable
            log = {"journal_id": self.journal_id, "error": str(failure), "unacknowledged_records": lost}
            self._log.error(Event.JOURNAL_SYNC_FAILED, **log)
        if not self._is_open:
            return
        if self._failed_in_a_row > 1:
            self._go_down(failure)
        elif self._is_replacing or failure is not None:
            self._replace()
        elif self._chain.is_owing:
            self._go_on()  # the reserve may have come during the sync
        self._settle_down()
        self._dispatch()

    def _go_on(self) -> None:
        """Write on in the reserve, unless a sync of what stands before it has failed: a rewrite comes first then."""
        if self._failed_in_a_row == 0:
            self._flush()
            self._waiters.wake(self._chain.durable)
            self._dispatch()

    # --- when the disk fails

    def _replace(self) -> None:
        """Write everything that is not acknowledged into a new segment, and sync that one alone."""
        self._is_replacing = True
        if self._syncing is not None:
            return  # goes on when that job is done
        file = self._supply.take()
        if file is None:
            return  # goes on when there is a reserve
        self._is_replacing = False
        try:
            self._chain.rewrite(file)
        except OSError as error:
            self._go_down(error)
            return
        self._sync()

    def _go_down(self, reason: OSError | None) -> None:
        self._is_down = True
        self._is_replacing = False
        self._log.error(Event.JOURNAL_WRITE_FAILED, journal_id=self.journal_id, error=str(reason), is_down=True)
        self._waiters.fail(partial(down, str(reason)))
        self._update()
        self._retry_later()

    def _settle_down(self) -> None:
        """Come back up once nothing is owed any more."""
        is_owing = self._chain.is_owing or self._failed_in_a_row > 0
        if self._is_down and not is_owing and not self._is_replacing and self._syncing is None:
            self._is_down = False
            self._log.warning(Event.JOURNAL_OPENED, journal_id=self.journal_id, is_recovered=True)
        self._update()

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = self._loop.call_later(self._policy.retry_seconds, self._on_retry)

    def _on_retry(self) -> None:
        self._retry = None
        if self._is_down:
            self._replace()
            self._settle_down()
        else:
            self._supply.prepare()

    def _on_supply(self) -> None:
        """Go on after a reserve came, could not be made, or the spool's size changed."""
        if not self._is_open:
            return
        failure = self._supply.failure
        if failure is not None:
            self._retry_later()
            if self._is_replacing or (self._chain.is_owing and not self._is_down):
                self._go_down(failure)
        elif self._is_replacing:
            self._replace()
        elif self._chain.is_owing and self._syncing is None:
            self._go_on()
        self._settle_down()

    def _update(self) -> None:
        """Decide whether anything is admitted, and whether the alarm is on."""
        spool_bytes, max_bytes = self._supply.spool_bytes, self._policy.max_bytes
        has_alarm = spool_bytes * 2 >= max_bytes
        if has_alarm and not self.has_alarm:
            self._log.warning(Event.JOURNAL_FILLED, spool_bytes=spool_bytes, max_bytes=max_bytes)
        self.has_alarm = has_alarm
        is_blocked = self._is_closing or self._is_down or self._supply.failure is not None or spool_bytes >= max_bytes
        self._is_admitting = self._is_open and not is_blocked and not self._chain.is_owing
