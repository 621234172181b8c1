"""The row of segments that a journal writes, and the records that are not acknowledged yet.

Positions: ``durable`` <= ``written`` <= ``position``. Every record after ``durable`` stands in memory, so that it can
be written again. With durability ``write`` a record counts as durable when it is written. What is not written waits
for the next record, to share its system call (``defer``), or all of it for a disk that takes it (``is_owing``).

Invariant: the records of the segments, in their order and without repetitions, are the records 1 to ``written``. Not
here: when to sync, and what to do about failures (``journal``).
"""

from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.segment import FRAME_BYTES, HEADER_BYTES, SegmentFile, SegmentWriter
from meterhouse.ledger.supply import SegmentSupply
from meterhouse.metering import Clock

MOST_DEFERRED = 64
"""How many records wait for the next one; one more is written with them at once."""


class SegmentChain:
    """Used by the event loop alone."""

    def __init__(self, files: FileLayer, clock: Clock, supply: SegmentSupply, *, has_sync: bool) -> None:
        self.position = 0
        self.written = 0
        self.durable = 0
        self.is_owing = False
        """Whether what is not written waits because the disk does not take it, or there is no segment for it."""
        self.pending_bytes = 0
        self._files = files
        self._clock = clock
        self._supply = supply
        self._has_sync = has_sync
        self._segments: list[SegmentWriter] = []
        self._dirty: list[SegmentWriter] = []
        self._pending: list[bytes] = []
        """The records after ``durable``; those after ``written`` are the last of them."""
        self._intents: list[bytes] = []
        """What waits for the end of the loop's turn. They have no position before they are written, so that whichever
        of them is not can be refused, whatever was appended since."""
        self._deferred_bytes = 0
        """What the records that wait for the next one will take of the segment."""
        self._retired_bytes = 0

    @property
    def appended_bytes(self) -> int:
        """How many bytes were written as records, those that were written again included."""
        return self._retired_bytes + sum(_used_bytes(segment) for segment in self._segments)

    def list_files(self) -> list[SegmentFile]:
        """Return the segments that hold records, by number."""
        return [segment.file for segment in self._segments]

    def begin(self, file: SegmentFile) -> None:
        """Go on in this segment; raises OSError, and then the file is put away."""
        try:
            segment = SegmentWriter(self._files, file, self.written + 1, self._clock.now_ms())
        except OSError:
            self._supply.put_away([], [file])
            raise
        self._segments.append(segment)
        self._dirty.append(segment)

    def write(self, payload: bytes) -> bool:
        """Write one record, and before it what waits for it.

        Returns:
            False when they do not simply fit. It is not written then; of what waits, the first may be.

        Raises:
            OSError: The disk does not take them; nothing has changed.
        """
        if self.is_owing:
            return False
        waiting = self._pending[self.written - self.durable :]
        if not self._segments[-1].append(*waiting, *self._intents, payload):
            self._note_written()
            return False
        if self._intents:
            self._place_intents(len(self._intents))
        self.position = self.written = self.position + 1
        self._deferred_bytes = 0
        if self._has_sync:
            self._pending.append(payload)
            self.pending_bytes += len(payload)
        else:
            self.durable = self.position
        return True

    def defer(self, payload: bytes, *, is_admission: bool = False) -> bool:
        """Append one record in memory, to be written with the next or by ``write_deferred``.

        One of an admission goes behind those that wait and are none, and has its position when it is written.

        Returns:
            False when it has to be written by itself: it does not simply fit, too many wait, or nothing is synced.
        """
        if self.is_owing or not self._has_sync:
            return False
        segment = self._segments[-1]
        length = len(payload)
        waiting_bytes = self._deferred_bytes + FRAME_BYTES + length
        waiting = self.position - self.written + len(self._intents)
        if waiting >= MOST_DEFERRED or segment.offset + waiting_bytes > segment.file.size_bytes:
            return False
        self._deferred_bytes = waiting_bytes
        if is_admission:
            self._intents.append(payload)
            return True
        self._pending.append(payload)
        self.pending_bytes += length
        self.position += 1
        return True

    def write_deferred(self) -> bool:
        """Write what waits for the next record, if anything does; returns and raises as ``write``."""
        if self.is_owing:
            return not self._intents
        if self.written == self.position and not self._intents:
            return True
        if not self._segments[-1].append(*self._pending[self.written - self.durable :], *self._intents):
            self._note_written()
            return False
        if self._intents:
            self._place_intents(len(self._intents))
        self.written = self.position
        self._deferred_bytes = 0
        return True

    def drop_intents(self) -> int:
        """Let go what waits for the end of the loop's turn: it is appended one by one, or refused. Says how many."""
        count = len(self._intents)
        self._intents.clear()
        return count

    def hold(self, payload: bytes) -> None:
        """Append one record in memory; ``flush`` writes it."""
        self._pending.append(payload)
        self.pending_bytes += len(payload)
        self.position += 1
        self.is_owing = True

    def take_back(self) -> None:
        """Undo the last ``hold``, whose record is not written."""
        self.pending_bytes -= len(self._pending.pop())
        self.position -= 1
        self.is_owing = self.written < self.position

    def flush(self) -> bool:
        """Write what is not written yet, going on in the reserve where needed; False when there is no reserve yet.

        Raises:
            OSError: The reserve cannot be written either.
        """
        self._deferred_bytes = 0
        try:
            for payload in self._pending[self.written - self.durable :]:
                if not self._append(payload):
                    return False
                self.written += 1
        finally:
            self.is_owing = self.written < self.position
            if not self._has_sync:
                self.acknowledge(self.written)
        return True

    def rewrite(self, file: SegmentFile) -> bool:
        """Write everything that is not acknowledged into a new segment; nothing else needs a sync from here on.

        Returns:
            As ``flush``.

        Raises:
            OSError: The new segment cannot be written, or takes nothing of it: no sync follows then that goes on.
        """
        doubtful = [segment for segment in self._segments if segment.first_position > self.durable]
        written, self.written = self.written, self.durable
        try:
            self.begin(file)
        except OSError:
            # Nothing is given up: what may still be written into the old segments needs their sync.
            self.written = written
            raise
        self._dirty = [self._segments[-1]]
        if not self.flush():
            if self.written == self.durable:
                raise OSError(f"{file.path} takes nothing")
            return False
        # All that these hold stands in the new segment; an older one also holds what was acknowledged.
        self._forget(doubtful)
        self._supply.put_away([], [segment.file for segment in doubtful])
        return True

    def list_unsynced(self) -> list[SegmentWriter]:
        """Return what a sync of everything written must cover, in order."""
        if len(self._dirty) > 1:
            self._dirty = [s for s in self._dirty if s is self._segments[-1] or s.last_position > self.durable]
        return self._dirty.copy()

    def acknowledge(self, position: int) -> None:
        """Forget the records up to a position: they are safe."""
        count = position - self.durable
        self.pending_bytes -= sum(map(len, self._pending[:count]))
        del self._pending[:count]
        self.durable = position

    def take_shipped(self, position: int, busy: list[SegmentWriter]) -> list[SegmentFile]:
        """Give up the full segments whose records are durable and in SQL up to a position, but for busy ones."""
        limit = min(position, self.durable)
        done = [s for s in self._segments[:-1] if s.last_position <= limit and s not in busy]
        self._forget(done)
        return [segment.file for segment in done]

    def _place_intents(self, count: int) -> None:
        """Give positions to the first of what waited for the end of the loop's turn: they are written."""
        placed = self._intents[:count]
        del self._intents[:count]
        self._pending += placed
        self.pending_bytes += sum(map(len, placed))
        self.position += len(placed)

    def _note_written(self) -> None:
        """Count what a write of several has brought into the segment that was written in part."""
        last_position = self._segments[-1].last_position
        if last_position > self.position:
            self._place_intents(last_position - self.position)
        self.written = last_position

    def _append(self, payload: bytes) -> bool:
        try:
            if self._segments[-1].append(payload):
                return True
        except OSError:
            pass  # what the disk does not take here, it may take in the reserve
        file = self._supply.take()
        if file is None:
            return False
        self.begin(file)
        if not self._segments[-1].append(payload):
            raise OSError(f"{file.path} takes only a part of a record")
        return True

    def _forget(self, segments: list[SegmentWriter]) -> None:
        self._retired_bytes += sum(_used_bytes(segment) for segment in segments)
        self._segments = [segment for segment in self._segments if segment not in segments]
        self._dirty = [segment for segment in self._dirty if segment not in segments]


def _used_bytes(segment: SegmentWriter) -> int:
    return segment.offset - HEADER_BYTES
