"""Background tasks with an owner: each is referenced while it runs, and awaited when the server stops."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from meterhouse.telemetry.logs import Event, get_logger

RESTART_SECONDS = 1.0


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

    def keep(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a loop for as long as this lives; one that fails is logged and begun again a second later."""
        self.start(self._keep(work))

    async def _keep(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - a loop that stops in silence would stop shipping or renewing
                get_logger().error(Event.TASK_FAILED, exc_info=error)
            await asyncio.sleep(RESTART_SECONDS)

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
