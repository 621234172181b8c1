"""Carries live events between processes: a Redis channel for each organization, and one for all of them together.

Invariant: a process sends only what it heard that somebody listens to, and a listener has a connection of its own, so
that a slow one holds up nothing else. Not here: what is told (``telemetry.live``).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

from meterhouse.http.tasks import Tasks
from meterhouse.notices import CONNECTED, Notices
from meterhouse.telemetry.live import Batch, Deliver

CHANNEL = "mh:live"
WANTED_NOTICE = "live.wanted"
EVENTS_NOTICE = "live.events"
CONNECT_SECONDS = 2.0
"""How long a listener is kept waiting for Redis before it begins to listen to nothing."""


class LiveChannel:
    """Implements ``telemetry.live.Carrier`` on ``Notices``."""

    def __init__(self, notices: Notices, url: str, tasks: Tasks) -> None:
        self._notices = notices
        self._url = url
        self._tasks = tasks

    async def announce(self, organization_id: str) -> None:
        """Let every process know that somebody listens."""
        await self._notices.publish(WANTED_NOTICE, organization_id)

    async def publish(self, organization_id: str, batch: Batch) -> None:
        """Send to whoever listens."""
        await self._notices.publish(EVENTS_NOTICE, batch, channel=_channel(organization_id))

    @asynccontextmanager
    async def hear(self, organization_id: str, deliver: Deliver, interrupt: Callable[[], None]) -> AsyncIterator[None]:
        """Deliver what comes; a connection that was lost and made again is an interruption."""
        ear = Notices(self._url, channel=_channel(organization_id))

        def connected(_: object) -> None:
            if ear.losses:
                interrupt()

        ear.on(EVENTS_NOTICE, lambda payload: deliver(cast("Batch", payload)))
        ear.on(CONNECTED, connected)
        hearing = self._tasks.start(ear.run())
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(ear.wait_connected(), CONNECT_SECONDS)
            yield
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})
            await ear.close()


def _channel(organization_id: str) -> str:
    return f"{CHANNEL}:{organization_id}"
