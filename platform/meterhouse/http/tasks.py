"""Background tasks with an owner: each is referenced while it runs, and awaited when the server stops."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from meterhouse.telemetry.logs import Event, get_logger


class Tasks:
    """Starts tasks and keeps them. A task that fails is logged, never lost in silence."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine in the background."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self, *, timeout_seconds: float = 5.0) -> None:
        """Cancel what still runs and wait for it."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout_seconds)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            get_logger().error(Event.TASK_FAILED, exc_info=task.exception())
