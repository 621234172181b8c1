"""How far a streamed answer is, and what it has said so far, noted in its attempt.

One for each open stream, so that what is empty takes nothing. Not here: what moves it (``relay``).
"""

import asyncio

import msgspec

from meterhouse.errors import UpstreamError
from meterhouse.http.usage_reading import ReadUsage
from meterhouse.request import Attempt
from meterhouse.usage import Usage

KEPT_TEXT_BYTES = 131_072
"""An answer without a usage is counted by so much of its text; the rest is extrapolated, so memory stays flat."""
KEPT_PIECES = 8
"""Of the text that is kept; more are joined, because each takes 50 bytes beside its letters."""


ONLY_FIRST = frozenset({0})
"""The choices of an answer that has one, as nearly all: a set of its own would take 216 bytes of each."""


class Progress(msgspec.Struct):
    """How far a stream is."""

    attempt: Attempt
    completion_id: str = ""
    created: int = 0
    seen: frozenset[int] = frozenset()
    finished: frozenset[int] = frozenset()
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
        return bool(self.finished) and self.finished == self.seen

    def note_text(self, text: str, text_bytes: int, events: int = 1) -> None:
        """Count what the model wrote against what is held, and keep it as long as nobody reports a usage."""
        attempt = self.attempt
        attempt.output_events += events
        attempt.output_bytes += text_bytes
        self.used_tokens += text_bytes
        if attempt.reported is not None:
            attempt.partial, attempt.reported = attempt.reported, None
        if attempt.output_bytes - text_bytes < KEPT_TEXT_BYTES:
            attempt.text.append(text)
            if len(attempt.text) > KEPT_PIECES:
                attempt.text = ["".join(attempt.text)]

    def note_usage(self, read: ReadUsage | None) -> bool:
        """Note a usage, if there is one; says whether it is what will be charged."""
        if read is None:
            return False
        attempt = self.attempt
        attempt.is_suspect = read.is_suspect
        if read.usage is None:
            attempt.known_input_tokens = read.input_tokens
            attempt.known_output_tokens = read.output_tokens
            return False
        # A copy of zeros after real counts is a known quirk, not a correction (wire.md 7, rule 4).
        if read.usage == Usage() and (attempt.reported is not None or attempt.partial is not None):
            return False
        attempt.reported, attempt.partial = read.usage, None
        attempt.text.clear()
        attempt.output_events = attempt.output_bytes = 0
        self.used_tokens = read.usage.output_tokens
        return True
