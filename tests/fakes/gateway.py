"""The gateway under test: the deployed application with every middleware, on a real socket.

``Gateway`` runs it on a thread of this process, so that a test can hand in a faulty file layer and look inside;
``GatewayProcess`` runs ``meterhouse dev`` as a process of its own, which can be killed. Both end with their ``with``.
"""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import msgspec
import openai
import uvloop

from fakes.store import begin_store
from meterhouse.dev import DevServer, bind, ensure_dev_keys, server_config
from meterhouse.gateway import Gateway as Parts
from meterhouse.gateway import Options, open_gateway
from meterhouse.ids import parse_request_id
from meterhouse.keys.service import KeyOrder
from meterhouse.ledger.files import FileLayer
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import Scope
from meterhouse.settings import Environment
from meterhouse.stores import make_folder
from meterhouse.usage import UsageRecord

Result = TypeVar("Result")
START_SECONDS = 90
"""Others may keep the machine busy."""
MESSAGES = [{"role": "user", "content": "Hello"}]

QUICK = {
    "METERHOUSE_SHIP_SECONDS": "0.05",
    "METERHOUSE_PROBE_SECONDS": "600",
    "METERHOUSE_LOG_FORMAT": "json",
    "METERHOUSE_KEY_FAILURE_RATE": "1000000/minute",
    "METERHOUSE_SHUTDOWN_SECONDS": "0.5",
    # It shares its interpreter with the test, which is not what its loop shall be measured by.
    "METERHOUSE_MAX_LAG_SECONDS": "60",
}


def provider_environment(name: str, base_url: str, **more: str) -> dict[str, str]:
    """Return what switches a provider on: an OpenAI-compatible one, or a row's name with another address."""
    stem = f"METERHOUSE_PROVIDER_{name.upper()}_"
    return {
        f"{stem}BASE_URL": base_url,
        f"{stem}API_KEY": "sk-upstream-credential-canary",
        f"{stem}SHOWS_ALL_OUTPUT": "true",
        **more,
    }


class Gateway:
    """The gateway on a thread. ``parts`` is the open composition; touch it only through ``run``."""

    def __init__(
        self,
        data: Path,
        environment: Mapping[str, str] | None = None,
        *,
        files: FileLayer | None = None,
        log: BinaryIO | None = None,
        socket_path: Path | None = None,
    ) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            data: the folder of the ledger.
            environment: settings.
            files: a faulty file layer.
            log: where the log goes, if not beside the folder.
            socket_path: a unix socket on which it listens too, for an nginx in front.
        """
        self.data = data
        self._socket_path = socket_path
        self.environment = {**QUICK, **(environment or {}), "METERHOUSE_DATA": str(data)}
        self._files = files
        self.log_path = data.parent / f"{data.name}.log"
        self._log = log
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._server: DevServer | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.parts: Parts
        self.url = ""
        self.key = ""
        self.admin_key = ""

    @property
    def base_url(self) -> str:
        """What the SDK takes."""
        return f"{self.url}/v1"

    def start(self) -> Self:
        """Start and wait until it serves."""
        if "METERHOUSE_DATABASE_URL" not in self.environment:
            make_folder(self.data)
            begin_store(self.data / "ledger.db")
        self._thread = threading.Thread(target=self._main, name="gateway", daemon=True)
        self._thread.start()
        assert self._started.wait(START_SECONDS), "the gateway did not start"
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop as Ctrl-C does, and raise what went wrong on the way."""
        if self._thread is None or self._server is None:
            return
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the gateway did not stop"
        self._thread = None
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Run a coroutine on the gateway's loop and return its result."""

        async def call() -> Result:
            return await work()

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def call(self, work: Callable[[], Result]) -> Result:
        """Run a function on the gateway's loop and return its result."""

        async def call() -> Result:
            return work()

        return self.run(call)

    # --- what tests do with it

    def new_key(self, limits: str = "", **order: Any) -> str:
        """Issue a key in a project of its own and return its text."""
        return self.new_key_of(limits, **order)[1]

    def new_key_of(self, limits: str = "", **order: Any) -> tuple[str, str]:
        """Issue a key in a project and organization of its own; returns its id and its text."""
        service = self.parts.stores.service

        async def issue() -> tuple[str, str]:
            organization = await service.create_organization("An organization")
            project = await service.create_project(organization.id, "A project")
            own = parse_limits(limits, Scope.KEY, "")
            issued = await service.issue(KeyOrder(name="a key", project_id=project.id, limits=own, **order))
            return issued.key.id, issued.value

        return self.run(issue)

    def set_price(self, provider: str, model: str, input_usd: str, output_usd: str) -> None:
        """Set a price, as an operator does."""
        body = {"provider": provider, "model": model, "input_usd": input_usd, "output_usd": output_usd}
        status, _, answer = self.request("POST", "/admin/prices", body, key=self.admin_key)
        assert status == 201, answer

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """Return the official SDK's client, without retries unless asked for."""
        return openai.OpenAI(base_url=self.base_url, api_key=key or self.key, **{"max_retries": 0, **options})

    def async_client(self, key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """Return the official SDK's asynchronous client, without retries unless asked for."""
        return openai.AsyncOpenAI(base_url=self.base_url, api_key=key or self.key, **{"max_retries": 0, **options})

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one plain HTTP request; returns status, headers in lower case, body. ``key=""`` sends none."""
        return http_request(self.url, method, path, body, key=self.key if key is None else key, headers=headers)

    def chat(self, model: str, *, key: str | None = None, **fields: Any) -> tuple[int, dict[str, str], bytes]:
        """Send one chat completion as plain HTTP."""
        body = {"model": model, "messages": MESSAGES, **fields}
        return self.request("POST", "/v1/chat/completions", body, key=key)

    def records(self, request_id: str, *, wait_seconds: float = 30) -> list[UsageRecord]:
        """Return a request's ledger rows from SQL, waiting until they are shipped; by ``x-request-id``."""
        bare = parse_request_id(request_id)
        assert bare is not None, request_id
        deadline = time.monotonic() + wait_seconds
        while not (found := self.run(lambda: self.parts.stores.ledger.find_records(bare))):
            assert time.monotonic() < deadline, f"no record of {request_id}"
            time.sleep(0.02)
        return found

    def all_records(self) -> list[dict[str, Any]]:
        """Return every ledger row as it stands in SQL, after everything settled so far is shipped."""
        self.settle()
        return read_ledger(self.data)

    def settle(self, *, wait_seconds: float = 30) -> None:
        """Wait until no request is open and every record is in SQL."""
        deadline = time.monotonic() + wait_seconds
        while self.call(lambda: len(self.parts.inference.checkpointer.live)):
            assert time.monotonic() < deadline, "requests are still open"
            time.sleep(0.02)
        self.run(self.parts.records.ship_all)

    def limits(self, key: str) -> list[dict[str, Any]]:
        """Return what ``GET /v1/limits`` says to a key."""
        status, _, body = self.request("GET", "/v1/limits", key=key)
        assert status == 200, body
        data: list[dict[str, Any]] = json.loads(body)["data"]
        return data

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the JSON lines that were logged so far; the last one may still be on its way."""
        whole, _, _ = self.log_path.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines() if line]

    # --- the thread

    def _main(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as failure:  # noqa: BLE001 - handed to the test, whatever it is
            self._failure = failure
        finally:
            self._started.set()

    async def _serve(self) -> None:
        environment = Environment(self.environment)
        settings = environment.settings()
        listener = bind("127.0.0.1", 0)
        self.loop = asyncio.get_running_loop()
        with self.log_path.open("ab", buffering=0) as log:
            options = Options(has_simulator=True, files=self._files)
            async with open_gateway(settings, environment, self._log or log, options) as parts:
                self.parts = parts
                self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                keys = await ensure_dev_keys(parts.stores, settings.data, self.url)
                self.key, self.admin_key = keys.key, keys.admin_key
                self._server = DevServer(server_config(parts), parts)
                self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
                self._started.set()
                await self._server.serve(sockets=[listener, *self._listen_on_path()])

    def _listen_on_path(self) -> list[socket.socket]:
        if self._socket_path is None:
            return []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._socket_path))
        listener.listen(64)
        return [listener]


class GatewayProcess:
    """``meterhouse dev`` as a process; ``launcher`` replaces the command for those who need a faulty disk."""

    def __init__(
        self, data: Path, environment: Mapping[str, str] | None = None, launcher: list[str] | None = None
    ) -> None:
        self.data = data
        self._environment = {**QUICK, **(environment or {})}
        self._launcher = launcher or [str(Path(sys.executable).parent / "meterhouse"), "dev"]
        self.log_path = data.parent / f"{data.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.key = ""
        self.admin_key = ""

    @property
    def base_url(self) -> str:
        """What the SDK takes."""
        return f"{self.url}/v1"

    def start(self) -> Self:
        """Start on a free port and wait until it is ready."""
        dev_env = self.data / "dev.env"
        before = dev_env.stat().st_mtime_ns if dev_env.exists() else 0
        base = {name: value for name, value in os.environ.items() if not name.startswith(("METERHOUSE_", "OPENAI_"))}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._launcher, "--port", str(_free_port()), "--data", str(self.data), "--env-file", "/dev/null"],
                env={**base, **self._environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (dev_env.exists() and dev_env.stat().st_mtime_ns > before and self._is_ready(dev_env)):
            assert self.process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, self.log_path.read_text()
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """``kill -9``."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """Stop as an operator does; returns the exit status."""
        if self.process is None or self.process.poll() is not None:
            return 0 if self.process is None else int(self.process.returncode)
        self.process.terminate()
        return self.process.wait(30)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def request(
        self, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one plain HTTP request."""
        return http_request(self.url, method, path, body, key=self.key if key is None else key)

    def _is_ready(self, dev_env: Path) -> bool:
        values = dict(line.split("=", 1) for line in dev_env.read_text().splitlines() if "=" in line)
        self.key, self.admin_key = values["OPENAI_API_KEY"], values["OPENAI_ADMIN_KEY"]
        self.url = values["OPENAI_BASE_URL"].removesuffix("/v1")
        with suppress(OSError):
            return self.request("GET", "/health/ready")[0] == 200
        return False


def http_request(
    url: str,
    method: str,
    path: str,
    body: object = None,
    *,
    key: str = "",
    headers: Mapping[str, str] | None = None,
    trust: ssl.SSLContext | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Send one HTTP request without the SDK; bytes are sent as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url + path, data=data, method=method)
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=30, context=trust) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def read_ledger(data: Path) -> list[dict[str, Any]]:
    """Read every ledger row from the database file, whether a gateway runs on it or not."""
    import sqlite3  # noqa: PLC0415 - only here

    connection = sqlite3.connect(data / "ledger.db", timeout=10)
    try:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM usage_record ORDER BY request_id, attempt").fetchall()
        return [dict(row) for row in rows]
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
