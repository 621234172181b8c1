"""A real server as a process of a test: started, paused, killed, and never left behind.

Invariant: when the process that started it ends, in whatever way (``kill -9`` too), a guard kills the server and its
children and removes what it was told to remove. Not here: what the server is (servers).
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PORTS = range(15_000, 22_000)
"""Below what the kernel gives to outgoing connections, and so that a port + 10,000 is as well."""
START_SECONDS = 30.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.005

# Reads until it is told that all is well (a line), or its pipe is closed because whoever held it has died.
_GUARD = """
read -r line && exit 0
kill -STOP "$1"
for stat in /proc/[0-9]*/stat; do
  read -r pid name state parent rest <"$stat" && [ "$parent" = "$1" ] && kill -KILL "$pid"
done
kill -KILL "$1"
shift
rm -rf -- "$@"
"""


class MissingServerError(RuntimeError):
    """A program that the tests need is not installed; the message names the package."""


def find_program(name: str, package: str, folders: Sequence[str] = ()) -> str:
    """Return the path of a program; raises MissingServerError."""
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin"]))
    if not found:
        raise MissingServerError(f"{name} is not installed, and the tests need it (Debian: apt install {package})")
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, and that no outgoing connection will be given."""
    for port in random.SystemRandom().sample(PORTS, 200):
        if is_free(port) and is_free(port + 10_000):
            return port
    raise OSError("no free port found in 200 tries")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(predicate: Callable[[], object], what: str, timeout_seconds: float = START_SECONDS) -> None:
    """Block until the predicate holds; raises AssertionError that says what was waited for."""
    deadline = time.monotonic() + timeout_seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_seconds} s"
        time.sleep(POLL_SECONDS)


@dataclass
class Daemon:
    """One server process.

    Args:
        command: what to start; it stays in the foreground.
        log_path: where its output goes.
        environment: variables on top of those of this process.
        user: whom it runs as, if that is someone else.
        doomed: the folders that the guard removes when this process has died.
    """

    command: Sequence[str]
    log_path: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    doomed: Sequence[Path] = ()
    _process: subprocess.Popen[bytes] | None = None
    _guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process, "the server is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, is_ready: Callable[[], object], timeout_seconds: float = START_SECONDS) -> Self:
        """Start it and wait until it is ready; raises AssertionError with its log if it is not."""
        assert not self.is_running, "the server is running already"
        self.forget()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd="/",
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
            )
        guarded = ["/bin/sh", "-c", _GUARD, "guard", str(self._process.pid), *map(str, self.doomed)]
        self._guard = subprocess.Popen(
            guarded, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            if not self.is_running or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self.command[0]} did not start:\n{self.log()}")
            time.sleep(POLL_SECONDS)
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal and wait; a server that does not go is killed, and that is an AssertionError."""
        if not self.is_running:
            self.forget()
            return
        self.resume()
        os.kill(self.pid, number)
        assert self._process
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.command[0]} did not stop:\n{self.log()}") from None
        self.forget()

    def kill(self) -> None:
        """SIGKILL it and all its children at once; returns when none of them is left."""
        if self.is_running:
            # Stopped first, so that it cannot see its children die, nor make another one.
            os.kill(self.pid, signal.SIGSTOP)
            children = children_of(self.pid)
            send([*children, self.pid], signal.SIGKILL)
            assert self._process
            self._process.wait()
            wait_until(lambda: not any(map(is_alive, children)), "the end of killed children", STOP_SECONDS)
        self.forget()

    def pause(self) -> None:
        """SIGSTOP it and its children: connections stay, new ones are taken by the kernel, nothing is answered."""
        send([self.pid, *children_of(self.pid)], signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT it and its children."""
        send([*children_of(self.pid), self.pid], signal.SIGCONT)

    def log(self) -> str:
        """Return the last of what it said."""
        return self.log_path.read_text(errors="replace")[-4000:]

    def forget(self) -> None:
        """Let go of a process that has ended, and tell the guard that all is well."""
        if self._process:
            self._process.wait()
            self._process = None
        if self._guard:
            with contextlib.suppress(BrokenPipeError):
                self._guard.communicate(b"all is well\n")
            self._guard = None


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes that this one started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether it runs; what has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
