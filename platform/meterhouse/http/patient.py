"""How long a connection waits for its client: for a head, for the next request, and until it has read what it was sent.

A connection has one timer, which looks at one deadline. It is not moved with the deadline, so that a busy connection
has one every few seconds, and none for each request. Not here: what is read and answered (``connection``).
"""

import asyncio
import math
from typing import ClassVar

from meterhouse.http.cycle import Cycle
from meterhouse.http.flow import Flow

EARLY_SECONDS = 0.002
"""A timer may be so early: the loop counts milliseconds."""
NEVER = math.inf


class PatientConnection(asyncio.Protocol):
    """A connection as far as it waits."""

    stall_seconds: ClassVar[float] = 30.0
    """How long a client may leave unread what waits for it, once that is more than 64 KB."""

    head_seconds: ClassVar[float] = 10.0
    """How long the head of a request may take, from when the connection was made or the head began."""

    __slots__ = (
        "_deadline",
        "_drop",
        "_is_waiting_for_head",
        "_timer",
        "_timer_at",
        "cycle",
        "flow",
        "loop",
        "transport",
    )

    flow: Flow
    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.cycle: Cycle | None = None
        """The last request that came."""
        self._drop: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = NEVER
        """When the connection is closed, if it is idle then."""
        self._is_waiting_for_head = False
        """Whether the deadline is that of a head."""

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        self.flow.pause_writing()
        self._drop_later()

    def resume_writing(self) -> None:
        """Forget that the client did not read."""
        self.flow.resume_writing()
        if not self.transport.is_closing() and self._drop is not None:
            self._drop.cancel()
            self._drop = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close(self) -> None:
        """Close; what its client has not read yet is not waited for without an end."""
        self.transport.close()
        self._drop_later()

    def _drop_later(self) -> None:
        if self._drop is None:
            self._drop = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def _expect_head(self) -> None:
        """Give the next head its time, from now on unless it has begun before."""
        if self._is_waiting_for_head or self.transport.is_closing():
            return
        self._is_waiting_for_head = True
        self._deadline = self.loop.time() + self.head_seconds
        if self._timer is None or self._timer_at > self._deadline:
            self._set_timer()

    def _set_timer(self) -> None:
        """Look at the deadline when it is there, if the timer would come later or there is none."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self.loop.call_at(self._deadline, self._look)

    def _let_timer_go(self) -> None:
        """Keep no timer that has nothing to look at: it takes half a kilobyte."""
        if self._timer is not None and self._deadline == NEVER:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Close a connection that was idle, or in the head of a request, for as long as it may."""
        self._timer = None
        if self._deadline - self.loop.time() > EARLY_SECONDS:
            if self._deadline < NEVER:
                self._set_timer()
            return
        self._deadline, self._is_waiting_for_head = NEVER, False
        if self._is_idle() and not self.transport.is_closing():
            self._close()

    def _wait_no_more(self) -> None:
        """Let no timer know the connection."""
        for timer in (self._drop, self._timer):
            if timer is not None:
                timer.cancel()
        self._drop = self._timer = None
