"""How far a streamed answer is. One for each open stream, so that what is empty takes nothing.

Not here: what moves it (``relay``).
"""

import asyncio

import msgspec

from meterhouse.errors import UpstreamError


class Progress(msgspec.Struct):
    """How far a stream is."""

    completion_id: str = ""
    created: int = 0
    seen: set[int] = set()
    finished: set[int] | frozenset[int] = frozenset()
    end: list[bytes] = []
    """Frames since every choice that was seen had finished; released after the barrier."""
    usage_frame: bytes = b""
    tail_bytes: int = 0
    has_ended: bool = False
    is_done: bool = False
    failure: UpstreamError | None = None
    """Raised once what came before it, in the same read, is forwarded."""
    used_tokens: int = 0
    """Output so far, counted so that it can't be too low: a token per byte, or the provider's own count."""
    extension: "asyncio.Task[bool] | None" = None
    is_refused: bool = False
    """The last extension was refused; it is asked for again only when it is needed at once."""

    @property
    def is_finished(self) -> bool:
        """Whether every choice that was seen has its finish reason."""
        return bool(self.finished) and len(self.finished) == len(self.seen)

    def finish(self, index: int) -> None:
        """Note that a choice has its finish reason."""
        if isinstance(self.finished, frozenset):
            self.finished = set()  # made at the end: an empty one takes 216 bytes, for as long as the answer runs
        self.finished.add(index)
