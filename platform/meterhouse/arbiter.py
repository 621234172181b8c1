"""gunicorn's arbiter with reloads that nobody notices: it starts workers, replaces them, and ends them once.

gunicorn's own ``reload`` tells the old workers to stop as soon as the new ones are forked, waits for them, and
replaces nothing meanwhile; a worker that cannot start ends all the others. Here old workers stop when as many new ones
serve, a killed worker is replaced at once also during a reload, no worker is told to stop twice, and a worker that
cannot start is tried again, ever less often, while the others serve. A worker that has served enough is replaced in the
same way. Beside them runs the clerk (``keeper``), which is none of them and goes last. Not here: what a worker does.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from meterhouse.keeper import Keeper
from meterhouse.settings import SettingsError
from meterhouse.telemetry.logs import Event, get_logger

FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 5.0
EXIT_REFUSED = 2
"""What the process ends with when the operator has to change something."""


class Member(Protocol):
    """What the arbiter knows of a worker; ``worker.FleetWorker`` is one."""

    pid: int
    age: int
    tmp: Any
    is_ready: bool
    """Whether it serves, as far as was seen."""
    is_old: bool
    """Whether it is to go when new ones serve."""
    told_at: float | None
    """When it was told to stop, monotonic seconds."""

    def look(self) -> bool:
        """Ask the process whether it serves."""

    def is_worn(self) -> bool:
        """Ask the process whether it has served enough and is to be replaced."""


class FleetArbiter(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """The parent of the workers. ``prepare`` reads the settings anew at a reload; SettingsError keeps the old ones."""

    WORKERS: dict[int, Member]

    def __init__(self, app: Any, prepare: Callable[[], None], keeper: Keeper, *, can_reload: bool) -> None:
        super().__init__(app)
        self.WORKERS = {}  # gunicorn's is one for the class
        self._prepare = prepare
        self._keeper = keeper
        self._can_reload = can_reload
        self._failures = 0
        self._start_after = 0.0
        self._has_served = False
        self._is_stopping = False

    def reload(self) -> None:
        """Take the settings as they are now, and replace every worker by one that has them."""
        if not self._can_reload:
            get_logger().error(
                Event.SERVER_REFUSED_RELOAD,
                detail="Without METERHOUSE_REDIS_URL old and new workers would each allow whole budgets. Restart.",
            )
            return
        try:
            self._prepare()
        except SettingsError as error:
            get_logger().error(Event.SERVER_REFUSED_RELOAD, detail=str(error))
            return
        self.setup(self.app)
        self._failures, self._start_after = 0, 0.0
        for worker in self.WORKERS.values():
            worker.is_old = True
        self._keeper.replace()

    def manage_workers(self) -> None:
        """Start what is missing, and stop what is old, too many or overdue; the clerk comes when a worker serves."""
        now = time.monotonic()
        self._look()
        fresh = [worker for worker in self.WORKERS.values() if not worker.is_old and worker.told_at is None]
        if len(fresh) < self.num_workers and now >= self._start_after:
            for _ in range(self.num_workers - len(fresh)):
                self.spawn_worker()
        elif len(fresh) >= self.num_workers and all(worker.is_ready for worker in fresh):
            surplus = sorted(fresh, key=lambda worker: worker.age)[: len(fresh) - self.num_workers]
            old = [worker for worker in self.WORKERS.values() if worker.is_old]
            for worker in [*old, *surplus]:
                self.kill_worker(worker.pid, signal.SIGTERM)
        for worker in list(self.WORKERS.values()):
            if worker.told_at is not None and now - worker.told_at > self.cfg.graceful_timeout:
                self.kill_worker(worker.pid, signal.SIGKILL)
        if self._has_served:
            self._keeper.look_after(self._leave)

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a signal; a worker that is stopping is not told so again."""
        worker = self.WORKERS.get(pid)
        if sig == signal.SIGTERM and worker is not None:
            if worker.told_at is not None:
                return
            worker.told_at = time.monotonic()
        super().kill_worker(pid, sig)

    def reap_workers(self) -> None:
        """Take note of workers that ended; one that could not start delays the next attempt."""
        before = dict(self.WORKERS)
        while True:
            try:
                super().reap_workers()
                break
            except HaltServer as refused:
                if not self._has_served and not self._is_stopping:
                    raise HaltServer(refused.reason, EXIT_REFUSED) from None
        for pid in before.keys() - self.WORKERS.keys():
            if not before[pid].is_ready and before[pid].told_at is None:
                self._delay()

    def stop(self, graceful: bool = True) -> None:
        """Stop every worker, and then the clerk, through which they ship to the end."""
        self._is_stopping = True
        super().stop(graceful)
        self._keeper.close()

    def forget_clerk(self) -> None:
        """Let go of the clerk, in a worker that was just forked."""
        self._keeper.forget()

    def _leave(self) -> None:
        """Let go of what is the workers', in a clerk that was just forked: it must not keep their address open."""
        for listener in self.LISTENERS:
            listener.close()
        for worker in self.WORKERS.values():
            worker.tmp.close()

    def _look(self) -> None:
        for worker in self.WORKERS.values():
            if not worker.is_ready and worker.look():
                worker.is_ready = self._has_served = True
                self._failures = 0
            if not worker.is_old and worker.is_worn():
                worker.is_old = True
                get_logger().info(Event.WORKER_WORN, pid=worker.pid)

    def _delay(self) -> None:
        wait_seconds = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._start_after = time.monotonic() + wait_seconds


def mark_ready(descriptor: int) -> None:
    """Say through the file that a worker shares with its arbiter that it serves."""
    os.write(descriptor, b"1")


def mark_worn(descriptor: int) -> None:
    """Say through the same file that a worker that serves is to be replaced."""
    os.write(descriptor, b"2")


def is_marked_ready(descriptor: int) -> bool:
    """Ask whether ``mark_ready`` was called on the file."""
    return os.fstat(descriptor).st_size > 0


def is_marked_worn(descriptor: int) -> bool:
    """Ask whether ``mark_worn`` was called on the file."""
    return os.fstat(descriptor).st_size > 1
