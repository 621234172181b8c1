"""When the garbage collector looks at what: at the young as ever, at the old when that holds up nobody.

A look at the old takes as long as there is much of them: a quarter of a second and more where thousands of streams are
open, of which none leaves anything to be collected. Python's own rule takes that look when much was made, which is when
many streams open.
"""

import asyncio
import gc
import time
from collections.abc import Callable

YOUNG = 50_000
"""So many new objects make Python look at the youngest."""
OFTEN = 10
"""As many looks at a younger generation make one at the next (Python's own)."""
NEVER = 1_000_000_000
FEW_REQUESTS = 256
"""With so many open, what they are made of is less than one look at the young is about."""
PAUSE_SECONDS = 5.0
LONGEST_SECONDS = 3_600.0
"""A look that is due waits for few open requests no longer than this."""


def calm_garbage_collector() -> None:
    """Collect rarely, and never what lives as long as the process: most of the p99 was collections (speed.md)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OFTEN, OFTEN)


async def collect_when_calm(count_open: Callable[[], int], now: Callable[[], float] = time.monotonic) -> None:
    """Look at the old about as often as Python would, but while few requests are open, for as long as this runs.

    Args:
        count_open: how many requests are open.
        now: a clock, in seconds.
    """
    gc.set_threshold(YOUNG, NEVER, NEVER)
    due_since: float | None = None
    try:
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            _, young_looks, looks = gc.get_count()
            if young_looks <= OFTEN:
                due_since = None
                continue
            due_since = now() if due_since is None else due_since
            is_late = now() - due_since > LONGEST_SECONDS
            if is_late or count_open() <= FEW_REQUESTS:
                gc.collect(2 if is_late or looks > OFTEN else 1)
    finally:
        gc.set_threshold(YOUNG, OFTEN, OFTEN)
