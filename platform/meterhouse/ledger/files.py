"""The few operations on files that the journal needs, behind a seam through which tests break the disk.

Invariant: no other file of the ledger touches the operating system, but ``aio`` for what has no function of Python's.
Not here: what is in a file.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Protocol

_MODE = 0o600
_FOLDER_MODE = 0o700
_ZEROES_BYTES = 1 << 20
_MOUNTS = Path("/proc/mounts")


class FileLayer(Protocol):
    """Files by descriptor. Every method raises OSError; all may be called from any thread."""

    def create(self, path: Path) -> int:
        """Create a file that must not exist, open for reading and writing."""
        ...

    def open(self, path: Path) -> int:
        """Open an existing file for reading and writing."""
        ...

    def close(self, descriptor: int) -> None:
        """Close a file; its lock is released."""
        ...

    def try_lock(self, descriptor: int) -> bool:
        """Take the exclusive lock of an open file, without waiting; False when somebody else has it."""
        ...

    def is_at(self, descriptor: int, path: Path) -> bool:
        """Whether a path still names this open file."""
        ...

    def preallocate(self, descriptor: int, size_bytes: int) -> None:
        """Make a file exactly this long, all zeroes, and make that durable."""
        ...

    def pwrite(self, descriptor: int, data: bytes, offset: int, /) -> int:
        """Write at an offset; returns how many bytes were written."""
        ...

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        """Read at an offset; shorter at the end of the file."""
        ...

    def fdatasync(self, descriptor: int, /) -> None:
        """Make the data of a file durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        ...

    def fsync_folder(self, folder: Path) -> None:
        """Make the names of a folder durable."""
        ...

    def make_folder(self, folder: Path) -> None:
        """Make a folder that only this user may read, unless it is there."""
        ...

    def list_names(self, folder: Path) -> list[str]:
        """Return the names in a folder."""
        ...

    def size_bytes(self, descriptor: int) -> int:
        """Return the length of an open file."""
        ...

    def modified_at_seconds(self, path: Path) -> float:
        """Return when a file was last written, in Unix seconds."""
        ...

    def now_seconds(self) -> float:
        """Return what the clock that stamps files says."""
        ...

    def find_filesystem(self, folder: Path) -> str | None:
        """Return the type of the file system that a folder is on; None where the system does not say."""
        ...


class OsFiles:
    """The operating system's files."""

    pwrite = staticmethod(os.pwrite)
    pread = staticmethod(os.pread)
    # macOS has no fdatasync; its fsync does at least as much.
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))

    def create(self, path: Path) -> int:
        """Create a file that must not exist, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)

    def open(self, path: Path) -> int:
        """Open an existing file for reading and writing."""
        return os.open(path, os.O_RDWR)

    def close(self, descriptor: int) -> None:
        """Close a file; its lock is released."""
        os.close(descriptor)

    def try_lock(self, descriptor: int) -> bool:
        """Take the exclusive lock of an open file, without waiting; False when somebody else has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_at(self, descriptor: int, path: Path) -> bool:
        """Whether a path still names this open file."""
        try:
            there = os.stat(path)  # noqa: PTH116 - compared with fstat
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(descriptor), there)

    def preallocate(self, descriptor: int, size_bytes: int) -> None:
        """Make a file exactly this long, all zeroes, and make that durable.

        The zeroes are written, not merely reserved: a later fdatasync then has no metadata to write.
        """
        os.ftruncate(descriptor, size_bytes)
        zeroes = bytes(min(_ZEROES_BYTES, size_bytes))
        offset = 0
        while offset < size_bytes:
            offset += os.pwrite(descriptor, zeroes[: size_bytes - offset], offset)
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def fsync_folder(self, folder: Path) -> None:
        """Make the names of a folder durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        """Make a folder that only this user may read, unless it is there."""
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)

    def list_names(self, folder: Path) -> list[str]:
        """Return the names in a folder."""
        return os.listdir(folder)  # noqa: PTH208 - only the names

    def size_bytes(self, descriptor: int) -> int:
        """Return the length of an open file."""
        return os.fstat(descriptor).st_size

    def modified_at_seconds(self, path: Path) -> float:
        """Return when a file was last written, in Unix seconds."""
        return path.stat().st_mtime

    def now_seconds(self) -> float:
        """Return what the clock that stamps files says."""
        return time.time()

    def find_filesystem(self, folder: Path) -> str | None:
        """Return the type of the file system that a folder is on; None where the system does not say."""
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
        return filesystem_of(folder.resolve(), mounts)


def has_plain_sync(files: FileLayer) -> bool:
    """Whether a layer's ``fdatasync`` is the system's own, so that the kernel may be asked for it in another way."""
    return files.fdatasync is getattr(os, "fdatasync", None)


def filesystem_of(folder: Path, mounts: str) -> str | None:
    """Find the type of a folder's file system in the text of ``/proc/mounts``: the longest mount point above it.

    Of several mounts at one point the last one counts, because it hides the others.
    """
    best: tuple[int, str] | None = None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:  # noqa: PLR2004 - device, mount point, type
            continue
        point = Path(_unescape(fields[1]))
        if folder.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            best = len(point.parts), fields[2]
    return best[1] if best else None


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
