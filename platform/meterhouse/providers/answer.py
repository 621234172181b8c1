"""The seam between the hot path and whatever answers it: a provider over the network, or the simulator.

Invariant: an answer is ended exactly once: by whoever reads all of it, by ``release`` or ``abort``; these are
synchronous, so that nothing can cancel them, and harmless when repeated.
"""

from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Protocol

from meterhouse.providers.provider import Endpoint

Take = Callable[[bytes], bool]
"""Gets bytes the moment that they come, in the transport's own callback; says whether it took them. It never raises."""


class Answer(Protocol):
    """The head of an upstream's answer, and its body as it comes."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty when there is none."""
        ...

    @property
    def retry_after_seconds(self) -> float | None:
        """How long the upstream asks to wait; None when it does not."""
        ...

    async def read(self, take: Take | None = None) -> bytes:
        """Return the next bytes as they come, ``b""`` at the end.

        It has no timeout of its own. It may be cancelled and called again without losing a byte. What comes while it
        waits may be given to ``take`` first; what that takes is not returned, and the wait goes on.

        Raises:
            UpstreamDown: the connection broke, the body ended early, or ``abort`` was called.
        """
        ...

    def take_arrived(self) -> bytes:
        """Return what has come of the body and was not read; ``b""`` where ``read`` would wait, or say how it ended."""
        ...

    async def read_all(self, limit_bytes: int, *, timeout_seconds: float | None = None) -> bytes:
        """Return the rest of the body, and end the answer, also where it fails.

        Raises:
            UpstreamDown: as ``read``, or the body is longer than the limit.
            UpstreamTimeout: it took longer than the timeout; the answer is aborted.
        """
        ...

    def take_whole(self, limit_bytes: int) -> bytes | None:
        """Return the rest of the body, and end the answer, if all of it is here and no longer than that.

        None: ``read_all`` has it.
        """
        ...

    def abort(self) -> None:
        """Close the connection at once; a reader that waits is woken with UpstreamDown."""
        ...

    def release(self) -> None:
        """Give the connection back when the body was read to its end, else close it."""
        ...


class Opener(Protocol):
    """What sends a body to an endpoint and returns the answer's head."""

    async def open(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_streamed: bool,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Send a POST and return when the answer's head is there, whatever its status.

        Raises:
            UpstreamDown: not reached, or what came is no usable HTTP.
            UpstreamTimeout: no connection, or no head, in time.
        """
        ...


def parse_retry_after(milliseconds: str | None, value: str | None, now_seconds: float) -> float | None:
    """Return the seconds to wait by ``retry-after-ms``, or by ``retry-after`` in seconds or as a date."""
    for text, scale in ((milliseconds, 1_000.0), (value, 1.0)):
        number = _parse_number(text)
        if number is not None:
            return number / scale
    if value is None:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - now_seconds)


def _parse_number(text: str | None) -> float | None:
    if text is None or not text.replace(".", "", 1).isdigit() or not text.isascii():
        return None
    return float(text)
