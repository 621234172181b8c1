"""Makes segments ahead of their use and puts away used ones, off the event loop.

Invariant: at most one segment is in reserve and at most one being made; the event loop never waits for either. All
methods are called on the loop. Not here: what is written into a segment (``journal``).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from meterhouse.ledger.folder import SegmentFolder
from meterhouse.ledger.segment import SegmentFile

_T = TypeVar("_T")


class SegmentSupply:
    """The segments of one journal that are not in use yet, or no longer."""

    def __init__(self, folder: SegmentFolder, journal_id: str) -> None:
        self._folder = folder
        self._journal_id = journal_id
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-files")
        self._reserve: SegmentFile | None = None
        self._made = 0
        self._is_making = False
        self._is_measuring = False
        self._is_closed = False
        self._on_change: Callable[[], None] = lambda: None
        self.failure: OSError | None = None
        """Why the last segment could not be made; None when it could."""
        self.spool_bytes = 0
        """How much room the segments of all journals of the folder take that are not shipped."""

    async def open(self, on_change: Callable[[], None]) -> SegmentFile:
        """Check the folder and make the first segment; the reserve is being made when this returns.

        Args:
            on_change: called when a reserve came, could not be made, or the spool's size changed.

        Raises:
            JournalDown: The folder cannot keep a journal.
            OSError: The segment cannot be made.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._folder.check)
        first, self.spool_bytes = await loop.run_in_executor(self._executor, self._make, self._next_number())
        self._on_change = on_change
        self.prepare()
        return first

    def take(self) -> SegmentFile | None:
        """Take the reserve, and make the next one; None when there is none yet."""
        reserve, self._reserve = self._reserve, None
        self.prepare()
        return reserve

    def prepare(self) -> None:
        """Make a reserve, unless there is one or it is being made."""
        if self._reserve is None and not self._is_making and not self._is_closed:
            self._is_making = True
            self._submit(partial(self._make, self._next_number()), self._finish_making)

    def put_away(self, shipped: Sequence[SegmentFile], discarded: Sequence[SegmentFile] = ()) -> None:
        """Mark segments as shipped, remove others, and measure the spool."""
        if self._is_measuring and not shipped and not discarded:
            return
        self._is_measuring = True
        self._submit(partial(self._put_away, shipped, discarded), self._finish_measuring)

    async def close(
        self,
        shipped: Sequence[SegmentFile] = (),
        released: Sequence[SegmentFile] = (),
        discarded: Sequence[SegmentFile] = (),
    ) -> None:
        """Put the last segments away, let go of others as they are, remove the reserve, and end the thread."""
        self._is_closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, int)  # after this, a reserve that was being made is here
        reserve, self._reserve = self._reserve, None
        unused = [*discarded, *([reserve] if reserve is not None else [])]
        await loop.run_in_executor(self._executor, self._close, shipped, released, unused)
        self._executor.shutdown()

    def _next_number(self) -> int:
        self._made += 1
        return self._made

    def _submit(self, work: Callable[[], _T], finish: Callable[[Future[_T]], None]) -> None:
        loop = asyncio.get_running_loop()

        def hand_over(future: Future[_T]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(finish, future)

        self._executor.submit(work).add_done_callback(hand_over)

    def _make(self, number: int) -> tuple[SegmentFile, int]:
        self._folder.tidy()
        file = self._folder.make(self._journal_id, number)
        return file, self._folder.measure_spool_bytes()

    def _finish_making(self, future: Future[tuple[SegmentFile, int]]) -> None:
        self._is_making = False
        try:
            self._reserve, self.spool_bytes = future.result()
        except OSError as error:
            self.failure = error
        else:
            self.failure = None
        self._on_change()

    def _put_away(self, shipped: Sequence[SegmentFile], discarded: Sequence[SegmentFile]) -> int:
        for file in shipped:
            with suppress(OSError):  # its name is all that is wrong: an adopter ships it again, which changes nothing
                self._folder.mark_shipped(file)
        for file in discarded:
            with suppress(OSError):
                self._folder.discard(file)
        return self._folder.measure_spool_bytes()

    def _finish_measuring(self, future: Future[int]) -> None:
        self._is_measuring = False
        with suppress(OSError):  # the next measurement will do
            self.spool_bytes = future.result()
        self._on_change()

    def _close(
        self, shipped: Sequence[SegmentFile], released: Sequence[SegmentFile], discarded: Sequence[SegmentFile]
    ) -> None:
        for file in released:
            self._folder.release(file)
        with suppress(OSError):
            self._put_away(shipped, discarded)
