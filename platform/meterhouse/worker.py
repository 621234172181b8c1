"""One worker process of ``meterhouse serve``: opens a gateway of its own, serves, drains, closes.

Invariant: from the first moment to the last the arbiter hears from it once a second, also while it drains; and what it
admitted is settled, shipped or in the journal when it ends. Nothing is opened before the fork. Not here: when workers
start and stop (``arbiter``), and what is checked before there are any (``serve``).
"""

import asyncio
import logging
import math
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
import uvloop
from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from meterhouse.arbiter import is_marked_ready, is_marked_worn, mark_ready, mark_worn
from meterhouse.dev import server_config
from meterhouse.errors import GatewayError, StoreDown
from meterhouse.garbage import calm_garbage_collector, collect_when_calm
from meterhouse.gateway import Gateway, Options, open_gateway
from meterhouse.http.connection import Connection, bound_unread
from meterhouse.http.tasks import Tasks
from meterhouse.process import keep_buffers
from meterhouse.settings import SettingsError
from meterhouse.telemetry.logs import Event, get_logger

BEAT_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15
"""Idle connections are closed after so long: longer than nginx keeps them, which is 5 s, so that nginx closes first."""
IDLE_SECONDS = 6.0
"""How long a draining worker keeps a connection that is idle: who closes it after 5 s never meets a closed one."""
CANCEL_SECONDS = 5.0
"""How long after the streams were cut a request that is still there is cancelled."""
TICK_SECONDS = 0.05
NANOS_PER_SECOND = 1_000_000_000
WARM_TRIES = 2
WARM_PAUSE_SECONDS = 1.0
NO_KEY = "nokey"
"""An id that no key has."""
EXIT_FAILED = 1


class FleetServer(uvicorn.Server):
    """uvicorn, which leaves the signals to the worker and drains without breaking any request."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._on_started = on_started
        self.patience_seconds = gateway.settings.shutdown_seconds
        """How long running streams may go on once told to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal: the worker does, from before this serves until after the gateway is closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and say so."""
        for listener in sockets or ():
            bound_unread(listener)
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing, let running answers end, close idle connections, then end what still runs.

        An answer on an open connection says ``Connection: close``, but one that had begun cannot, so that its
        connection takes one more request. Each request has its patience from when it was told to stop or came; streams
        that are longer end with an error event and an exact record.
        """
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        self._gateway.end_watching()
        get_logger().info(Event.WORKER_DRAINING, pid=os.getpid(), requests=len(self.server_state.tasks))
        began = newest = time.monotonic()
        while self.server_state.connections or self.server_state.tasks:
            now = time.monotonic()
            is_late = now - began >= self.patience_seconds
            newest = max(newest, self._gateway.newest_call_ns / NANOS_PER_SECOND)
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.drain()
                    idle_seconds = CANCEL_SECONDS / 2 if is_late else IDLE_SECONDS
                    connection.release(min(idle_seconds, self.patience_seconds))
            if is_late:
                self._gateway.cut_streams(before_ns=int((now - self.patience_seconds) * NANOS_PER_SECOND))
            if now - newest >= self.patience_seconds + CANCEL_SECONDS:
                self._cancel()
                break
            await asyncio.sleep(TICK_SECONDS)

    def _cancel(self) -> None:
        get_logger().error(Event.WORKER_CANCELLED_REQUESTS, requests=len(self.server_state.tasks))
        for task in self.server_state.tasks:
            task.cancel(msg="the server stops")
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.transport.abort()


class FleetWorker(UvicornWorker):  # type: ignore[misc]  # it has no types
    """A worker as gunicorn runs it. ``app`` is serve's ``Application``, which holds the settings."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        # The parent class takes these for handlers that gunicorn would have; ours hang on the root.
        logging.getLogger("uvicorn.error").propagate = True
        self.is_ready = self.is_old = False
        self.made_at = time.monotonic()
        """In the arbiter, right before the fork."""
        self.told_at: float | None = None
        self._server: FleetServer | None = None
        self._is_told = False

    def look(self) -> bool:
        """Ask the process whether it serves; in the arbiter."""
        return is_marked_ready(self.tmp.fileno())

    def is_worn(self) -> bool:
        """Ask the process whether it is to be replaced; in the arbiter."""
        return is_marked_worn(self.tmp.fileno())

    def run(self) -> None:
        """Serve until told to stop; the last thing that the process does."""
        keep_buffers()
        try:
            uvloop.run(self._serve())
        except SettingsError as error:
            get_logger().error(Event.WORKER_FAILED, detail=str(error))
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        except GatewayError as error:
            get_logger().error(Event.WORKER_FAILED, detail=error.message, cause=error.detail)
            sys.exit(EXIT_FAILED)

    async def _serve(self) -> None:
        self._take_signals()
        beats = Tasks()
        beats.keep(self._beat)
        try:
            options = Options(has_simulator=self.app.settings.simulator is True, clerk=self.app.clerk_path)
            async with open_gateway(self.app.settings, self.app.environment, sys.stderr.buffer, options) as gateway:
                await _warm(gateway)
                if not self._is_told:
                    await self._answer(gateway)
        finally:
            await beats.close()

    async def _answer(self, gateway: Gateway) -> None:
        """Serve requests until told to stop, and drain."""
        config = server_config(gateway, believes_proxy=self.app.is_behind_proxy)
        config.timeout_keep_alive = KEEP_ALIVE_SECONDS
        config.backlog = self.cfg.backlog
        self._server = FleetServer(config, gateway, self._say_ready)
        calm_garbage_collector()
        gateway.health.metrics.join(lambda: self.app.board.read_others(self.age))
        sharing = Tasks()
        sharing.keep(lambda: self._share(gateway))
        requests = self._server.server_state.tasks
        sharing.keep(lambda: collect_when_calm(lambda: len(requests)))
        try:
            await self._server.serve(sockets=self.sockets)
        finally:
            await sharing.close()
            self._publish(gateway)
        get_logger().info(Event.WORKER_STOPPED, pid=self.pid)

    def _say_ready(self) -> None:
        mark_ready(self.tmp.fileno())
        self.notify()
        get_logger().info(Event.WORKER_STARTED, pid=self.pid, start_ms=round((time.monotonic() - self.made_at) * 1000))

    def _take_signals(self) -> None:
        """SIGTERM drains; SIGINT and SIGQUIT also end the running streams now. Each may come again and again."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, False)
        loop.add_signal_handler(signal.SIGINT, self._stop, True)
        loop.add_signal_handler(signal.SIGQUIT, self._stop, True)

    def _stop(self, is_urgent: bool) -> None:
        self._is_told = True
        if self._server is not None:
            self._server.should_exit = True
            if is_urgent:
                self._server.patience_seconds = 0.0

    async def _beat(self) -> None:
        """Let the arbiter know that the loop runs; without an arbiter nobody replaces this process, so it drains."""
        while True:
            self.notify()
            if os.getppid() != self.ppid:
                self._stop(is_urgent=False)
            await asyncio.sleep(BEAT_SECONDS)

    async def _share(self, gateway: Gateway) -> None:
        """Let the other workers know the figures of this one, and ask to be replaced after enough requests."""
        assert self._server is not None
        most = _draw_requests(gateway.settings.worker_requests)
        while True:
            self._publish(gateway)
            if self._server.server_state.total_requests >= most:
                mark_worn(self.tmp.fileno())
                self.notify()  # writing has set the time by another clock
                most = math.inf
            await asyncio.sleep(BEAT_SECONDS)

    def _publish(self, gateway: Gateway) -> None:
        with suppress(OSError):  # a full /dev/shm shall not keep a worker from serving
            self.app.board.write(self.age, gateway.health.metrics.snapshot())


def _draw_requests(requests: int | None) -> float:
    """Return after how many requests to go: up to a tenth more than set, so that workers do not go together."""
    return math.inf if requests is None else requests + random.randint(0, requests // 10)  # noqa: S311 - spreads load


async def _warm(gateway: Gateway) -> None:
    """Do what the first requests would wait for, while others still answer: vocabulary and connections."""
    await gateway.inference.counter.warm()
    for _ in range(WARM_TRIES):
        try:
            await gateway.keyring.find_live(NO_KEY)
        except StoreDown:
            await asyncio.sleep(WARM_PAUSE_SECONDS)
        else:
            return
