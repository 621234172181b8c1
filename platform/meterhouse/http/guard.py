"""Waiting that can be interrupted with a reason: the client left, time is up, the key was revoked.

The request's own task is cancelled only while it waits inside ``Guard.wait``, and the cancellation is turned into the
reason there, so no other await of the request can be hit by it. A real cancellation (the server stops) passes.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection, or stopped reading; never rendered, there is nobody to read it."""


class Guard(msgspec.Struct, eq=False):
    """The interruptible waits of one request, which are its task's."""

    task: Any
    """The ``asyncio.Task`` of the request; None: nobody interrupts it."""
    is_waiting: bool = False
    reason: Exception | None = None
    """Of an interruption that has not been dealt with."""

    async def wait(self, awaitable: Awaitable[Result]) -> Result:
        """Await something; raises the reason of an interruption instead, also one that came before."""
        if self.reason is not None:
            _close(awaitable)
        self.begin()
        try:
            return await awaitable
        except asyncio.CancelledError as error:
            self.explain(error)
            raise
        finally:
            self.is_waiting = False

    def begin(self) -> None:
        """Begin a wait without the coroutine of ``wait``; raises the reason of an interruption that came before.

        Whoever does awaits one thing and nothing else, sets ``is_waiting`` back, and has what is raised meanwhile
        explained. He keeps no reason: it knows his frame.
        """
        if self.reason is not None:
            raise self.reason
        self.is_waiting = True

    def explain(self, error: BaseException) -> None:
        """End a wait that failed; raises the reason of its interruption, if that is why."""
        was_waiting, self.is_waiting = self.is_waiting, False
        if not was_waiting or self.reason is None or self.task is None or not isinstance(error, asyncio.CancelledError):
            return
        self.task.uncancel()
        raise self.reason from None

    def interrupt(self, reason: Exception) -> None:
        """End the current wait, or the next one, with a reason; the first reason stands."""
        if self.reason is not None:
            return
        self.reason = reason
        if self.is_waiting and self.task is not None:
            self.task.cancel()

    def clear(self) -> None:
        """Forget a reason that has been dealt with."""
        self.reason = None


def _close(awaitable: Awaitable[object]) -> None:
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()
