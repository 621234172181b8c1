"""How fast a client's connection is read and written: never faster than whoever is on the other side of it.

Not here: who is dropped for reading nothing (``connection``).
"""

import asyncio

from meterhouse.http.signal import Signal


class Flow:
    """Both directions of one connection."""

    __slots__ = ("_transport", "_writable", "is_full", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._writable: Signal | None = None
        """Made by the first who waits."""
        self.read_paused = False
        self.write_paused = False
        self.is_full = False
        """Whether so much waits to be parsed that nothing more is read, whoever asks for it."""

    async def drain(self) -> None:
        """Return once the client has read enough to be written to."""
        if self.write_paused:
            if self._writable is None:
                self._writable = Signal()
            await self._writable.wait()

    def pause_writing(self) -> None:
        """Let who writes wait."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Let who waits write."""
        self.write_paused = False
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set()

    def pause_reading(self) -> None:
        """Read nothing more."""
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless there is no room, or nothing to be read from."""
        if self.read_paused and not self.is_full and not self._transport.is_closing():
            self.read_paused = False
            self._transport.resume_reading()
