"""``meterhouse serve``, ``migrate`` and ``bootstrap`` on real PostgreSQL and Redis: refusals, and how they run."""

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from cli.command import complaint, good, run
from fakes.fleet import PEPPER, ServeProcess
from fakes.gateway import MESSAGES, provider_environment
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream
from meterhouse.keys.secret import make

ADDRESS = ("--bind", "127.0.0.1:0")
GUESSES = 6
"""Failed sign-ins to the administration that the shared workers let an address have, all together."""


@pytest.fixture(scope="module")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def settings(redis_server: RedisServer, migrated_database_url: str) -> dict[str, str]:
    """What ``serve`` needs."""
    return {
        "METERHOUSE_REDIS_URL": redis_server.url,
        "METERHOUSE_DATABASE_URL": migrated_database_url,
        "METERHOUSE_KEY_PEPPER": PEPPER,
    }


@pytest.fixture
def own_fleet(
    tmp_path: Path, redis_server: RedisServer, migrated_database_url: str, up: FakeUpstream
) -> Iterator[ServeProcess]:
    """Two workers for a test that ends them."""
    fleet = ServeProcess(
        tmp_path / "data",
        redis_url=redis_server.url,
        database_url=migrated_database_url,
        environment=provider_environment("fake", up.base_url),
    )
    with fleet as running:
        yield running


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
    postgres_server: PostgresServer,
    up: FakeUpstream,
) -> Iterator[ServeProcess]:
    """Two workers that all other tests share; who replaces them leaves two that serve."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "env").write_text("")
    fleet = ServeProcess(
        folder / "data",
        redis_url=redis_server.url,
        database_url=postgres_server.create_database(),
        environment=provider_environment(
            "fake",
            up.base_url,
            METERHOUSE_SHUTDOWN_SECONDS="30",
            METERHOUSE_ADMIN_FAILURE_RATE=f"{GUESSES}/hour",
        ),
        env_file=folder / "env",
    )
    with fleet as running:
        yield running


class Reader:
    """A stream that is read to its end in the background."""

    def __init__(self, fleet: ServeProcess, model: str, key: str | None = None) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._client = fleet.client(key)
        self._stream = self._client.chat.completions.create(
            model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        self.text = ""
        self.usage: Any = None
        self._take(next(self._stream))
        while not self.text:
            self._take(next(self._stream))
        self.connection = self._stream.response.extensions["network_stream"]
        self.port = self.connection.get_extra_info("socket").getsockname()[1]
        self.request_id = self._stream.response.headers["x-request-id"]
        self._end = self._pool.submit(self._read)

    def end(self, wait_seconds: float = 20) -> BaseException | None:
        """Wait for the end; returns how it failed, None when it was whole."""
        failure = self._end.exception(wait_seconds)
        self._stream.close()
        self._client.close()
        self._pool.shutdown()
        return failure

    def _read(self) -> None:
        for chunk in self._stream:
            self._take(chunk)

    def _take(self, chunk: Any) -> None:
        self.text += "".join(choice.delta.content or "" for choice in chunk.choices)
        self.usage = chunk.usage or self.usage


# --- what is refused, in one line


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"METERHOUSE_DATABASE_URL": ""}, "METERHOUSE_DATABASE_URL"),
        ({"METERHOUSE_DATABASE_URL": "sqlite:///ledger.db"}, "METERHOUSE_DATABASE_URL"),
        ({"METERHOUSE_REDIS_URL": ""}, "METERHOUSE_REDIS_URL"),
        ({"METERHOUSE_KEY_PEPPER": ""}, "METERHOUSE_KEY_PEPPER"),
        ({"METERHOUSE_KEY_PEPPER": "1:short"}, "METERHOUSE_KEY_PEPPER"),
        ({"METERHOUSE_KEY_PEPPER_VERSION": "2"}, "METERHOUSE_KEY_PEPPER_VERSION"),
        ({"METERHOUSE_LEASE_SECONDS": "40"}, "METERHOUSE_LEASE_SECONDS"),
        ({"METERHOUSE_SMTP_HOST": "mail.example"}, "METERHOUSE_SMTP_SENDER"),
        ({"METERHOUSE_CLOUDEVENTS_URL": "nowhere"}, "METERHOUSE_CLOUDEVENTS_URL"),
        ({"METERHOUSE_OTLP_HEADERS": "nothing"}, "METERHOUSE_OTLP_HEADERS"),
        ({"METERHOUSE_OIDC_ISSUER": "https://login.example"}, "METERHOUSE_OIDC_AUDIENCE"),
        ({"METERHOUSE_SWEEP_SECONDS": "31"}, "METERHOUSE_SWEEP_SECONDS"),
        ({"METERHOUSE_GRACEFUL_SECONDS": "244"}, "METERHOUSE_GRACEFUL_SECONDS"),
    ],
)
def test_settings_on_which_several_workers_cannot_serve(
    tmp_path: Path, settings: dict[str, str], changes: dict[str, str], word: str
) -> None:
    assert word in complaint(tmp_path, "serve", *ADDRESS, "--workers", "2", environment={**settings, **changes})


def test_one_worker_that_must_not_overlap_with_another(tmp_path: Path, settings: dict[str, str]) -> None:
    alone = {**settings, "METERHOUSE_REDIS_URL": "", "METERHOUSE_WORKER_REQUESTS": "9"}
    assert "METERHOUSE_WORKER_REQUESTS" in complaint(tmp_path, "serve", *ADDRESS, "--workers", "1", environment=alone)


@pytest.mark.parametrize("address", ["8000", "127.0.0.1:", "127.0.0.1:70000", "unix:", "127.0.0.1:port"])
def test_an_address_that_is_none(tmp_path: Path, settings: dict[str, str], address: str) -> None:
    assert address in complaint(tmp_path, "serve", "--bind", address, environment=settings)


def test_a_taken_port(tmp_path: Path, settings: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = complaint(tmp_path, "serve", "--bind", address, environment=settings)
    assert address in line
    assert "--bind" in line


def test_a_path_where_something_else_lies_or_listens(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "file").write_text("not a socket")
    assert "not a socket" in complaint(tmp_path, "serve", "--bind", "unix:file", environment=settings)
    assert "folder" in complaint(tmp_path, "serve", "--bind", "unix:no/socket", environment=settings)
    long = tmp_path / ("s" * (108 - len(f"{tmp_path}/")))
    assert "has at most 107 bytes, this one has 108" in complaint(
        tmp_path, "serve", "--bind", f"unix:{long}", environment=settings
    )
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "socket"))
        taken.listen()
        assert "another process" in complaint(tmp_path, "serve", "--bind", "unix:socket", environment=settings)


def test_a_database_without_the_schema(tmp_path: Path, settings: dict[str, str], database_url: str) -> None:
    settings["METERHOUSE_DATABASE_URL"] = database_url
    assert "meterhouse migrate" in complaint(tmp_path, "serve", *ADDRESS, environment=settings)


# --- migrate and bootstrap


def test_migrate_brings_the_schema_up_to_date_and_says_so(tmp_path: Path, database_url: str) -> None:
    environment = {"METERHOUSE_DATABASE_URL": database_url}
    behind = run(tmp_path, "migrate", "--check", environment=environment)
    assert (behind.status, behind.err) == (1, "")
    assert "meterhouse migrate" in behind.out
    assert "was brought to" in good(tmp_path, "migrate", environment=environment)
    assert "nothing was to be done" in good(tmp_path, "migrate", environment=environment)
    assert "The schema is at" in good(tmp_path, "migrate", "--check", environment=environment)


def test_migrate_needs_postgresql(tmp_path: Path) -> None:
    assert "METERHOUSE_DATABASE_URL" in complaint(tmp_path, "migrate")
    away = {"METERHOUSE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    for arguments in (["migrate"], ["migrate", "--check"]):
        assert "cannot be reached" in complaint(tmp_path, *arguments, environment=away)


def test_bootstrap_makes_the_first_keys_once(tmp_path: Path, settings: dict[str, str]) -> None:
    arguments = ("bootstrap", "--env-file-out", "keys", "--base-url", "https://llm.example/v1")
    done = good(tmp_path, *arguments, environment=settings)
    written = dict(line.split("=", 1) for line in (tmp_path / "keys").read_text().splitlines())
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert written["OPENAI_BASE_URL"] == "https://llm.example/v1"
    assert f"key:          {written['OPENAI_API_KEY']}" in done
    assert f"admin key:    {written['OPENAI_ADMIN_KEY']}" in done
    assert "keys exists already" in complaint(tmp_path, *arguments, environment=settings)
    assert "meterhouse keys create" in complaint(tmp_path, "bootstrap", environment=settings)
    listed = good(tmp_path, "keys", "list", environment=settings)
    assert listed.count("First key") == 1


# --- how it runs


def test_a_request_is_answered_and_billed(fleet: ServeProcess) -> None:
    status, headers, body = fleet.chat("fake/normal")
    assert status == 200, body
    request_id = headers["x-request-id"].rpartition("_")[2]
    fleet.wait_ledger(lambda rows: [row for row in rows if row["request_id"] == request_id])
    assert [line["workers"] for line in fleet.events("server.started")] == [2]
    assert not (fleet.data / "ledger.db").exists()


def test_a_scrape_counts_all_workers_also_those_that_died(fleet: ServeProcess) -> None:
    def counted() -> float:
        return fleet.metric("meterhouse_requests_total", route="/v1/limits", status_class="2xx")

    for _ in range(20):
        assert fleet.request("GET", "/v1/limits")[0] == 200
    fleet.wait_for(lambda: {counted() for _ in range(8)} == {20})
    victim = fleet.serving()[0]
    fleet.kill(victim)
    fleet.wait_workers(but={victim})
    assert {counted() for _ in range(8)} == {20}
    assert fleet.metric("meterhouse_request_duration_seconds_count", route="/v1/limits") == 20


def test_a_killed_worker_is_replaced_within_two_seconds(fleet: ServeProcess) -> None:
    (victim, other) = fleet.serving()
    fleet.kill(victim)
    fleet.wait_for(lambda: len(fleet.pids()) == 2, 2)
    assert fleet.request("GET", "/health/ready")[0] == 200
    assert other in fleet.wait_workers()


def test_a_stream_outlives_reloads_and_nobody_waits_for_it(fleet: ServeProcess, up: FakeUpstream) -> None:
    reader = Reader(fleet, "fake/normal?tokens=20&gate=5")
    draining = fleet.worker_of(reader.port)
    known = replace_all(fleet, but={draining})
    beat = heart_beat(draining)
    newest = replace_all(fleet, but={draining})
    fleet.kill(next(iter(newest - known)))
    fleet.wait_for(lambda: len(fleet.pids()) == 3, 2)
    fleet.wait_for(lambda: heart_beat(draining) > beat)
    up.release()
    assert reader.end() is None
    assert reader.usage.completion_tokens == 20
    fleet.wait_for(lambda: draining not in fleet.pids())
    assert len(fleet.wait_workers()) == 2


@contextmanager
def asking_without_a_failure(fleet: ServeProcess) -> Iterator[None]:
    """Four clients ask while the body runs; every answer was whole and is in the ledger once."""

    def ask_again_and_again() -> list[int]:
        with fleet.client() as client:
            return [
                client.chat.completions.with_raw_response.create(model="fake/normal", messages=MESSAGES).status_code
                for _ in iter(lambda: is_over, [True])
            ]

    before = len(fleet.read_ledger())
    is_over: list[bool] = []
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_again_and_again) for _ in range(4)]
        try:
            yield
        finally:
            is_over.append(True)
        statuses = [status for answers in asking for status in answers.result(20)]
    assert set(statuses) == {200}
    rows = fleet.wait_ledger(lambda rows: len(rows) - before >= len(statuses))
    assert len(rows) - before == len(statuses)


def test_no_request_fails_during_reloads(fleet: ServeProcess) -> None:
    with asking_without_a_failure(fleet):
        for _ in range(2):
            replace_all(fleet)


@pytest.mark.timeout(300)  # eight workers start one after the other
def test_a_worker_that_has_served_enough_is_replaced_unnoticed(fleet: ServeProcess) -> None:
    fleet.env_file.write_text("METERHOUSE_WORKER_REQUESTS=100\n")
    worn = replace_all(fleet)
    with asking_without_a_failure(fleet):
        fleet.wait_workers(but=worn)
    fleet.env_file.write_text("")
    replace_all(fleet)


def test_a_reload_that_cannot_work_leaves_the_old_workers_alone(fleet: ServeProcess) -> None:
    old = set(fleet.serving())
    for text, event in (
        ("NO ASSIGNMENT = =\n", "server.refused_reload"),
        ("METERHOUSE_PROVIDER_MINE_BASE_URL=not an address\n", "worker.failed"),
    ):
        fleet.env_file.write_text(text)
        fleet.reload()
        assert fleet.wait_event(event)["detail"]
        assert old <= set(fleet.serving())
        assert fleet.chat("fake/normal")[0] == 200
    fleet.env_file.write_text("")
    replace_all(fleet)


def test_on_a_port_nobody_is_believed(fleet: ServeProcess) -> None:
    _, key = fleet.new_key(ip_ranges=["192.0.2.0/24"])
    status, _, _ = fleet.request("GET", "/v1/models", key=key, headers={"X-Forwarded-For": "192.0.2.7"})
    assert status in {401, 403}


def test_guesses_at_the_administration_are_counted_over_all_workers(fleet: ServeProcess) -> None:
    assert fleet.request("GET", "/admin/organizations", key=fleet.admin_key)[0] == 200
    guesses = [make("admin").value for _ in range(2 * GUESSES + 1)]
    statuses = [fleet.request("GET", "/admin/organizations", key=guess)[0] for guess in guesses]
    assert statuses == [401] * GUESSES + [429] * (GUESSES + 1)
    # A key that was good at one of them is let in by whichever gets the request.
    answers = {fleet.request("GET", "/admin/organizations", key=fleet.admin_key)[0] for _ in range(8)}
    assert answers == {200}
    assert fleet.metric("meterhouse_degraded", part="admin") == 0


def test_a_stream_ends_whole_after_sigterm(own_fleet: ServeProcess, up: FakeUpstream) -> None:
    reader = Reader(own_fleet, "fake/normal?tokens=20&gate=5")
    assert own_fleet.process is not None
    own_fleet.process.terminate()
    own_fleet.wait_for(lambda: not accepts(own_fleet))
    up.release()
    assert reader.end() is None
    assert reader.usage.completion_tokens == 20
    assert own_fleet.stop() == 0
    (row,) = own_fleet.read_ledger()
    assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("completed", "reported", 20)
    assert not list(Path("/dev/shm").glob(f"meterhouse-{own_fleet.pid}-*"))


def test_a_stream_that_is_too_long_is_cut_with_an_event_and_a_record(own_fleet: ServeProcess, up: FakeUpstream) -> None:
    reader = Reader(own_fleet, "fake/normal?tokens=20&gate=5")
    began = time.monotonic()
    assert own_fleet.stop() == 0
    assert time.monotonic() - began < 30
    failure = reader.end()
    up.release()
    assert isinstance(failure, openai.APIError)
    assert "shutting down" in failure.message
    (row,) = own_fleet.read_ledger()
    assert row["outcome"] == "cut"


def test_a_request_on_a_connection_that_could_not_be_closed_has_its_patience_too(
    own_fleet: ServeProcess, up: FakeUpstream
) -> None:
    """Its worker had told its client nothing yet, so the client may go on; it is no less served than others."""
    host, _, port = own_fleet.bind.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(streamed(own_fleet.key, "fake/normal?tokens=9&gate=5"))
        data = connection.recv(65_536)
        assert own_fleet.process is not None
        own_fleet.process.terminate()
        own_fleet.wait_event("worker.draining")
        time.sleep(1)
        up.release()
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data += connection.recv(65_536)
        connection.sendall(streamed(own_fleet.key, "fake/paced?tokens=6&duration_ms=1600"))
        data = b""
        while part := connection.recv(65_536):
            data += part
    assert data.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in data.lower()
    assert b"data: [DONE]" in data
    assert own_fleet.stop() == 0
    assert {row["outcome"] for row in own_fleet.read_ledger()} == {"completed"}


def streamed(key: str, model: str) -> bytes:
    body = json.dumps({"model": model, "messages": MESSAGES, "stream": True})
    head = f"Host: gateway\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n{body}".encode()


def test_workers_without_a_parent_drain_and_end(own_fleet: ServeProcess, up: FakeUpstream) -> None:
    reader = Reader(own_fleet, "fake/normal?tokens=20&gate=5")
    workers = own_fleet.pids()
    assert own_fleet.process is not None
    own_fleet.process.send_signal(signal.SIGKILL)
    own_fleet.wait_for(lambda: not accepts(own_fleet))
    up.release()
    assert reader.end() is None
    own_fleet.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert len(own_fleet.read_ledger()) == 1


def test_a_setting_that_only_a_worker_can_refuse_ends_the_first_start(
    tmp_path: Path, redis_server: RedisServer, migrated_database_url: str
) -> None:
    fleet = ServeProcess(
        tmp_path / "data",
        redis_url=redis_server.url,
        database_url=migrated_database_url,
        environment={"METERHOUSE_PROVIDER_MINE_BASE_URL": "not an address"},
    )
    fleet.launch()
    try:
        assert fleet.process is not None
        assert fleet.process.wait(20) == 2
    finally:
        fleet.kill_all()
    assert "mine" in fleet.wait_event("worker.failed")["detail"].lower()
    assert b"Traceback" not in fleet.log_path.read_bytes()


def test_behind_a_unix_socket_the_proxy_is_believed(
    tmp_path: Path, redis_server: RedisServer, migrated_database_url: str, up: FakeUpstream
) -> None:
    path = tmp_path / "gateway.sock"
    fleet = ServeProcess(
        tmp_path / "data",
        redis_url=redis_server.url,
        database_url=migrated_database_url,
        environment=provider_environment("fake", up.base_url),
        bind=f"unix:{path}",
    )
    with fleet:
        assert path.stat().st_mode & 0o777 == 0o660
        organization = _ask(path, fleet.admin_key, "POST", "/admin/organizations", {"name": "One"})[1]
        project = _ask(
            path, fleet.admin_key, "POST", "/admin/projects", {"organization_id": organization["id"], "name": "One"}
        )[1]
        order = {"name": "bound", "project_id": project["id"], "ip_ranges": ["192.0.2.0/24"]}
        key = _ask(path, fleet.admin_key, "POST", "/admin/keys", order)[1]["value"]
        assert _ask(path, key, "GET", "/v1/models", forwarded="192.0.2.7")[0] == 200
        assert _ask(path, key, "GET", "/v1/models", forwarded="198.51.100.1")[0] in {401, 403}
    assert not path.exists()


def test_a_worker_is_replaced_while_postgresql_is_away(
    tmp_path: Path, redis_server: RedisServer, up: FakeUpstream
) -> None:
    with PostgresServer(tmp_path / "postgres") as server:
        fleet = ServeProcess(
            tmp_path / "data",
            redis_url=redis_server.url,
            database_url=server.create_database(),
            environment=provider_environment("fake", up.base_url),
        )
        with fleet:
            (victim, other) = fleet.pids()
            server.stop(immediate=True)
            fleet.kill(victim)
            fleet.wait_for(lambda: len(fleet.pids()) == 2 or fleet.events("worker.failed"))
            assert other in fleet.serving()
            server.start()
            fleet.wait_workers(but={victim})
            assert fleet.chat("fake/normal")[0] == 200


def replace_all(fleet: ServeProcess, *, but: set[int] | None = None) -> set[int]:
    """Reload, and wait until the workers of before are gone, but for some; returns all that are left."""
    old = set(fleet.pids())
    fleet.reload()
    fleet.wait_workers(but=old)
    return set(fleet.wait_for(lambda: left if not (left := set(fleet.pids())) & old - (but or set()) else set()))


def heart_beat(pid: int) -> float:
    """Return when a worker last told its parent that it lives."""
    (path,) = (path for path in Path(f"/proc/{pid}/fd").iterdir() if "wgunicorn" in str(path.readlink()))
    return path.stat().st_mtime


def accepts(fleet: ServeProcess) -> bool:
    host, _, port = fleet.bind.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except ConnectionRefusedError:
        return False
    return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.fspath(self._path))


def _ask(
    path: Path, key: str, method: str, url: str, body: object = None, *, forwarded: str = "127.0.0.1"
) -> tuple[int, dict[str, Any]]:
    connection = _UnixConnection(path)
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "X-Forwarded-For": forwarded,
    }
    connection.request(method, url, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    found: dict[str, Any] = json.loads(answer.read())
    connection.close()
    return answer.status, found
