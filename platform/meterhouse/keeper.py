"""The parent's side of the clerk: starts it, sees its end, replaces it, and ends it when everybody else has gone.

Parent and clerk have the two ends of a pair of sockets, the lifeline. The clerk beats on it once it serves, and ends
when the parent closes its side, or is no more. gunicorn reaps every child, so that an end is read from the line and
not from ``waitpid``. Whoever is forked later lets go of the line (``forget``), or a clerk would outlive its parent.

Invariant: one clerk at a time is to serve; one that leaves finishes what it is at, for a bounded time. Not here: what a
clerk does (``clerk``).
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from meterhouse.telemetry.logs import Event, get_logger

FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 5.0
STEADY_SECONDS = 10.0
"""Who has lived so long is replaced at once, however often that happens."""
STALL_SECONDS = 30.0
"""A clerk that has not beaten for so long is ended."""
LEAVE_SECONDS = 10.0
"""A clerk that was told to leave is ended after so long."""
BEAT = b"."
EXIT_FAILED = 1
_READ_BYTES = 4_096
_MOST_FAILURES = 10


@dataclass(slots=True)
class _Child:
    """A clerk, as its parent knows it."""

    pid: int
    line: socket.socket
    began: float
    heard_at: float
    is_ready: bool = False
    told_at: float | None = None


class Keeper:
    """Keeps one clerk running. Used by the arbiter, between two of its signals, and never from a handler."""

    def __init__(self, run: Callable[[socket.socket], None], is_wanted: Callable[[], bool]) -> None:
        """Prepare; nothing is started before ``look_after``.

        Args:
            run: what the clerk does, with its end of the lifeline, in its own process; returns when it is to end.
            is_wanted: whether there is to be one, by the settings of the moment.
        """
        self._run = run
        self._is_wanted = is_wanted
        self._children: list[_Child] = []
        self._failures = 0
        self._start_after = 0.0

    def look_after(self, leave_parent: Callable[[], None]) -> None:
        """Take note of who ended or hangs, and start one where none serves.

        Args:
            leave_parent: lets go, in the clerk, of what is its parent's.
        """
        now = time.monotonic()
        for child in list(self._children):
            self._look_at(child, now)
        is_missing = all(child.told_at is not None for child in self._children)
        if not is_missing or now < self._start_after or not self._is_wanted():
            return
        try:
            self._start(leave_parent)
        except OSError as error:  # too many files or processes: that is no reason for the parent to end
            get_logger().error(Event.CLERK_FAILED, detail=f"it cannot be started: {error}")
            self._delay(now)

    def replace(self) -> None:
        """Let the one that serves leave, so that the next has the settings as they are now."""
        self._failures, self._start_after = 0, 0.0
        for child in self._children:
            _tell(child)

    def close(self) -> None:
        """End every clerk; returns when they have gone, or were killed after ``LEAVE_SECONDS``."""
        self.replace()
        give_up_at = time.monotonic() + LEAVE_SECONDS
        while self._children and (left_seconds := give_up_at - time.monotonic()) > 0:
            select.select([child.line for child in self._children], [], [], left_seconds)
            now = time.monotonic()
            for child in [child for child in self._children if not _is_alive(child, now)]:
                self._bury(child, now)
        for child in list(self._children):
            _end(child)
            self._bury(child, give_up_at)

    def forget(self) -> None:
        """Let go of every line, in a process that was forked."""
        for child in self._children:
            child.line.close()
        self._children.clear()

    def _start(self, leave_parent: Callable[[], None]) -> None:
        """Fork a clerk; in there this does not return. Raises OSError when the system has no room for it."""
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                ours.close()
                self.forget()
                leave_parent()
                os.dup(theirs.fileno())  # only the kernel closes this one: the line ends when the process does
                self._run(theirs)
            except BaseException as error:
                # Nothing of what the parent does with an error may happen in here: it would stop the workers.
                get_logger().error(Event.CLERK_FAILED, pid=os.getpid(), exc_info=error)
                raise SystemExit(EXIT_FAILED) from error
            sys.exit(0)
        theirs.close()
        ours.setblocking(False)
        now = time.monotonic()
        self._children.append(_Child(pid, ours, now, now))

    def _look_at(self, child: _Child, now: float) -> None:
        if not _is_alive(child, now):
            self._bury(child, now)
        elif now - child.heard_at > STALL_SECONDS or (
            child.told_at is not None and now - child.told_at > LEAVE_SECONDS
        ):
            _end(child)

    def _bury(self, child: _Child, now: float) -> None:
        self._children.remove(child)
        child.line.close()
        with suppress(ChildProcessError):  # or the arbiter has; it is ending, so that this waits for no more than that
            os.waitpid(child.pid, 0)
        if child.told_at is not None:
            return
        get_logger().error(Event.CLERK_FAILED, pid=child.pid, detail="it ended; workers ship meanwhile")
        if now - child.began >= STEADY_SECONDS:
            self._failures = 0
        is_first = child.is_ready and not self._failures
        self._delay(now)
        if is_first:
            self._start_after = now

    def _delay(self, now: float) -> None:
        """Let the next attempt wait, longer each time."""
        self._start_after = now + min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, _MOST_FAILURES)


def _end(child: _Child) -> None:
    get_logger().error(Event.CLERK_FAILED, pid=child.pid, detail="it hangs, and is ended")
    os.kill(child.pid, signal.SIGKILL)


def _is_alive(child: _Child, now: float) -> bool:
    """Read what a clerk has said since; its end is the end of what it says."""
    try:
        while child.line.recv(_READ_BYTES):
            child.is_ready, child.heard_at = True, now
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _tell(child: _Child) -> None:
    if child.told_at is None:
        child.told_at = time.monotonic()
        with suppress(OSError):  # it has gone already
            child.line.shutdown(socket.SHUT_WR)
