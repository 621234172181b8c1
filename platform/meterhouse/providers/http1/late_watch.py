"""Who waits for a provider, for a connection or for the head of an answer, and until when: one timer for all of them.

A timer of each request's own would be made and taken back a thousand times a second, and hardly ever ring; one of each
connection's own would lie there half a kilobyte long while a stream runs for minutes. Not here: what a late head means
to whoever waits for it (``connection``).
"""

import asyncio
import math
from types import TracebackType
from typing import Protocol

LOOK_SECONDS = 0.05
"""How far apart looks at all of them are at least; who is late is found out at most so much later."""

_EARLY_SECONDS = 0.002
"""A timer may be so early: the loop counts milliseconds."""


class MayBeLate(Protocol):
    """What is waited for."""

    deadline_seconds: float
    """Of the loop's clock."""

    def fail_late(self) -> None:
        """Fail; it is waited for no more."""
        ...


class LateWatch:
    """Fails what is late."""

    __slots__ = ("_loop", "_timer", "looks_at_seconds", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting: dict[MayBeLate, None] = {}
        """Whose deadlines are looked at; what is waited for no more leaves."""
        self.looks_at_seconds = math.inf
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, one: MayBeLate) -> None:
        """Look at the deadline of one from now on, until it leaves ``waiting``."""
        self.waiting[one] = None
        if self.looks_at_seconds > one.deadline_seconds:
            self._look_at(one.deadline_seconds)

    def close(self) -> None:
        """Look no more."""
        self.looks_at_seconds = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at(self, at_seconds: float) -> None:
        """Look sooner than was planned."""
        self.close()
        self.looks_at_seconds = at_seconds
        self._timer = self._loop.call_at(at_seconds, self._look)

    def _look(self) -> None:
        """Fail what is late; with nobody left there is no timer until somebody waits again."""
        now_seconds = self._loop.time() + _EARLY_SECONDS
        self.looks_at_seconds = math.inf
        self._timer = None
        for late in [one for one in self.waiting if one.deadline_seconds <= now_seconds]:
            late.fail_late()
        if self.waiting:
            soonest_seconds = min(one.deadline_seconds for one in self.waiting)
            self._look_at(max(soonest_seconds, now_seconds + LOOK_SECONDS))


class Patience:
    """Ends with TimeoutError what a task does within it once the deadline has passed, as ``asyncio.timeout`` does.

    That makes a timer and two coroutines each time.
    """

    __slots__ = ("_cancelling", "_is_late", "_task", "_watch", "deadline_seconds")

    def __init__(self, watch: LateWatch, deadline_seconds: float) -> None:
        self.deadline_seconds = deadline_seconds
        self._watch = watch
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._is_late = False

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task()
        assert task is not None, "only a task can be ended"
        self._cancelling = task.cancelling()
        self._watch.watch(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.waiting.pop(self, None)
        task, self._task = self._task, None
        if not self._is_late or task is None:
            return
        # Where somebody else has cancelled the task as well, that is what it ends by.
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def fail_late(self) -> None:
        """End what is waited for."""
        self._watch.waiting.pop(self, None)
        self._is_late = True
        if self._task is not None:
            self._task.cancel()
