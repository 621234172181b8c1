"""One file of a journal: its header, the framing of its records, writing and reading them.

A segment is a header, then records, then zeroes. A record is its length, a CRC32, the segment's number and a payload;
the CRC begins with the header's own, so that no record of another life of the same file can pass for one of this.

Invariant: reading yields a prefix of what was written, whatever became of the file, and never raises for its content
(a newer format apart). Not here: names, locks and which segment comes next (``folder``, ``reader``).
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.record import UnreadableJournal

MAGIC = b"MHJOURNL"
FORMAT = 1

_HEADER = struct.Struct("<8sHxx16sQQQ")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<IIQ")
_READ_BYTES = 1 << 16

HEADER_BYTES = _HEADER.size + _CRC.size
FRAME_BYTES = _FRAME.size


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment that this process holds open and locked."""

    path: Path
    descriptor: int
    journal_id: str
    number: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself; ``first_position`` is that of its first record in the whole journal."""

    journal_id: str
    number: int
    first_position: int
    created_at_ms: int

    def encode(self) -> bytes:
        """Return the bytes at the beginning of the file."""
        raw = bytes.fromhex(self.journal_id)
        head = _HEADER.pack(MAGIC, FORMAT, raw, self.number, self.first_position, self.created_at_ms)
        return head + _CRC.pack(crc32(head))

    @property
    def seed(self) -> int:
        """What the CRC of each record begins with (a CRC over data and its own CRC would be the same for all)."""
        return int(_CRC.unpack_from(self.encode(), _HEADER.size)[0])


class SegmentWriter:
    """A segment that is written, by one thread."""

    __slots__ = ("_pwrite", "_seed", "file", "first_position", "last_position", "offset")

    def __init__(self, files: FileLayer, file: SegmentFile, first_position: int, created_at_ms: int) -> None:
        """Write the header; raises OSError."""
        self.file = file
        self.first_position = first_position
        self.last_position = first_position - 1
        self._pwrite = files.pwrite
        header = Header(file.journal_id, file.number, first_position, created_at_ms)
        head = header.encode()
        self._seed = header.seed
        if files.pwrite(file.descriptor, head, 0) != len(head):
            raise OSError(f"the header of {file.path} was written in part")
        self.offset = len(head)

    def append(self, *payloads: bytes) -> bool:
        """Write records in one go, in this order.

        Returns:
            False when there is no room for them, or they were written in part. Those that are in the file then, whole,
            do count (``last_position``): a reader finds them, and nothing else may ever stand at their positions.

        Raises:
            OSError: The disk takes nothing; none of them counts.
        """
        file, seed = self.file, self._seed
        number = file.number
        pieces: list[bytes] = []
        for payload in payloads:
            pieces += _FRAME.pack(len(payload), crc32(payload, seed), number), payload
        data = b"".join(pieces)
        end = self.offset + len(data)
        if end > file.size_bytes:
            return False
        written = self._pwrite(file.descriptor, data, self.offset)
        if written != len(data):
            self._count_whole(payloads, self.offset + written)
            return False
        self.offset = end
        self.last_position += len(payloads)
        return True

    def _count_whole(self, payloads: tuple[bytes, ...], written_end: int) -> None:
        for payload in payloads:
            end = self.offset + FRAME_BYTES + len(payload)
            if end > written_end:
                return
            self.offset = end
            self.last_position += 1


class SegmentScanner:
    """Reads a segment from its first record on and keeps its place; what is appended later is seen later."""

    def __init__(self, files: FileLayer, file: SegmentFile) -> None:
        self.file = file
        self.header: Header | None = None
        self.offset = HEADER_BYTES
        self.is_torn = False
        """Whether what stands at ``offset`` is neither a record nor the zeroes after the last one."""
        self._files = files
        self._seed = 0
        self._buffer = b""
        self._base = 0
        self._wanted = 0

    def read_header(self) -> Header | None:
        """Return the header; None when there is none yet (all zeroes) or a damaged one (``is_torn``).

        Raises:
            UnreadableJournal: A newer version wrote the file.
            OSError: The file cannot be read.
        """
        if self.header is not None:
            return self.header
        raw = self._files.pread(self.file.descriptor, HEADER_BYTES, 0)
        self.is_torn = any(raw) or len(raw) < HEADER_BYTES
        if not self.is_torn or raw[: len(MAGIC)] != MAGIC or len(raw) < HEADER_BYTES:
            return None
        head = raw[: _HEADER.size]
        (crc,) = _CRC.unpack_from(raw, _HEADER.size)
        if crc != crc32(head):
            return None
        _, version, journal_id, number, first_position, created_at_ms = _HEADER.unpack(head)
        if version > FORMAT:
            raise UnreadableJournal(
                f"{self.file.path} was written by a newer Meterhouse (format {version}, this one reads up to {FORMAT})."
            )
        if number != self.file.number or journal_id.hex() != self.file.journal_id:
            return None
        self.is_torn = False
        self._seed = crc
        self.header = Header(journal_id.hex(), number, first_position, created_at_ms)
        return self.header

    def read_ahead(self, most_records: int) -> list[bytes]:
        """Return the next payloads that are buffered, whole and sound, at most so many.

        Empty says nothing of what stands there: ``read_record`` does.
        """
        found: list[bytes] = []
        buffer, seed, number = self._buffer, self._seed, self.file.number
        start = self.offset - self._base
        last_start = min(len(buffer), self.file.size_bytes - self._base) - FRAME_BYTES
        for _ in range(most_records):
            if start > last_start:
                break
            length, crc, of_segment = _FRAME.unpack_from(buffer, start)
            end = start + FRAME_BYTES + length
            if length == 0 or of_segment != number or end > last_start + FRAME_BYTES:
                break
            payload = buffer[start + FRAME_BYTES : end]
            if crc32(payload, seed) != crc:
                break
            found.append(payload)
            start = end
        self.offset = self._base + start
        return found

    def read_record(self) -> bytes | None:
        """Return the next payload; None at the end (then ``is_torn`` says what kind of end). Raises as above."""
        if self.read_header() is None:
            return None
        payload = self._parse()
        if payload is None:
            # What is buffered may be older than what was appended since, or end in the middle of a record.
            self._base = self.offset
            self._buffer = self._files.pread(self.file.descriptor, max(_READ_BYTES, self._wanted), self.offset)
            payload = self._parse()
        return payload

    def _parse(self) -> bytes | None:
        start = self.offset - self._base
        self._wanted = 0
        if len(self._buffer) - start < FRAME_BYTES:
            self.is_torn = any(self._buffer[start:])
            return None
        length, crc, number = _FRAME.unpack_from(self._buffer, start)
        if length == 0:
            self.is_torn = bool(crc or number)
            return None
        self.is_torn = True
        if number != self.file.number or self.offset + FRAME_BYTES + length > self.file.size_bytes:
            return None
        begin = start + FRAME_BYTES
        payload = self._buffer[begin : begin + length]
        if len(payload) < length:
            self._wanted = FRAME_BYTES + length
            return None
        if crc32(payload, self._seed) != crc:
            return None
        self.is_torn = False
        self.offset += FRAME_BYTES + length
        return payload
