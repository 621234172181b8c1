"""Makes a journal's files durable without a thread of ours: the kernel does it, and wakes the event loop when it has.

Invariant: a file counts as durable only when the kernel has said so of the sync that was asked for; whatever else
happens is a failure. Not here: the system calls (``aio``), what to do when a sync fails (``journal``).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from meterhouse.ledger.aio import SyncQueue

_STOP_SECONDS = 5.0


class KernelSyncer:
    """Syncs descriptors by a queue of the kernel's. All methods are called on the loop.

    A file that is closed meanwhile stays open, and locked, until its sync has ended; a process that ends waits for it.
    """

    name = "kernel"

    def __init__(
        self, queue: SyncQueue, loop: asyncio.AbstractEventLoop, on_done: Callable[[OSError | None], None]
    ) -> None:
        self._queue = queue
        self._loop = loop
        self._on_done = on_done
        self._left: deque[int] = deque()
        self._is_busy = False
        self._stopping: asyncio.Future[None] | None = None
        loop.add_reader(queue.event_descriptor, self._on_event)

    def sync(self, descriptors: Sequence[int]) -> None:
        """Make these files durable, one after the other in this order; returns at once."""
        self._left = deque(descriptors)
        self._is_busy = True
        self._go_on()

    async def stop(self) -> bool:
        """Let the job end, and wait for that a little; False when the disk hangs: the kernel has the queue then."""
        if self._is_busy:
            self._stopping = self._loop.create_future()
            try:
                await asyncio.wait_for(self._stopping, _STOP_SECONDS)
            except TimeoutError:
                self._loop.remove_reader(self._queue.event_descriptor)
                return False
        self._loop.remove_reader(self._queue.event_descriptor)
        await self._loop.run_in_executor(None, self._queue.close)  # takes the kernel milliseconds
        return True

    def _go_on(self) -> None:
        """Submit the next file, or end the job; its end is never told from within ``sync``."""
        if not self._left:
            self._loop.call_soon(self._end, None)
            return
        try:
            self._queue.submit(self._left.popleft())
        except OSError as error:
            self._loop.call_soon(self._end, error)

    def _on_event(self) -> None:
        try:
            is_durable = self._queue.take()
        except OSError as error:
            self._end(error)
            return
        if is_durable and self._left:
            self._go_on()
        elif is_durable:
            self._end(None)

    def _end(self, failure: OSError | None) -> None:
        self._is_busy = False
        self._left.clear()
        self._on_done(failure)
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)
