"""Who waits for a position of a journal to be durable. Not here: when it is, and who makes it so (``journal``)."""

import asyncio
from collections.abc import Callable

from meterhouse.errors import JournalDown


def down(detail: str) -> JournalDown:
    """Return why something is not in the journal, or not durable."""
    return JournalDown(
        "Usage cannot be recorded at the moment. Try again in a few seconds.", detail=f"journal: {detail}"
    )


class Waiters:
    """The barriers that are not answered yet. One that was given up stays until its turn, and harms nobody."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits, and for which position."""
        self.came = 0
        """How many there were, with those that were refused."""
        self.failed = 0
        """How many of them were told that it is not durable."""

    def add(self, position: int, future: asyncio.Future[None]) -> None:
        """Let somebody wait: it is done when everything up to a position is durable, or fails with JournalDown."""
        self.waiting.append((position, future))
        self.came += 1

    def refuse(self, future: asyncio.Future[None], error: JournalDown) -> None:
        """Fail one that need not wait for that."""
        self.came += 1
        self.failed += 1
        future.set_exception(error)

    def wake(self, durable: int) -> None:
        """Answer everybody who waits for no more than this."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            position, future = waiter
            if position > durable:
                self.waiting.append(waiter)
            elif not future.done():
                future.set_result(None)

    def fail(self, make_error: Callable[[], JournalDown]) -> None:
        """Tell everybody why it is not durable, each by an error of its own."""
        waiting, self.waiting = self.waiting, []
        for _, future in waiting:
            if not future.done():
                self.failed += 1
                future.set_exception(make_error())
