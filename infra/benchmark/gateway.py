"""Meterhouse as the server under test: in its production form, on PostgreSQL and Redis, or embedded.

Everything is on: key check, four limits, journal with fsync, shipping, metrics, a log line each, traces at 10 %.
In the production form the worker alone has the server's core; its parent, the clerk, PostgreSQL and Redis share the
others.
Invariant: the stores lie in the run's own folder, and end with it.
"""

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from benchmark.database import run_as_owner
from benchmark.servers import (
    HTTP_OK,
    BenchError,
    Cores,
    Server,
    ask,
    find_free_port,
    run_process,
    wait_ready,
)
from benchmark.wire import MODEL
from meterhouse.clerk import NAME as CLERK
from stack import process
from stack.bring import make_keys, start_part
from stack.parts import environment, make_roles, meterhouse, parts, run, write_settings
from stack.place import Place, prepare

CREATED = 201
LIMITS = "requests 60000000/minute; tokens 400000000000/minute; concurrent 100000; spend 1000000 USD/month"
"""Limits that never refuse, so that the meter has its work to do: two rates, a gauge, a budget."""
PRICE = {"provider": "bench", "model": MODEL, "input_usd": "0.15", "output_usd": "0.60"}
STOP_SECONDS = 60
CLERK_SECONDS = 3
"""Longer than the parent takes to start a clerk; there is none when METERHOUSE_CLERK says so."""
STORES = ("postgres", "redis")


@dataclass(frozen=True)
class Gateway(Server):
    """Meterhouse, running; ``pid`` is the process that answers."""

    project_id: str = ""
    place: Place | None = None
    """Where its stores are; None in the embedded form, which is its own store."""
    start_ms: int | None = None
    """From the fork of its worker until that served; None in the embedded form, which has no worker."""
    helpers: Mapping[str, int] = field(default_factory=dict)
    """What works for it in other processes, by name."""
    count: Callable[[], int] = int
    """Counts the ledger's usage records; raises BenchError when it cannot."""
    stop: Callable[[], None] | None = None
    """Ends it and ships what is left in its journals; None in the embedded form."""

    @property
    def database(self) -> Place:
        """The folder of its PostgreSQL; raises BenchError in the embedded form."""
        if self.place is None:
            raise BenchError("this is measured in the production form only: leave --embedded out")
        return self.place


@contextmanager
def run_embedded(cores: Cores, folder: Path, upstream: Server, extra: Mapping[str, str]) -> Iterator[Gateway]:
    """Run ``meterhouse dev``: one process, SQLite, a meter in memory."""
    port, log, data = find_free_port(), folder / "meterhouse.log", folder / "data"
    command = [*meterhouse(), "dev", "--port", str(port), "--data", str(data)]
    # A file of settings that lies in the checkout is somebody else's.
    command += ["--env-file", "/dev/null"]
    with run_process(command, cores.server, log, {**_environment(upstream), **extra}) as running:
        wait_ready(running, port, "/health/ready", log)
        admin_key = str(dotenv_values(data / "dev.env", interpolate=False)["OPENAI_ADMIN_KEY"])
        project_id, key = issue_key(port, admin_key)
        yield Gateway(
            "meterhouse",
            running.pid,
            port,
            f"bench/{MODEL}",
            key,
            project_id=project_id,
            count=lambda: _count_sqlite(data / "ledger.db"),
        )


@contextmanager
def run_production(cores: Cores, folder: Path, upstream: Server, extra: Mapping[str, str]) -> Iterator[Gateway]:
    """Run ``meterhouse serve --workers 1`` on a Redis and a PostgreSQL of its own."""
    port, log = find_free_port(), folder / "meterhouse.log"
    with run_stores(folder) as place:
        command = [*meterhouse(), "serve", "--workers", "1", "--bind", f"127.0.0.1:{port}"]
        command += ["--data", str(place.folder / "gateway"), "--env-file", str(write_settings(place))]
        with run_process(command, cores.server, log, {**_environment(upstream), **extra}) as running:
            wait_ready(running, port, "/health/ready", log)
            project_id, key = issue_key(port, place.secrets["admin_key"])
            worker, clerk = _find_children(running.pid)
            # What the worker inherited stays with it; its parent, which only waits, and the clerk move away.
            for pid in (running.pid, *clerk.values()):
                os.sched_setaffinity(pid, cores.others)
            yield Gateway(
                "meterhouse",
                worker,
                port,
                f"bench/{MODEL}",
                key,
                project_id=project_id,
                place=place,
                start_ms=_read_start(log),
                helpers={**clerk, **{name: place.started[name].pid for name in STORES}},
                count=lambda: _count_postgres(place),
                stop=lambda: _stop(place, running),
            )


@contextmanager
def run_stores(folder: Path) -> Iterator[Place]:
    """Run PostgreSQL and Redis as ``infra/up`` does, with the schema and the first keys, on the cores of this process.

    Raises:
        StackError: One of them is not installed, or does not start.
    """
    place = Place(folder / "stack")
    started = [part for part in parts() if part.name in STORES]
    try:
        # Ports of its own: two of these may run at the same time, or beside a stack.
        prepare(place, {name: find_free_port() for name in STORES})
        for part in started:
            start_part(place, part)
            if part.name == "postgres":
                make_roles(place)
        make_keys(place)
        yield place
    finally:
        for part in started:
            if (running := place.started.get(part.name)) is not None:
                process.tell(running, part.end_signal)
                if not process.await_end(running, part.patience_seconds):
                    process.tell(running, signal.SIGQUIT)
                process.kill(running)


def issue_key(port: int, admin_key: str) -> tuple[str, str]:
    """Set a price for the model and issue a key with limits; raises BenchError when the server refuses."""
    project_id = str(administrate(port, "GET", "/admin/projects", None, admin_key)["data"][0]["id"])
    administrate(port, "POST", "/admin/prices", PRICE, admin_key)
    order = {"name": "bench", "project_id": project_id, "limits": LIMITS}
    return project_id, str(administrate(port, "POST", "/admin/keys", order, admin_key)["value"])


def administrate(port: int, method: str, path: str, body: Any, admin_key: str) -> Any:
    """Send a request to the administration; raises BenchError unless it was done."""
    status, answer = ask(port, method, path, body, admin_key)
    if status not in {HTTP_OK, CREATED}:
        raise BenchError(f"{method} {path} answered {status}: {answer}")
    return answer


def _environment(upstream: Server) -> dict[str, str]:
    return {
        "METERHOUSE_PROVIDER_BENCH_BASE_URL": f"http://127.0.0.1:{upstream.port}/v1",
        "METERHOUSE_PROVIDER_BENCH_API_KEY": "bench",
        "METERHOUSE_LOG_FORMAT": "json",
        "METERHOUSE_OTLP_ENDPOINT": f"http://127.0.0.1:{upstream.port}/v1/traces",
        "METERHOUSE_SIMULATOR": "false",
    }


def _find_children(parent: int) -> tuple[int, dict[str, int]]:
    """Return the worker, and the clerk by its name once it is there: it starts when the worker serves, if at all."""
    give_up_at = time.monotonic() + CLERK_SECONDS
    while True:
        words = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
        names = {int(word): Path(f"/proc/{word}/comm").read_text(encoding="utf-8").strip() for word in words}
        clerks = [pid for pid, name in names.items() if name == CLERK]
        if clerks or time.monotonic() > give_up_at:
            break
        time.sleep(0.05)
    workers = [pid for pid in names if pid not in clerks]
    if len(workers) != 1:
        raise BenchError(f"one worker was expected, there are {len(workers)}")
    return workers[0], {"clerk": clerks[0]} if clerks else {}


def _read_start(log: Path) -> int:
    for line in log.read_bytes().splitlines():
        if b'"event":"worker.started"' in line:
            return int(json.loads(line)["start_ms"])
    raise BenchError(f"no worker said in {log} that it had started")


def _stop(place: Place, running: "subprocess.Popen[bytes]") -> None:
    running.terminate()
    try:
        running.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise BenchError(f"Meterhouse did not end within {STOP_SECONDS} s") from None
    data = place.folder / "gateway"
    words = ["--data", str(data), "--env-file", str(place.folder / "gateway.env")]
    run([*meterhouse(), "ledger", "adopt", str(data / "journals"), *words], environment=environment())


def _count_sqlite(database: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
            return int(connection.execute("SELECT count(*) FROM usage_record").fetchone()[0])
    except sqlite3.Error as error:
        raise BenchError(f"the ledger {database} cannot be read: {error}") from None


def _count_postgres(place: Place) -> int:
    async def count(connection: Any) -> int:
        return int(await connection.fetchval("SELECT count(*) FROM usage_record"))

    return run_as_owner(place, count)
