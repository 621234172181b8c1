"""An answer without a network: what the simulator gives in place of a provider's (``answer.Answer``)."""

import asyncio
from collections.abc import Iterator

import msgspec

from meterhouse.errors import UpstreamDown, UpstreamTimeout
from meterhouse.providers.answer import Take


class SimulatedAnswer:
    """An answer whose parts are made as they are read, each after a pause."""

    retry_after_seconds: float | None = None

    def __init__(self, status: int, content_type: str, parts: Iterator[bytes], pause_seconds: float) -> None:
        self.status = status
        self.content_type = content_type
        self._parts = parts
        self._pause_seconds = pause_seconds
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False

    async def read(self, take: Take | None = None) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the next part, ``b""`` at the end; see ``Answer``."""
        if self._pause_seconds and not self._is_over:
            await self._pause()
        else:
            # Whoever reads an instant answer in a loop must not keep the others waiting.
            await asyncio.sleep(0)
        if self._is_over:
            raise UpstreamDown("The connection was closed by us.")
        return next(self._parts, b"")

    def take_arrived(self) -> bytes:
        """Return nothing: an answer takes its time, or at least a turn of the loop."""
        return b""

    async def read_all(self, limit_bytes: int, *, timeout_seconds: float | None = None) -> bytes:
        """Return the rest of the body; see ``Answer``."""
        parts = []
        try:
            async with asyncio.timeout(timeout_seconds):
                while part := await self.read():
                    parts.append(part)
        except TimeoutError as error:
            raise UpstreamTimeout("The provider simulator did not answer in time.") from error
        finally:
            self.abort()
        body = b"".join(parts)
        if len(body) > limit_bytes:
            raise UpstreamDown(f"The provider simulator answered with more than {limit_bytes} bytes.")
        return body

    def take_whole(self, limit_bytes: int) -> bytes | None:  # noqa: ARG002 - the protocol's own signature
        """Return None: an answer takes its time, or at least a turn of the loop."""
        return None

    def abort(self) -> None:
        """Stop; a reader that waits is woken."""
        self._is_over = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def release(self) -> None:
        """End the answer."""
        self.abort()

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(self._pause_seconds, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None


def refuse(status: int, message: str) -> SimulatedAnswer:
    """Answer with an error in OpenAI's envelope."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return SimulatedAnswer(status, "application/json", iter([msgspec.json.encode({"error": error})]), 0.0)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
