"""Looks after a sync that runs: what is to be done meanwhile, and when it takes too long.

Not here: syncing (``syncer``), and what becomes of a journal whose disk hangs (``journal``).
"""

import asyncio
from collections.abc import Callable

TICK_SECONDS = 0.02
"""How often a sync that runs is looked at: a stream's charge after a crash may be late by that, so it is short."""


class SyncWatch:
    """One timer for all syncs of a journal: a busy one begins hundreds of them a second. Used on one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stall_seconds: float,
        on_tick: Callable[[], None],
        on_stall: Callable[[OSError], None],
    ) -> None:
        """Prepare.

        Args:
            loop: that which this is used on.
            stall_seconds: how long a sync may take.
            on_tick: called every ``TICK_SECONDS`` while one runs.
            on_stall: told once of a sync that takes longer than it may; the disk may come back.
        """
        self._loop = loop
        self._stall_seconds = stall_seconds
        self._on_tick = on_tick
        self._on_stall = on_stall
        self._began_seconds: float | None = None
        """By the loop's clock; None while none runs."""
        self._timer: asyncio.TimerHandle | None = None
        self.syncs = 0
        """How many began."""
        self.failures = 0
        """How many of them failed."""

    def begin(self) -> None:
        """Note that a sync begins."""
        self.syncs += 1
        self._began_seconds = self._loop.time()
        if self._timer is None:  # that of an earlier sync does as well
            self._timer = self._loop.call_later(TICK_SECONDS, self._look)

    def end(self, failure: OSError | None) -> None:
        """Note how it has ended."""
        self.failures += failure is not None
        self._began_seconds = None

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._began_seconds is None:
            return
        is_late = self._loop.time() - self._began_seconds >= self._stall_seconds
        if not is_late:
            self._timer = self._loop.call_later(TICK_SECONDS, self._look)
        self._on_tick()  # the last time too: what waits meanwhile does not wait for a disk that hangs
        if is_late:
            self._on_stall(OSError("the disk does not finish a sync"))
