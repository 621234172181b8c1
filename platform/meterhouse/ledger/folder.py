"""The one folder of a host's journals: names, locks, making, marking and recycling of segments.

``<journal id>-<number>.seg`` holds records that may not be in SQL yet, ``.shipped`` only such that are, ``.tmp`` is
being made. The lock of a ``.seg`` file is held by its owner as long as the owner lives.

Invariant: a segment gets its name only when it is locked, all zeroes and durable; it loses its lock only after its new
name. Everything here blocks. Not here: what is in a segment.
"""

import errno
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meterhouse.errors import JournalDown
from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.segment import SegmentFile

State = Literal["seg", "shipped", "tmp"]

_STATES: dict[str, State] = {"seg": "seg", "shipped": "shipped", "tmp": "tmp"}
_ID_LENGTH = 32
_STALE_SECONDS = 600
_NETWORK = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"}
    | {"smb2", "smb3", "smbfs", "vboxsf"}
    | {"fuse.ceph", "fuse.cephfs", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs"}
    | {"fuse.rclone", "fuse.s3fs", "fuse.seaweedfs", "fuse.smbnetfs", "fuse.sshfs", "fuse.vmhgfs-fuse"}
)
"""File systems on which a lock or a sync does not mean what it must. 9p is not here: sandboxed containers call their
own local disk so."""


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A file name, read: whose segment it is, which, and in what state."""

    journal_id: str
    number: int
    state: State

    def __str__(self) -> str:
        return f"{self.journal_id}-{self.number:010d}.{self.state}"

    @classmethod
    def parse(cls, name: str) -> "SegmentName | None":
        """Read a file name; None when it is none of ours."""
        stem, _, suffix = name.rpartition(".")
        journal_id, _, number = stem.partition("-")
        state = _STATES.get(suffix)
        if state is None or len(journal_id) != _ID_LENGTH or not (number.isascii() and number.isdigit()):
            return None
        parsed = None if set(journal_id) - set("0123456789abcdef") else cls(journal_id, int(number), state)
        return parsed if str(parsed) == name else None


@dataclass(frozen=True, slots=True)
class JournalPolicy:
    """How a journal uses the disk."""

    durability: Literal["fsync", "write"] = "fsync"
    """``write`` does not wait for the disk: what was acknowledged survives a killed process, not a power failure."""
    segment_bytes: int = 16 << 20
    keep_bytes: int = 8 << 30
    """How much of the folder shipped segments may take."""
    keep_seconds: float = 48 * 3600
    max_bytes: int = 8 << 30
    """How much segments that are not shipped may take before nothing is admitted; half of it raises the alarm."""
    max_pending_bytes: int = 64 << 20
    """What is kept in memory while the disk takes nothing, for requests that run already."""
    retry_seconds: float = 1.0
    stall_seconds: float = 10.0
    """A sync that takes longer is taken for a disk that is down."""


class SegmentFolder:
    """A folder of segments. Its methods raise OSError."""

    def __init__(self, path: Path, files: FileLayer, policy: JournalPolicy) -> None:
        self.path = path
        self._files = files
        self._policy = policy

    def check(self) -> None:
        """Make the folder if needed, and refuse one that cannot keep a journal.

        Raises:
            JournalDown: It cannot be made or written, is on a network file system, or its locks do not lock.
        """
        try:
            self._files.make_folder(self.path)
            kind = self._files.find_filesystem(self.path)
            if self.is_network(kind):
                raise JournalDown(
                    f"The journal folder {self.path} is on a network file system ({kind}), where a crash can lose "
                    "what was acknowledged. Choose a folder on a local disk.",
                    detail=f"file system {kind}",
                )
            has_locks = self._probe_locks()
        except OSError as error:
            message = f"The journal folder {self.path} cannot be used: {error.strerror or error}."
            raise JournalDown(message, detail=repr(error)) from error
        if not has_locks:
            message = f"The journal folder {self.path} is on a file system without working locks. Choose a local disk."
            raise JournalDown(message, detail="flock does not exclude")

    @staticmethod
    def is_network(kind: str | None) -> bool:
        """Whether a file system of this kind cannot keep a journal."""
        return kind in _NETWORK

    def list_segments(self, *states: State) -> list[SegmentName]:
        """Return the segments in these states, by journal (the oldest first) and number."""
        names = (SegmentName.parse(name) for name in self._files.list_names(self.path))
        return sorted(name for name in names if name is not None and name.state in states)

    def measure_spool_bytes(self) -> int:
        """Return how much room the segments take that are not marked as shipped."""
        return len(self.list_segments("seg")) * self._policy.segment_bytes

    def lock(self, name: SegmentName) -> SegmentFile | None:
        """Open and lock a segment; None when it is gone or somebody else's.

        Raises:
            BlockingIOError: Somebody else has the lock.
        """
        path = self.path / str(name)
        try:
            descriptor = self._files.open(path)
        except FileNotFoundError:
            return None
        try:
            if not self._files.try_lock(descriptor):
                raise BlockingIOError(errno.EWOULDBLOCK, "somebody else has the lock", str(path))
            # Between opening and locking, its owner may have renamed and let go of it.
            if self._files.is_at(descriptor, path):
                size_bytes = self._files.size_bytes(descriptor)
                return SegmentFile(path, descriptor, name.journal_id, name.number, size_bytes)
        except OSError:
            self._files.close(descriptor)
            raise
        self._files.close(descriptor)
        return None

    def open_unlocked(self, name: SegmentName) -> SegmentFile | None:
        """Open a segment only to read it; None when it is gone."""
        path = self.path / str(name)
        try:
            descriptor = self._files.open(path)
        except FileNotFoundError:
            return None
        return SegmentFile(path, descriptor, name.journal_id, name.number, self._files.size_bytes(descriptor))

    def release(self, file: SegmentFile) -> None:
        """Close a segment and leave it as it is."""
        self._files.close(file.descriptor)

    def make(self, journal_id: str, number: int) -> SegmentFile:
        """Make a segment of zeroes, locked and durable under its name; out of an expired one if there is one."""
        temporary = self.path / str(SegmentName(journal_id, number, "tmp"))
        path = self.path / str(SegmentName(journal_id, number, "seg"))
        size_bytes = self._policy.segment_bytes
        descriptor = self._take_expired(temporary)
        if descriptor is None:
            descriptor = self._files.create(temporary)
        try:
            if not self._files.try_lock(descriptor):
                raise BlockingIOError(errno.EWOULDBLOCK, "somebody else has the lock", str(temporary))
            self._files.preallocate(descriptor, size_bytes)
            self._files.rename(temporary, path)
            self._files.fsync_folder(self.path)
        except OSError:
            for made in (temporary, path):
                with suppress(OSError):
                    self._files.unlink(made)
            self._files.close(descriptor)
            raise
        return SegmentFile(path, descriptor, journal_id, number, size_bytes)

    def mark_shipped(self, file: SegmentFile) -> None:
        """Say of a locked segment that SQL has all of it, and let go of it."""
        try:
            self._files.rename(file.path, file.path.with_suffix(".shipped"))
        finally:
            self._files.close(file.descriptor)

    def discard(self, file: SegmentFile) -> None:
        """Remove a locked segment that holds nothing worth keeping, and let go of it."""
        try:
            self._files.unlink(file.path)
        finally:
            self._files.close(file.descriptor)

    def tidy(self) -> None:
        """Remove shipped segments that are too old or too many, and what a crash left half made."""
        kept = self._list_shipped()
        count = len(kept)
        for modified_at_seconds, name in kept:
            is_too_many = count * self._policy.segment_bytes > self._policy.keep_bytes
            if not is_too_many and not self._is_old(modified_at_seconds, self._policy.keep_seconds):
                break
            count -= 1
            with suppress(FileNotFoundError):
                self._files.unlink(self.path / str(name))
        for name in self.list_segments("tmp"):
            with suppress(FileNotFoundError, BlockingIOError):
                # Somebody may be making it right now; nobody takes this long, and whoever makes it has its lock.
                if self._is_old(self._files.modified_at_seconds(self.path / str(name)), _STALE_SECONDS):
                    file = self.lock(name)
                    if file is not None:
                        self.discard(file)

    def _take_expired(self, target: Path) -> int | None:
        """Take the oldest shipped segment, if it need not be kept any longer, under another name."""
        kept = self._list_shipped()
        if not kept:
            return None
        modified_at_seconds, name = kept[0]
        is_full = (len(kept) + 1) * self._policy.segment_bytes > self._policy.keep_bytes
        if not is_full and not self._is_old(modified_at_seconds, self._policy.keep_seconds):
            return None
        try:
            file = self.lock(name)
        except BlockingIOError:
            return None
        if file is None:
            return None
        try:
            self._files.rename(file.path, target)
        except FileNotFoundError:
            self._files.close(file.descriptor)
            return None
        return file.descriptor

    def _list_shipped(self) -> list[tuple[float, SegmentName]]:
        """Return the shipped segments and when they were last written, the oldest first."""
        found: list[tuple[float, SegmentName]] = []
        for name in self.list_segments("shipped"):
            with suppress(FileNotFoundError):
                found.append((self._files.modified_at_seconds(self.path / str(name)), name))
        return sorted(found)

    def _is_old(self, modified_at_seconds: float, limit_seconds: float) -> bool:
        return self._files.now_seconds() - modified_at_seconds > limit_seconds

    def _probe_locks(self) -> bool:
        """Whether a lock keeps a second opening of the same file out."""
        path = self.path / f".lock-probe-{secrets.token_hex(8)}"
        first = self._files.create(path)
        try:
            second = self._files.open(path)
            try:
                return self._files.try_lock(first) and not self._files.try_lock(second)
            finally:
                self._files.close(second)
        finally:
            self._files.close(first)
            self._files.unlink(path)
