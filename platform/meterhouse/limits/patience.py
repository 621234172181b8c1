"""Waits a bounded time for what somebody else must say, and does not take this loop's own lateness for theirs.

Not here: how late an answer of Redis may be (``limits.lane``).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LOOKS = 5
"""How often the clock is looked at in the whole time."""


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Bound the body as ``asyncio.timeout`` does, but for time that the loop was too busy to look.

    A process that was stopped, or gets too little of a processor, is late itself: only what lies between two looks at
    the clock counts, never what a look was late. A timer that is late fires in one turn of the loop with the answers
    that were in time and nobody had read; so what the last look is late is waited on top, at most ``seconds``.

    Raises:
        TimeoutError: The body was not done in time.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as bound:

        def look(looks_left: int, due_seconds: float) -> None:
            now_seconds = loop.time()
            if looks_left:
                look_later(looks_left - 1)
            else:
                bound.reschedule(now_seconds + min(now_seconds - due_seconds, seconds))

        def look_later(looks_left: int) -> None:
            nonlocal timer
            due_seconds = loop.time() + seconds / LOOKS
            timer = loop.call_at(due_seconds, look, looks_left, due_seconds)

        look_later(LOOKS - 1)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
