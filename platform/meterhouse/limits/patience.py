"""Waits a bounded time for what somebody else must say, and does not take this loop's own lateness for theirs.

Not here: how late an answer of Redis may be (``limits.lane``).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Bound the body as ``asyncio.timeout`` does, but for time that the loop was too busy to look.

    A timer that is late fires in one turn of the loop with the answers that were in time and nobody had read. So what
    it is late is waited on top, once, and at most ``seconds``.

    Raises:
        TimeoutError: The body was not done in time.
    """
    loop = asyncio.get_running_loop()
    due_seconds = loop.time() + seconds
    async with asyncio.timeout(None) as bound:

        def end() -> None:
            now_seconds = loop.time()
            bound.reschedule(now_seconds + min(now_seconds - due_seconds, seconds))

        timer = loop.call_at(due_seconds, end)
        try:
            yield
        finally:
            timer.cancel()
