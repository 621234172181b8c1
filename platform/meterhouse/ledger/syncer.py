"""The one thread of a journal that does nothing but make its files durable.

Invariant: one job at a time; the answer comes back on the event loop. Not here: what to do when a sync fails.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue

from meterhouse.ledger.files import FileLayer

_JOIN_SECONDS = 5.0


class Syncer:
    """Syncs descriptors off the loop. A hanging disk hangs this thread only, and does not keep the process alive."""

    def __init__(self, files: FileLayer) -> None:
        self._files = files
        self._jobs: SimpleQueue[tuple[int, ...] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[OSError | None], None]) -> None:
        """Start the thread; ``on_done`` is called on the loop after each job, with what went wrong."""
        self._thread = threading.Thread(target=self._run, args=(loop, on_done), name="journal-sync", daemon=True)
        self._thread.start()

    def sync(self, descriptors: Sequence[int]) -> None:
        """Make these files durable, in this order; returns at once."""
        self._jobs.put(tuple(descriptors))

    def stop(self) -> bool:
        """End the thread after its job, and wait for that a little; blocks. False when the disk hangs."""
        thread = self._thread
        if thread is None:
            return True
        self._jobs.put(None)
        thread.join(_JOIN_SECONDS)
        return not thread.is_alive()

    def _run(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[OSError | None], None]) -> None:
        while (descriptors := self._jobs.get()) is not None:
            failure: OSError | None = None
            try:
                for descriptor in descriptors:
                    self._files.fdatasync(descriptor)
            except OSError as error:
                failure = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(on_done, failure)
