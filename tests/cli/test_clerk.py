"""The clerk beside a worker of ``meterhouse serve``, on real PostgreSQL and Redis: killed, spoken to, told to end.

One worker that all share; whoever takes its clerk away leaves it with another one. At the end the server is told to
stop. Not here: what the two say to each other (``tests/unit/test_desk``), and what takes long
(``tests/failure/matrix/test_clerk``).
"""

import os
import pwd
import signal
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fakes.fleet import ServeProcess, run_apart
from fakes.gateway import provider_environment
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream
from meterhouse.clerk import NICENESS
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.rebuild import Difference

BACK_SECONDS = 2


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, postgres_server: PostgresServer
) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("clerk")
    (folder / "env").write_text("")
    with FakeUpstream() as upstream:
        fleet = ServeProcess(
            folder / "data",
            redis_url=redis_server.url,
            database_url=postgres_server.create_database(),
            workers=1,
            environment=provider_environment("fake", upstream.base_url),
            env_file=folder / "env",
        )
        with fleet as running:
            yield running
            check_end(running)


def check_end(fleet: ServeProcess) -> None:
    """Told to stop, the worker ships what it has, through a clerk that goes after it; nothing is left of either."""
    clerk = wait_clerk(fleet)
    asked = {fleet.chat("fake/normal")[1]["x-request-id"].rpartition("_")[2] for _ in range(5)}
    assert fleet.stop() == 0
    assert asked <= {row["request_id"] for row in fleet.read_ledger()}
    ends = [(line["event"], line["pid"]) for line in fleet.events("worker.stopped", "clerk.stopped", "server.stopped")]
    assert [name for name, _ in ends] == ["worker.stopped", "clerk.stopped", "server.stopped"]
    assert ends[1][1] == clerk
    assert not Path(f"/proc/{clerk}").exists()
    assert not list(Path("/dev/shm").glob(f"meterhouse-{fleet.pid}-*"))


def written(fleet: ServeProcess, by: str) -> float:
    return fleet.metric("meterhouse_shipped_batches_total", by=by)


def wait_shipped(fleet: ServeProcess, by: str) -> None:
    """Wait until one more batch was written by the clerk or by the worker."""
    before = written(fleet, by)
    fleet.wait_for(lambda: written(fleet, by) > before)


def ship(fleet: ServeProcess, by: str) -> None:
    """Ask until that is so."""
    before = written(fleet, by)
    fleet.wait_for(lambda: fleet.chat("fake/normal")[0] == 200 and written(fleet, by) > before)


def wait_clerk(fleet: ServeProcess, *, but: int = 0) -> int:
    """Wait until another clerk than one serves; returns it."""

    def serving() -> int:
        started = {line["pid"] for line in fleet.events("clerk.started")}
        return fleet.clerk if fleet.clerk in started - {but} else 0

    return fleet.wait_for(serving)


@contextmanager
def load(fleet: ServeProcess) -> Iterator[None]:
    """Two clients ask while the body runs; every answer is in the ledger, and in its sums once."""

    def ask_on() -> set[str]:
        ids = set()
        while not is_over:
            status, headers, body = fleet.chat("fake/normal")
            assert status == 200, body
            ids.add(headers["x-request-id"].rpartition("_")[2])
        return ids

    is_over: list[bool] = []
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask_on) for _ in range(2)]
        try:
            yield
        finally:
            is_over.append(True)
        asked = set().union(*(ids.result(20) for ids in asking))
    fleet.wait_ledger(lambda rows: asked <= {row["request_id"] for row in rows})
    assert run_apart(compare_sums(fleet.database_url)) == []


async def compare_sums(url: str) -> list[Difference]:
    engine = open_engine(url)
    try:
        return await LedgerStore(engine).rebuild_check()
    finally:
        await close(engine)


def place(fleet: ServeProcess) -> Path:
    (path,) = Path("/dev/shm").glob(f"meterhouse-{fleet.pid}-*/clerk.sock")
    return path


def test_what_the_clerk_ships_is_in_the_ledger_once(fleet: ServeProcess) -> None:
    wait_clerk(fleet)
    with load(fleet):
        wait_shipped(fleet, "clerk")


def test_it_goes_behind_whoever_answers_requests(fleet: ServeProcess) -> None:
    (worker,) = fleet.pids()
    least = 19
    niceness = min(os.getpriority(os.PRIO_PROCESS, worker) + NICENESS, least)
    assert os.getpriority(os.PRIO_PROCESS, wait_clerk(fleet)) == niceness


def test_a_killed_clerk_loses_and_doubles_nothing_and_is_back_soon(fleet: ServeProcess) -> None:
    victim = wait_clerk(fleet)
    with load(fleet):
        wait_shipped(fleet, "clerk")
        fleet.kill(victim)
        fleet.wait_for(lambda: fleet.clerk not in {0, victim}, BACK_SECONDS)
        wait_shipped(fleet, "clerk")
    assert victim in {line["pid"] for line in fleet.events("clerk.failed")}


def test_nobody_else_can_speak_to_it_and_garbage_does_not_end_it(fleet: ServeProcess) -> None:
    clerk, path = wait_clerk(fleet), place(fleet)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    if os.geteuid() == 0:  # the superuser may do everything; somebody else may not even see it
        assert run_as_nobody(path) == "PermissionError"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(path))
        stranger.sendall(b"\xff" * 64)
        stranger.settimeout(20)
        with suppress(ConnectionResetError):  # the rest of what was said is not read
            while stranger.recv(64):
                pass
    ship(fleet, "clerk")
    assert fleet.clerk == clerk


def run_as_nobody(path: Path) -> str:
    """Return how somebody else fails to connect; empty when he does not."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        failure = ""
        os.setuid(pwd.getpwnam("nobody").pw_uid)
        try:
            socket.socket(socket.AF_UNIX).connect(str(path))
        except OSError as error:
            failure = type(error).__name__
        os.write(writing, failure.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        told = answer.read()
    os.waitpid(pid, 0)
    return told


def test_a_signal_to_the_whole_group_does_not_end_it_before_the_workers(fleet: ServeProcess) -> None:
    clerk = wait_clerk(fleet)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(clerk, number)
    ship(fleet, "clerk")
    assert fleet.clerk == clerk
