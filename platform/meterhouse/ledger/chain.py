"""The row of segments that a journal writes, and the records that are not acknowledged yet.

Positions: ``durable`` <= ``written`` <= ``position``. Every record after ``durable`` stands in memory, so that it can
be written again. With durability ``write`` a record counts as durable when it is written.

Invariant: the records of the segments, in their order and without repetitions, are the records 1 to ``written``. Not
here: when to sync, and what to do about failures (``journal``).
"""

from collections import deque
from itertools import islice

from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.segment import HEADER_BYTES, SegmentFile, SegmentWriter
from meterhouse.ledger.supply import SegmentSupply
from meterhouse.metering import Clock


class SegmentChain:
    """Used by the event loop alone."""

    def __init__(self, files: FileLayer, clock: Clock, supply: SegmentSupply, *, has_sync: bool) -> None:
        self.position = 0
        self.written = 0
        self.durable = 0
        self.pending_bytes = 0
        self._files = files
        self._clock = clock
        self._supply = supply
        self._has_sync = has_sync
        self._segments: list[SegmentWriter] = []
        self._dirty: list[SegmentWriter] = []
        self._pending: deque[bytes] = deque()
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
        """Append one record if it simply fits; False when it does not. Raises OSError."""
        segment = self._segments[-1]
        if self.written != self.position or not segment.has_room(payload) or not segment.append(payload):
            return False
        self.position = self.written = self.position + 1
        if self._has_sync:
            self._pending.append(payload)
            self.pending_bytes += len(payload)
        else:
            self.durable = self.position
        return True

    def hold(self, payload: bytes) -> None:
        """Append one record in memory; ``flush`` writes it."""
        self._pending.append(payload)
        self.pending_bytes += len(payload)
        self.position += 1

    def take_back(self) -> None:
        """Undo the last ``hold``, whose record is not written."""
        self.pending_bytes -= len(self._pending.pop())
        self.position -= 1

    def flush(self) -> bool:
        """Write what is not written yet, going on in the reserve where needed; False when there is no reserve yet.

        Raises:
            OSError: The reserve cannot be written either.
        """
        for payload in list(islice(self._pending, self.written - self.durable, None)):
            if not self._append(payload):
                return False
            self.written += 1
            if not self._has_sync:
                self.acknowledge(self.written)
        return True

    def rewrite(self, file: SegmentFile) -> bool:
        """Write everything that is not acknowledged into a new segment; nothing else needs a sync from here on.

        Returns:
            As ``flush``.

        Raises:
            OSError: The new segment cannot be written.
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
            return False
        # All that these hold stands in the new segment; an older one also holds what was acknowledged.
        self._forget(doubtful)
        self._supply.put_away([], [segment.file for segment in doubtful])
        return True

    def list_unsynced(self) -> list[SegmentWriter]:
        """Return what a sync of everything written must cover, in order."""
        self._dirty = [s for s in self._dirty if s is self._segments[-1] or s.last_position > self.durable]
        return list(self._dirty)

    def acknowledge(self, position: int) -> None:
        """Forget the records up to a position: they are safe."""
        for _ in range(position - self.durable):
            self.pending_bytes -= len(self._pending.popleft())
        self.durable = position

    def take_shipped(self, position: int, busy: list[SegmentWriter]) -> list[SegmentFile]:
        """Give up the full segments whose records are durable and in SQL up to a position, but for busy ones."""
        limit = min(position, self.durable)
        done = [s for s in self._segments[:-1] if s.last_position <= limit and s not in busy]
        self._forget(done)
        return [segment.file for segment in done]

    def _append(self, payload: bytes) -> bool:
        segment = self._segments[-1]
        if segment.has_room(payload):
            try:
                if segment.append(payload):
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
