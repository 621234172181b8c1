"""Waiting that can be interrupted with a reason: the client left, time is up, the key was revoked.

The request's own task is cancelled only while it waits inside ``Guard.wait``, and the cancellation is turned into the
reason there, so no other await of the request can be hit by it. A real cancellation (the server stops) passes.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection, or stopped reading; never rendered, there is nobody to read it."""


class Guard:
    """The interruptible waits of one request, which are its task's."""

    __slots__ = ("_is_waiting", "_task", "reason")

    def __init__(self, task: "asyncio.Task[Any] | None") -> None:
        self._task = task
        self._is_waiting = False
        self.reason: Exception | None = None

    async def wait(self, awaitable: Awaitable[Result]) -> Result:
        """Await something; raises the reason of an interruption instead, also one that came before."""
        self._is_waiting = True
        try:
            if self.reason is not None:
                _close(awaitable)
                raise self.reason
            return await awaitable
        except asyncio.CancelledError:
            if self.reason is None or self._task is None:
                raise
            self._task.uncancel()
            raise self.reason from None
        finally:
            self._is_waiting = False

    def interrupt(self, reason: Exception) -> None:
        """End the current wait, or the next one, with a reason; the first reason stands."""
        if self.reason is not None:
            return
        self.reason = reason
        if self._is_waiting and self._task is not None:
            self._task.cancel()

    def clear(self) -> None:
        """Forget a reason that has been dealt with."""
        self.reason = None


def _close(awaitable: Awaitable[object]) -> None:
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()
