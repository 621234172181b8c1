"""The processes of a run: started on their cores, asked whether they are ready, ended; the two that are no gateway.

The server under test has one core for itself; everything else shares the others.
Invariant: every process that was started is ended. Not here: Meterhouse (``gateway``).
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.wire import MODEL
from stack.parts import environment as stack_environment

ROOT = Path(__file__).resolve().parent.parent.parent
READY_SECONDS = 30
STOP_SECONDS = 15
HTTP_OK = 200


class BenchError(Exception):
    """A process did not do what the benchmark needs; the text says which and why."""


@dataclass(frozen=True)
class Cores:
    """Which core is whose."""

    server: frozenset[int]
    others: frozenset[int]


@dataclass(frozen=True)
class Server:
    """A server that the load generator can ask."""

    name: str
    pid: int
    port: int
    model: str = MODEL
    key: str = "none"


def choose_cores() -> Cores:
    """Give the first usable core to the server, the rest to all else; raises BenchError with fewer than two."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) == 1:
        raise BenchError("two cores are needed: one for the server under test, one for all else")
    return Cores(frozenset(usable[:1]), frozenset(usable[1:]))


def find_free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_process(
    command: list[str], cores: frozenset[int], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command on these cores with its output in a file; terminate it at the end.

    Its environment is this one without the addresses of somebody else's stores.
    """
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**stack_environment(), **(environment or {})},
            )
    finally:
        os.sched_setaffinity(0, own)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(port: int, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
    """Send one request; returns (status, decoded body), (0, None) when nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    except OSError:
        return 0, None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, None


def wait_ready(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    """Wait until the path answers 200; raises BenchError with the end of the log."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ask(port, "GET", path)[0] == HTTP_OK:
            return
        time.sleep(0.05)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise BenchError(f"{' '.join(map(str, process.args))} is not ready:\n{tail}")  # type: ignore[arg-type]


@contextmanager
def run_upstream(cores: Cores, folder: Path, pace: float = 0) -> Iterator[Server]:
    """Run the cheap provider; with a pace its streams give so many tokens a second until they are told to end."""
    port, log = find_free_port(), folder / "upstream.log"
    command = [sys.executable, "-m", "benchmark.upstream", "--port", str(port), "--pace", str(pace)]
    with run_process(command, cores.others, log) as process:
        wait_ready(process, port, "/", log)
        yield Server("direct", process.pid, port)


@contextmanager
def run_pass_through(cores: Cores, folder: Path, upstream: Server) -> Iterator[Server]:
    """Run the bare pass-through."""
    port, log = find_free_port(), folder / "passthrough.log"
    url = f"http://127.0.0.1:{upstream.port}/v1"
    command = [sys.executable, "-m", "benchmark.passthrough", "--port", str(port), "--upstream", url]
    with run_process(command, cores.server, log) as process:
        wait_ready(process, port, "/", log)
        yield Server("pass-through", process.pid, port)


def count_served(upstream: Server) -> int:
    """Ask the provider how many completions it has answered."""
    return int(ask(upstream.port, "GET", "/served")[1]["served"])
