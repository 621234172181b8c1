"""Processes that outlive the command that starts them: started, found again, and ended.

Invariant: a process is only signalled when it is the one that was started (its number and the moment of its start
agree), or of the group that it left behind. Not here: what the processes are (``parts``).
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
KILL_SECONDS = 5.0


class StackError(Exception):
    """Something outside the code has to change; the text says what."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started: its number, and when it began in ticks since the machine did."""

    pid: int
    began_ticks: int

    @property
    def is_running(self) -> bool:
        """Whether it still is that process, and not a zombie."""
        fields = _stat(self.pid)
        return bool(fields) and fields[0] != "Z" and int(fields[19]) == self.began_ticks

    def orphans(self) -> list[int]:
        """Return what is left of its group when it died without ending them; it led the group and the session."""
        if _stat(self.pid) and not self.is_running and int(_stat(self.pid)[19]) != self.began_ticks:
            return []  # the number was given again, so no group of that number was left
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                fields = _stat(int(entry.name))
                is_ours = fields and fields[0] != "Z" and int(fields[2]) == int(fields[3]) == self.pid
                if is_ours and int(fields[19]) >= self.began_ticks:
                    found.append(int(entry.name))
        return found


def start(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    group: str | None = None,
) -> Started:
    """Start a process of its own session that writes into a log, as another user or of another group where given."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=group or user,
            extra_groups=None if user is None else [],
        )
    fields = _stat(process.pid)
    process.returncode = 0  # it is meant to outlive this command, which would otherwise warn of it
    return Started(process.pid, int(fields[19]) if fields else 0)


def await_ready(started: Started, is_ready: Callable[[], bool], name: str, log: Path, wait_seconds: float) -> None:
    """Wait until it can be used.

    Raises:
        StackError: It ended, or it takes too long; with the end of its log.
    """
    deadline = time.monotonic() + wait_seconds
    while not is_ready():
        if not started.is_running or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise StackError(f"{name} did not start; the end of {log}:\n{tail}")
        time.sleep(POLL_SECONDS)


def tell(started: Started, number: int) -> None:
    """Send a signal to the process itself, if it is still there."""
    if started.is_running:
        with suppress(ProcessLookupError):
            os.kill(started.pid, number)


def await_end(started: Started, wait_seconds: float) -> bool:
    """Wait until it has ended; False when it has not."""
    deadline = time.monotonic() + wait_seconds
    while started.is_running:
        with suppress(ChildProcessError):
            os.waitpid(started.pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def kill(started: Started) -> None:
    """``kill -9`` of the process and of what is left of its group."""
    tell(started, signal.SIGKILL)
    await_end(started, KILL_SECONDS)
    for pid in started.orphans():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_SECONDS
    while started.orphans() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
