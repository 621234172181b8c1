"""Reads a journal from its first record on, over all its segments: the one way in which records come back.

Segments are read by number as long as each goes on where the one before it ended. After syncs that failed, a segment
may begin beyond a hole that one of a higher number fills: that one is read first.

Invariant: positions rise by one; a record that stands twice (rewritten after a failed sync) is given once; what is
missing or damaged is reported, never skipped in silence. Not here: what a payload means.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.segment import SegmentFile, SegmentScanner

Entry = tuple[int, bytes]
"""A position and a payload."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A place of a journal that cannot be read.

    ``lost_records`` is exact where a later segment says how many came before it; at the very end of a journal it is
    None, and what was lost there had not been acknowledged unless the disk itself lost it.
    """

    path: Path
    offset_bytes: int
    lost_records: int | None


class JournalReader:
    """Keeps its place in a journal that may be growing. Used by one thread."""

    def __init__(
        self,
        files: FileLayer,
        segments: Callable[[], Sequence[SegmentFile]],
        on_damage: Callable[[Damage], None],
        intact_position: Callable[[], int] | None = None,
    ) -> None:
        """Begin at the first record of the first segment that there is.

        Args:
            files: where the segments are.
            segments: says which segments there are now, by number.
            on_damage: hears of each place that cannot be read, once.
            intact_position: of a journal that is written meanwhile, up to where its files must hold everything. What
                is missing beyond that is waited for: its writer writes it again. None: nobody writes any more.
        """
        self._files = files
        self._segments = segments
        self._on_damage = on_damage
        self._intact_position = intact_position
        self._left: set[int] = set()
        """The numbers of segments that were read to their end."""
        self._scanner: SegmentScanner | None = None
        self._skipped = 0
        self.position: int | None = None
        """Of the last record that was given; None before the first segment."""

    @property
    def path(self) -> str:
        """The file that the last records came from."""
        return str(self._scanner.file.path) if self._scanner is not None else ""

    def fork(self, on_damage: Callable[[Damage], None]) -> "JournalReader":
        """Return a second reader at the same place."""
        other = JournalReader(self._files, self._segments, on_damage, self._intact_position)
        other.position = self.position
        other._left = set(self._left)
        other._skipped = self._skipped
        if self._scanner is not None:
            other._scanner = SegmentScanner(self._files, self._scanner.file)
            other._scanner.offset = self._scanner.offset
        return other

    def read(self, *, until: int | None, max_records: int) -> list[Entry]:
        """Return the next records, all of one file and none beyond position ``until``; empty at the end.

        Raises:
            UnreadableJournal: A newer version wrote the file.
            OSError: A file cannot be read.
        """
        entries: list[Entry] = []
        if self._is_lost() and not self._advance():
            return entries
        while True:
            assert self._scanner is not None
            assert self.position is not None
            room = max_records - len(entries)
            if until is not None:
                room = min(room, until - self.position)
            if room <= 0:
                break
            if not self._skipped and (ahead := self._scanner.read_ahead(room)):
                entries += enumerate(ahead, self.position + 1)
                self.position += len(ahead)
                continue
            payload = self._scanner.read_record()
            if payload is None:
                if entries or not self._advance():
                    break
            elif self._skipped:
                self._skipped -= 1
            else:
                self.position += 1
                entries.append((self.position, payload))
        return entries

    def __iter__(self) -> Iterator[Entry]:
        """Read everything up to the end of a journal that nobody writes any more."""
        while entries := self.read(until=None, max_records=64):
            yield from entries
        self.finish()

    def finish(self) -> None:
        """Report a damaged end; for a journal that nobody writes any more."""
        scanner = self._scanner
        if scanner is not None and scanner.is_torn:
            self._on_damage(Damage(scanner.file.path, scanner.offset, None))

    def _is_lost(self) -> bool:
        """Whether there is no segment to go on in: none was begun, or it is not there any more."""
        scanner = self._scanner
        return scanner is None or self.position is None or all(file is not scanner.file for file in self._segments())

    def _advance(self) -> bool:
        """Go to the segment that goes on where this one ended, or nearest after it; False when there is none yet."""
        left = self._scanner
        chosen, torn = self._find_next()
        for scanner in torn:
            if chosen is None or scanner.file.number < chosen.file.number:
                self._report(left)
                self._leave(left)
                self._scanner = left = scanner
        if chosen is None or chosen.header is None:
            return False
        before = chosen.header.first_position - 1
        self._report(left, before + 1)
        self._leave(left)
        self._scanner = chosen
        self._skipped = max(0, self.position - before) if self.position is not None else 0
        if self.position is None or self.position < before:
            self.position = before
        return True

    def _find_next(self) -> tuple[SegmentScanner | None, list[SegmentScanner]]:
        """Return the segment to go on in, and those before it whose header cannot be read."""
        nearest: SegmentScanner | None = None
        least = 0
        torn = []
        for file in self._segments():
            if file.number in self._left or (self._scanner is not None and file.number == self._scanner.file.number):
                continue
            scanner = SegmentScanner(self._files, file)
            header = scanner.read_header()
            if header is None:
                if scanner.is_torn:
                    torn.append(scanner)
                continue
            if self.position is not None and header.first_position <= self.position + 1:
                return scanner, torn
            if nearest is None or header.first_position < least:
                nearest, least = scanner, header.first_position
        if nearest is not None and self._intact_position is not None and least - 1 > self._intact_position():
            return None, torn
        return nearest, torn

    def _leave(self, scanner: SegmentScanner | None) -> None:
        if scanner is not None:
            self._left.add(scanner.file.number)
            self._left.intersection_update([file.number for file in self._segments()])

    def _report(self, left: SegmentScanner | None, first_position: int | None = None) -> None:
        """Report how a segment ended, if that was not well."""
        if left is None:
            return
        lost = None
        if first_position is not None and self.position is not None:
            lost = max(0, first_position - 1 - self.position)
        if left.is_torn or lost:
            self._on_damage(Damage(left.file.path, left.offset, lost))
