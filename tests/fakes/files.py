"""A file layer that breaks: fdatasync held back or failing, a full disk, and a loss of power.

With ``loses_power=True`` what is written stands in the memory of this process until it is synced, so that ``kill -9``
loses just what a power failure loses, and ``drop_unsynced`` does the same without killing. Names of files are durable
at once. All methods may be called from any thread. Not here: a journal.
"""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from meterhouse.ledger.files import OsFiles


class AskedFiles(OsFiles):
    """The operating system's files, whose fdatasync is not known to be the system's own: a thread has to call it."""

    def fdatasync(self, descriptor: int, /) -> None:  # type: ignore[override]
        os.fdatasync(descriptor)


class FaultyFiles(OsFiles):
    """The operating system's files, until told otherwise."""

    def __init__(self, *, loses_power: bool = False) -> None:
        self.syncs = 0
        """How many fdatasyncs succeeded."""
        self.calls: list[tuple[str, str]] = []
        """Changes of names, and what made them durable, in order: (operation, file name)."""
        self._loses_power = loses_power
        self._changed = threading.Condition()
        self._is_holding = False
        self._held = 0
        self._failing_syncs = 0
        self._failing_writes = 0
        self._torn_bytes: int | None = None
        self._is_full = False
        self._unsynced: dict[tuple[int, int], list[tuple[int, bytes]]] = {}

    # --- faults

    def hold_syncs(self) -> None:
        """From now on, fdatasync does not come back."""
        with self._changed:
            self._is_holding = True

    def release_syncs(self) -> None:
        """Let go every fdatasync that is held, and hold no more."""
        with self._changed:
            self._is_holding = False
            self._changed.notify_all()

    def wait_until_held(self, timeout_seconds: float = 30) -> None:
        """Return when an fdatasync is being held."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held > 0, timeout_seconds), "no fdatasync is held"

    def fail_syncs(self, times: int = 1_000_000) -> None:
        """The next fdatasyncs fail with EIO, and what they should have made durable is lost."""
        with self._changed:
            self._failing_syncs = times

    def fail_writes(self, times: int = 1_000_000, *, torn_bytes: int | None = None) -> None:
        """The next writes fail with EIO; with ``torn_bytes`` they come back having written only so many."""
        with self._changed:
            self._failing_writes, self._torn_bytes = times, torn_bytes

    def fill_disk(self) -> None:
        """No new file gets room."""
        with self._changed:
            self._is_full = True

    def heal(self) -> None:
        """Everything works again."""
        with self._changed:
            self._failing_syncs = self._failing_writes = 0
            self._is_full = self._is_holding = False
            self._changed.notify_all()

    def drop_unsynced(self, keep_bytes: int = 0) -> int:
        """Lose power: of each file, all but the first bytes that are not synced are gone; returns how many went."""
        with self._changed:
            lost = 0
            for pieces in self._unsynced.values():
                kept: list[tuple[int, bytes]] = []
                room = keep_bytes
                for offset, data in pieces:
                    kept.append((offset, data[:room]))
                    lost += len(data) - len(data[:room])
                    room -= len(data[:room])
                pieces[:] = kept
            return lost

    # --- files

    def pwrite(self, descriptor: int, data: bytes, offset: int, /) -> int:  # type: ignore[override]
        with self._changed:
            if self._failing_writes > 0:
                self._failing_writes -= 1
                if self._torn_bytes is None:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                data = data[: self._torn_bytes]
            if self._loses_power:
                self._unsynced.setdefault(_identity(descriptor), []).append((offset, bytes(data)))
                return len(data)
            return os.pwrite(descriptor, data, offset)

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:  # type: ignore[override]
        with self._changed:
            data = bytearray(os.pread(descriptor, length, offset))
            for start, piece in self._unsynced.get(_identity(descriptor), ()):
                first, last = max(start, offset), min(start + len(piece), offset + len(data))
                if first < last:
                    data[first - offset : last - offset] = piece[first - start : last - start]
            return bytes(data)

    def fdatasync(self, descriptor: int, /) -> None:  # type: ignore[override]
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_holding)
            self._held -= 1
            if self._failing_syncs > 0:
                self._failing_syncs -= 1
                self._unsynced.pop(_identity(descriptor), None)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            for offset, data in self._unsynced.pop(_identity(descriptor), ()):
                os.pwrite(descriptor, data, offset)
            self.syncs += 1
        if not self._loses_power:
            os.fdatasync(descriptor)

    def preallocate(self, descriptor: int, size_bytes: int) -> None:
        with self._changed:
            if self._is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unsynced.pop(_identity(descriptor), None)
        self._note("preallocate", Path(str(descriptor)), lambda: OsFiles.preallocate(self, descriptor, size_bytes))

    def rename(self, source: Path, target: Path) -> None:
        self._note("rename", target, lambda: OsFiles.rename(self, source, target))

    def unlink(self, path: Path) -> None:
        self._note("unlink", path, lambda: OsFiles.unlink(self, path))

    def fsync_folder(self, folder: Path) -> None:
        self._note("fsync_folder", folder, lambda: OsFiles.fsync_folder(self, folder))

    def _note(self, operation: str, path: Path, work: Callable[[], None]) -> None:
        work()
        with self._changed:
            self.calls.append((operation, path.name))


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


class CountedFiles(FaultyFiles):
    """Remembers what was written in one go; its disk can be filling."""

    def __init__(self, *, loses_power: bool = False) -> None:
        super().__init__(loses_power=loses_power)
        self.writes: list[bytes] = []
        self.room_bytes: int | None = None
        """What the disk takes yet, if it is filling."""

    def pwrite(self, descriptor: int, data: bytes, offset: int, /) -> int:  # type: ignore[override]
        self.writes.append(bytes(data))
        if self.room_bytes is not None:
            if not self.room_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: self.room_bytes]
            self.room_bytes -= len(data)
        return super().pwrite(descriptor, data, offset)
