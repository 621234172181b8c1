"""The processes of a run: started on their cores, asked whether they are ready, ended.

The server under test has one core for itself; load generator and upstream share the others.
Invariant: every process that was started is ended, and nothing is read from the environment but what Meterhouse needs.
"""

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.wire import MODEL

ROOT = Path(__file__).resolve().parent.parent.parent
READY_SECONDS = 30
STOP_SECONDS = 15
HTTP_OK = 200
CREATED = 201
LIMITS = "requests 60000000/minute; tokens 4000000000/minute; concurrent 10000; spend 1000000 USD/month"
"""Limits that never refuse, so that the meter has its work to do: two rates, a gauge, a budget."""
PRICE = {"provider": "bench", "model": MODEL, "input_usd": "0.15", "output_usd": "0.60"}


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
    """Give the first usable core to the server, the rest to the load; raises BenchError with fewer than two."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) == 1:
        raise BenchError("two cores are needed: one for the server under test, one for the load")
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
    """Run a command on these cores with its output in a file; terminate it at the end."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
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
def run_upstream(cores: Cores, folder: Path) -> Iterator[Server]:
    """Run the cheap provider."""
    port, log = find_free_port(), folder / "upstream.log"
    command = [sys.executable, "-m", "benchmark.upstream", "--port", str(port)]
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


@contextmanager
def run_meterhouse(cores: Cores, folder: Path, upstream: Server) -> Iterator[Server]:
    """Run Meterhouse with everything on: key, limits, journal, ledger, metrics, a log line each, traces."""
    port, log, data = find_free_port(), folder / "meterhouse.log", folder / "data"
    environment = {
        "METERHOUSE_PROVIDER_BENCH_BASE_URL": f"http://127.0.0.1:{upstream.port}/v1",
        "METERHOUSE_PROVIDER_BENCH_API_KEY": "bench",
        "METERHOUSE_LOG_FORMAT": "json",
        "METERHOUSE_OTLP_ENDPOINT": f"http://127.0.0.1:{upstream.port}/v1/traces",
    }
    command = [str(Path(sys.executable).with_name("meterhouse")), "dev", "--port", str(port), "--data", str(data)]
    with run_process(command, cores.server, log, environment) as process:
        wait_ready(process, port, "/health/ready", log)
        settings = read_env_file(data / "dev.env")
        key = issue_key(port, settings["OPENAI_ADMIN_KEY"])
        yield Server("meterhouse", process.pid, port, f"bench/{MODEL}", key)


def read_env_file(path: Path) -> dict[str, str]:
    """Read NAME=value lines, with or without ``export`` and quotes."""
    lines = [line.removeprefix("export ").strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {name: value.strip("'\"") for name, value in pairs}


def issue_key(port: int, admin_key: str) -> str:
    """Set a price for the model and issue a key with limits; raises BenchError when the server refuses."""
    projects = _administrate(port, "GET", "/admin/projects", None, admin_key)["data"]
    _administrate(port, "POST", "/admin/prices", PRICE, admin_key)
    order = {"name": "bench", "project_id": projects[0]["id"], "limits": LIMITS}
    return str(_administrate(port, "POST", "/admin/keys", order, admin_key)["value"])


def _administrate(port: int, method: str, path: str, body: Any, admin_key: str) -> Any:
    status, answer = ask(port, method, path, body, admin_key)
    if status not in {HTTP_OK, CREATED}:
        raise BenchError(f"{method} {path} answered {status}: {answer}")
    return answer


def count_served(upstream: Server) -> int:
    """Ask the provider how many completions it has answered."""
    return int(ask(upstream.port, "GET", "/served")[1]["served"])


def count_rows(database: Path) -> int:
    """Count the ledger's usage records; raises BenchError when it cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
            return int(connection.execute("SELECT count(*) FROM usage_record").fetchone()[0])
    except sqlite3.Error as error:
        raise BenchError(f"the ledger {database} cannot be read: {error}") from None


def wait_rows(database: Path, expected: int, seconds: float = 15) -> int:
    """Wait until the ledger has so many rows, or its count no longer moves for three seconds."""
    deadline = time.monotonic() + seconds
    rows, still_since = -1, time.monotonic()
    while time.monotonic() < deadline:
        before, rows = rows, count_rows(database)
        if rows != before:
            still_since = time.monotonic()
        if rows == expected or time.monotonic() - still_since > 3:  # noqa: PLR2004 - fifteen times the shipping period
            break
        time.sleep(0.1)
    return rows
