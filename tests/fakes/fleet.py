"""``meterhouse serve`` as a tree of processes: a parent and its workers, each of which can be killed or paused.

Migrates and bootstraps on the first start on a database. Ends every process with its ``with``, also when the test
killed the parent. Not here: Redis and PostgreSQL themselves (servers), and the provider (upstream, process).
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import asyncpg
import openai

from fakes.daemon import free_port
from fakes.gateway import MESSAGES, http_request
from fakes.nginx_server import NginxServer
from meterhouse.bootstrap import bootstrap, migrate
from meterhouse.clerk import NAME as CLERK
from meterhouse.settings import Environment
from meterhouse.stores import open_stores

Result = TypeVar("Result")
START_SECONDS = 90
PEPPER = "1:fleet-pepper-of-the-tests-0123456789abcdef"

QUICK = {
    "METERHOUSE_KEY_PEPPER": PEPPER,
    "METERHOUSE_LOG_FORMAT": "json",
    "METERHOUSE_KEY_FAILURE_RATE": "1000000/minute",
    "METERHOUSE_SHIP_SECONDS": "0.05",
    "METERHOUSE_CHECKPOINT_SECONDS": "0.5",
    "METERHOUSE_LEASE_SECONDS": "3",
    "METERHOUSE_RENEW_SECONDS": "0.5",
    "METERHOUSE_SWEEP_SECONDS": "0.5",
    "METERHOUSE_RECONCILE_SECONDS": "1",
    "METERHOUSE_HEARTBEAT_SECONDS": "0.3",
    "METERHOUSE_ADOPT_SECONDS": "0.3",
    "METERHOUSE_KEY_CHECK_SECONDS": "0.5",
    "METERHOUSE_KEY_FRESH_SECONDS": "0.5",
    "METERHOUSE_PROBE_SECONDS": "600",
    "METERHOUSE_SHUTDOWN_SECONDS": "2",
    "METERHOUSE_ADMIN_RATE": "100000/minute",
    "METERHOUSE_ADMIN_FAILURE_RATE": "100000/minute",
}
"""Short leases and short loops, so that what takes a minute in production takes seconds here."""


class ServeProcess:
    """``with ServeProcess(folder, redis_url=..., database_url=...) as fleet:``; ready when it begins."""

    def __init__(
        self,
        data: Path,
        *,
        redis_url: str | None,
        database_url: str | None,
        workers: int = 2,
        environment: Mapping[str, str] | None = None,
        env_file: Path = Path("/dev/null"),
        bind: str = "",
        launcher: list[str] | None = None,
    ) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            data: the folder of the journals; the log stands beside it.
            redis_url: of the meter; None: none.
            database_url: of the ledger; None: none.
            workers: how many.
            environment: more settings, which win over ``QUICK``; for example ``provider_environment(...)``.
            env_file: what is read again at a reload.
            bind: where to listen; empty: a free port of this machine.
            launcher: replaces the command ``meterhouse serve``.
        """
        self.data = data
        self.workers = workers
        self.env_file = env_file
        self.bind = bind or f"127.0.0.1:{free_port()}"
        self.database_url = database_url
        self.log_path = data.parent / f"{data.name}.log"
        urls = {"METERHOUSE_REDIS_URL": redis_url, "METERHOUSE_DATABASE_URL": database_url}
        given = {name: value for name, value in urls.items() if value is not None}
        self.environment = {**QUICK, **given, "METERHOUSE_DATA": str(data), **(environment or {})}
        self.edge: NginxServer | None = None  # who is asked instead, where one stands in front
        self.process: subprocess.Popen[bytes] | None = None
        self.key = ""
        self.admin_key = ""
        self._launcher = launcher or [str(Path(sys.executable).parent / "meterhouse"), "serve"]
        self._seen: set[int] = set()
        self.kills = 0

    # --- its life

    def set_up(self) -> None:
        """Bring the schema up to date and make the first keys; ``start`` does it unless there are keys already."""

        async def prepare() -> None:
            settings = Environment(self.environment).settings()
            await migrate(settings)
            async with open_stores(settings) as stores:
                made = await bootstrap(stores)
            self.key, self.admin_key = made.key, made.admin_key

        run_apart(prepare())

    def launch(self) -> None:
        """Start the processes, without waiting and without keys."""
        base = {name: value for name, value in os.environ.items() if not name.startswith(("METERHOUSE_", "OPENAI_"))}
        command = [
            *self._launcher,
            "--bind",
            self.bind,
            "--workers",
            str(self.workers),
            "--env-file",
            str(self.env_file),
        ]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**base, **self.environment}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def start(self) -> Self:
        """Start and wait until every worker serves."""
        if not self.key:
            self.set_up()
        self.launch()
        self.wait_workers()
        return self

    def stop(self, *, wait_seconds: float = 40) -> int:
        """Stop as an operator does; returns the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            for pid in self._children():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(wait_seconds)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill_all()  # or it would go on trying for as long as the tests run
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.kill_all()

    # --- its processes

    @property
    def pid(self) -> int:
        """The parent's."""
        assert self.process is not None
        return self.process.pid

    def pids(self) -> list[int]:
        """Return the workers that run now, also those that start or drain; oldest first."""
        return [pid for pid in self._children() if _name(pid) != CLERK]

    @property
    def clerk(self) -> int:
        """The clerk that was started last; 0 when there is none."""
        return next((pid for pid in reversed(self._children()) if _name(pid) == CLERK), 0)

    def _children(self) -> list[int]:
        with suppress(FileNotFoundError, ProcessLookupError):
            found = [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
            alive = [pid for pid in found if _state(pid) not in {"", "Z"}]
            self._seen.update(alive)
            return sorted(alive, key=_started)
        return []

    def serving(self) -> list[int]:
        """Return the workers that have begun to serve and not begun to stop; oldest first."""
        told = {line["pid"]: line["event"] for line in self.events("worker.started", "worker.stopped")}
        return [pid for pid in self.pids() if told.get(pid) == "worker.started"]

    def wait_workers(self, count: int | None = None, *, but: set[int] | None = None) -> list[int]:
        """Wait until so many workers serve (None: as many as shall), not counting some; returns them."""
        wanted = self.workers if count is None else count

        def serving() -> list[int]:
            assert self.process is None or self.process.poll() is None, self.log_path.read_text()[-4_000:]
            found = [pid for pid in self.serving() if pid not in (but or set())]
            return found if len(found) >= wanted else []

        return self.wait_for(serving, START_SECONDS)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send one worker (or the parent) a signal: ``kill -9`` unless told otherwise; a killed one is gone then."""
        os.kill(pid, number)
        if number == signal.SIGKILL:
            self.kills += 1
            self.wait_for(lambda: _state(pid) in {"", "Z"}, 10)

    def pause(self, pid: int) -> None:
        """Stop one worker from running, as a host that hangs does."""
        os.kill(pid, signal.SIGSTOP)
        self.wait_for(lambda: _state(pid) == "T", 10)

    def resume(self, pid: int) -> None:
        """Let it run on."""
        os.kill(pid, signal.SIGCONT)

    def kill_all(self) -> None:
        """``kill -9`` of the parent and of every worker, at once; also what a test may have left behind."""
        if self.process is None:
            return
        workers = set(self._children()) | self._seen
        for pid in [self.pid] if self.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
            self.kills += 1
        for pid in workers:
            if _state(pid) not in {"", "Z"} and _is_ours(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.wait_for(lambda: all(_state(pid) in {"", "Z"} or not _is_ours(pid) for pid in workers), 10)
        self._seen.clear()
        for folder in Path("/dev/shm").glob(f"meterhouse-{self.pid}-*"):  # what a killed parent cannot remove
            shutil.rmtree(folder)

    def reload(self) -> None:
        """SIGHUP: new workers with new settings. ``wait_workers(but=...)`` waits for them."""
        os.kill(self.pid, signal.SIGHUP)

    def worker_of(self, client_port: int) -> int:
        """Return the worker that has the connection which comes from a local port of the test."""
        port = int(self.bind.rpartition(":")[2])
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[2].endswith(f":{client_port:04X}"):
                for pid in self.pids():
                    if f"socket:[{fields[9]}]" in links_of(pid):
                        return pid
        raise AssertionError(f"no worker has the connection from port {client_port}")

    def worker_from(self, local_port: int, server_port: int) -> int:
        """Return the worker that made the connection from a local port to a server's; 0 when none of them did."""
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{local_port:04X}") and fields[2].endswith(f":{server_port:04X}"):
                return next((pid for pid in self.pids() if f"socket:[{fields[9]}]" in links_of(pid)), 0)
        return 0

    # --- what tests do with it

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.bind}"

    @property
    def base_url(self) -> str:
        """What the SDK takes."""
        return f"{self.url}/v1"

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """Return the official SDK's client, without retries unless asked for."""
        return openai.OpenAI(base_url=self.base_url, api_key=key or self.key, **{"max_retries": 0, **options})

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one plain HTTP request on a connection of its own; ``key=""`` sends none."""
        key = self.key if key is None else key
        if self.edge is not None:
            return self.edge.request(method, path, body, key=key, headers=headers)
        return http_request(self.url, method, path, body, key=key, headers=headers)

    def chat(self, model: str, *, key: str | None = None, **fields: Any) -> tuple[int, dict[str, str], bytes]:
        """Send one chat completion as plain HTTP."""
        return self.request("POST", "/v1/chat/completions", {"model": model, "messages": MESSAGES, **fields}, key=key)

    def admin(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send one request of an operator, which must succeed."""
        status, _, answer = self.request(method, path, body, key=self.admin_key)
        assert status < 300, answer
        found: dict[str, Any] = json.loads(answer)
        return found

    def new_key(self, limits: str = "", **order: Any) -> tuple[str, str]:
        """Issue a key in a project and organization of its own; returns its id and its text."""
        organization = self.admin("POST", "/admin/organizations", {"name": "An organization"})
        project = self.admin("POST", "/admin/projects", {"organization_id": organization["id"], "name": "A project"})
        issued = self.admin(
            "POST", "/admin/keys", {"name": "a key", "project_id": project["id"], "limits": limits, **order}
        )
        return issued["id"], issued["value"]

    def set_price(self, provider: str, model: str, input_usd: str, output_usd: str) -> None:
        """Set a price, as an operator does; every worker has it within half a minute, or after a start."""
        body = {"provider": provider, "model": model, "input_usd": input_usd, "output_usd": output_usd}
        self.admin("POST", "/admin/prices", body)

    def read_ledger(self) -> list[dict[str, Any]]:
        """Return every ledger row in PostgreSQL, whether the processes run or not."""
        return run_apart(self._read_ledger())

    def wait_ledger(
        self, is_enough: Callable[[list[dict[str, Any]]], object], *, wait_seconds: float = 40
    ) -> list[dict[str, Any]]:
        """Wait until the ledger is as it should be; returns its rows."""
        deadline = time.monotonic() + wait_seconds
        while not is_enough(rows := self.read_ledger()):
            assert time.monotonic() < deadline, f"the ledger has {len(rows)} rows: {rows}"
            time.sleep(0.05)
        return rows

    def metrics(self) -> dict[str, float]:
        """Return what a scrape says, of all workers together: ``name{label="value"}`` to value."""
        status, _, body = self.request("GET", "/metrics")
        assert status == 200
        lines = (line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels; 0 when there are none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = self.metrics().items()
        return sum(v for n, v in samples if n.partition("{")[0] == name and all(word in n for word in wanted))

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the lines that were logged so far, of some events or of all."""
        marks = [f'"event":"{name}"'.encode() for name in names]
        lines = self.log_path.read_bytes().split(b"\n")[:-1]
        return [
            json.loads(line)
            for line in lines
            if line.startswith(b"{") and (not marks or any(mark in line for mark in marks))
        ]

    def wait_event(self, name: str, *, wait_seconds: float = 40) -> dict[str, Any]:
        """Wait until an event was logged; returns the first such line."""
        return self.wait_for(lambda: self.events(name), wait_seconds)[0]

    @staticmethod
    def wait_for(ask: Callable[[], Result], wait_seconds: float = 40) -> Result:
        """Ask until the answer is true; returns it."""
        deadline = time.monotonic() + wait_seconds
        while not (answer := ask()):
            assert time.monotonic() < deadline, f"not seen within {wait_seconds} s"
            time.sleep(0.02)
        return answer

    async def _read_ledger(self) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.database_url)
        try:
            rows = await connection.fetch("SELECT * FROM usage_record ORDER BY request_id, attempt")
        finally:
            await connection.close()
        return [{**row, "request_id": row["request_id"].hex} for row in rows]


def run_apart(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a loop and a thread of its own, so that it does not matter whether the test has a loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _state(pid: int) -> str:
    """Return the letter that ps shows; empty for a process that is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _name(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _started(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def _is_ours(pid: int) -> bool:
    """Whether the process of this number is still a worker of ours: the system may have given the number again."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"meterhouse" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def links_of(pid: int) -> set[str]:
    links = set()
    with suppress(FileNotFoundError, PermissionError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                links.add(str(path.readlink()))
    return links
