"""What of this machine matters: the journals' folder and its disk, open files. Changes nothing."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from meterhouse.checkup.finding import Finding, failed, ok, warning
from meterhouse.errors import JournalDown
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy, SegmentFolder
from meterhouse.settings import Settings

JOURNALS = "journals"
FILES_PER_STREAM = 2
"""The client's connection and the provider's."""
LEAST_FILES, GOOD_FILES = 1_024, 16_384
MOST_SEGMENTS_AT_ONCE = 2
"""Of a worker: the one it writes, and one in reserve."""
GIB = 1_073_741_824


def check_host(settings: Settings, workers: int) -> Iterator[Finding]:
    """Look at the folder, the disk and the limits of this process, which are those of whoever runs the command."""
    folder = settings.data / JOURNALS
    yield _check_folder(folder)
    yield _check_disk(folder, settings, workers)
    yield _check_files()


def _check_folder(folder: Path) -> Finding:
    subject = "journal folder"
    if not folder.exists():
        parent = _nearest(folder)
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            return failed(subject, f"{folder} does not exist, and cannot be made in {parent} by this user.")
        kind = OsFiles().find_filesystem(parent)
        if SegmentFolder.is_network(kind):
            return failed(subject, f"{parent} is on a network file system ({kind}): choose a local disk with --data.")
        return ok(subject, f"{folder} will be made at the first start, on {kind or 'an unknown file system'}.")
    try:
        SegmentFolder(folder, OsFiles(), JournalPolicy()).check()
    except JournalDown as error:
        return failed(subject, error.message)
    return ok(subject, f"{folder} can be written and locked, on {OsFiles().find_filesystem(folder)}.")


def _check_disk(folder: Path, settings: Settings, workers: int) -> Finding:
    subject = "disk"
    usage = shutil.disk_usage(_nearest(folder))
    needed = settings.journal_segment_bytes * MOST_SEGMENTS_AT_ONCE * workers
    wanted = settings.journal_max_bytes
    text = f"{usage.free / GIB:.1f} GiB are free"
    if usage.free < needed:
        return failed(subject, f"{text}; {workers} workers begin with {needed / GIB:.1f} GiB. Make room.")
    if usage.free < wanted:
        return warning(
            subject,
            f"{text}, but {wanted / GIB:.1f} GiB may wait to be shipped while PostgreSQL is away: make room, or lower "
            "METERHOUSE_JOURNAL_MAX_BYTES.",
        )
    return ok(subject, f"{text}.")


def _check_files() -> Finding:
    subject = "open files"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} per process, for about {max(0, soft - 200) // FILES_PER_STREAM} streams per worker"
    if soft < LEAST_FILES:
        return failed(subject, f"{text}: raise the limit (ulimit -n, LimitNOFILE=).")
    if soft < GOOD_FILES:
        return warning(subject, f"{text}: for more raise the limit (ulimit -n, LimitNOFILE=).")
    return ok(subject, f"{text}.")


def _nearest(folder: Path) -> Path:
    """Return the folder, or what of its path exists."""
    path = folder.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
