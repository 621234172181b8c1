"""Makes the files of a journal durable off its event loop: who does it, and how it is chosen.

Invariant: one job at a time; the answer comes back on the event loop. Not here: what to do when a sync fails.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

from meterhouse.ledger.aio import SyncQueue
from meterhouse.ledger.files import FileLayer, has_plain_sync
from meterhouse.ledger.kernel_syncer import KernelSyncer

_JOIN_SECONDS = 5.0


class Syncer(Protocol):
    """Syncs descriptors, a job at a time, and calls back on the loop after each job with what went wrong."""

    @property
    def name(self) -> str:
        """Who does it, for the log."""
        ...

    def sync(self, descriptors: Sequence[int]) -> None:
        """Make these files durable, in this order, up to the first that fails; returns at once."""
        ...

    async def stop(self) -> bool:
        """End after the job that runs, and wait for that a little; False when the disk hangs."""
        ...


async def start_syncer(files: FileLayer, on_done: Callable[[OSError | None], None]) -> Syncer:
    """Start what syncs with the least work here: the kernel's queue where there is one that works, else a thread.

    Args:
        files: whose ``fdatasync`` counts: one that is not the system's own is called, on a thread.
        on_done: called on the loop after each job.
    """
    loop = asyncio.get_running_loop()
    if not has_plain_sync(files):
        return ThreadSyncer(files, loop, on_done, "the file layer has a sync of its own")
    try:
        queue = await loop.run_in_executor(None, _open_queue)
    except OSError as error:
        return ThreadSyncer(files, loop, on_done, error.strerror or str(error))
    return KernelSyncer(queue, loop, on_done)


def _open_queue() -> SyncQueue:
    queue = SyncQueue()
    try:
        queue.prove()
    except TimeoutError:
        raise  # what never ends cannot be closed: it is left to the end of the process
    except OSError:
        queue.close()
        raise
    return queue


class ThreadSyncer:
    """Syncs on a thread. A hanging disk hangs this thread only, and the interpreter does not wait for it at its end."""

    def __init__(
        self,
        files: FileLayer,
        loop: asyncio.AbstractEventLoop,
        on_done: Callable[[OSError | None], None],
        reason: str,
    ) -> None:
        self.name = f"thread ({reason})"
        self._files = files
        self._jobs: SimpleQueue[tuple[int, ...] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(loop, on_done), name="journal-sync", daemon=True)
        self._thread.start()

    def sync(self, descriptors: Sequence[int]) -> None:
        """Make these files durable, in this order; returns at once."""
        self._jobs.put(tuple(descriptors))

    async def stop(self) -> bool:
        """End the thread after its job, and wait for that a little; False when the disk hangs."""
        self._jobs.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, _JOIN_SECONDS)
        return not self._thread.is_alive()

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
