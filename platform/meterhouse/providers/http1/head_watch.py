"""Which connections wait for the head of an answer, and until when: one timer for all of them.

A timer of each request's own would be made and taken back a thousand times a second, and hardly ever ring; one of each
connection's own would lie there half a kilobyte long while a stream runs for minutes. Not here: what a late head means
to whoever waits for it (``connection``).
"""

import asyncio
import math
from typing import Protocol

LOOK_SECONDS = 0.05
"""How far apart looks at all of them are at least; a late head is found out at most so much later."""

_EARLY_SECONDS = 0.002
"""A timer may be so early: the loop counts milliseconds."""


class WaitsForHead(Protocol):
    """A connection, as far as it is waited for."""

    deadline_seconds: float
    """Of the loop's clock."""

    def fail_late(self) -> None:
        """Close, and fail the answer; it waits no more."""
        ...


class HeadWatch:
    """Fails the heads that are late."""

    __slots__ = ("_loop", "_timer", "looks_at_seconds", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting: dict[WaitsForHead, None] = {}
        """Who enters here has its deadline looked at, by ``look_at`` where that is sooner than the next look."""
        self.looks_at_seconds = math.inf
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def look_at(self, at_seconds: float) -> None:
        """Look sooner than was planned."""
        self.close()
        self.looks_at_seconds = at_seconds
        self._timer = self._loop.call_at(at_seconds, self._look)

    def close(self) -> None:
        """Look no more."""
        self.looks_at_seconds = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Fail who is late; with nobody left there is no timer until somebody waits again."""
        now_seconds = self._loop.time() + _EARLY_SECONDS
        self.looks_at_seconds = math.inf
        self._timer = None
        for late in [one for one in self.waiting if one.deadline_seconds <= now_seconds]:
            late.fail_late()
        if self.waiting:
            soonest_seconds = min(one.deadline_seconds for one in self.waiting)
            self.look_at(max(soonest_seconds, now_seconds + LOOK_SECONDS))
