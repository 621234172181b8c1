"""``meterhouse tail`` shows the requests of every worker as they run, and finds the server again when it was away."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from api.live.watcher import Watcher
from fakes.fleet import ServeProcess

TAIL = [str(Path(sys.executable).parent / "meterhouse"), "tail"]
PACED = "fake/normal?tokens=20&duration_ms=1300"


class Tail:
    """A tail that runs, and what it has said so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        self.process = process
        self._path = path

    def text(self) -> str:
        """What it has said."""
        return self._path.read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """What it has said, line by line, with ``--json``."""
        return [json.loads(line) for line in self.text().split("\n")[:-1]]

    def wait_for(self, predicate: Callable[[], Any], seconds: float = 15) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := predicate()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)
        return found

    def wait_finished(self, ids: set[str]) -> None:
        self.wait_for(lambda: ids <= {e.get("request_id") for e in self.events() if e["type"] == "request.finished"})


@contextmanager
def tail(tmp_path: Path, fleet: ServeProcess, *words: str, key: str, stdout: int | None = None) -> Iterator[Tail]:
    path = tmp_path / "said"
    base = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment = {**base, "OPENAI_BASE_URL": fleet.base_url, "OPENAI_ADMIN_KEY": key, "PYTHONUNBUFFERED": "1"}
    with path.open("wb") as file:
        process = subprocess.Popen(
            [*TAIL, *words], env=environment, stdout=file if stdout is None else stdout, stderr=file, cwd=tmp_path
        )
    try:
        yield Tail(process, path)
    finally:
        process.terminate()
        process.wait(10)


def wait_heard(fleet: ServeProcess, running: Tail) -> None:
    """Ask until a request is heard of: then every worker knows that somebody listens."""
    asked: set[str] = set()

    def ask() -> bool:
        asked.add(fleet.chat("fake/normal")[1]["x-request-id"])
        time.sleep(0.1)
        return any(request_id in running.text() for request_id in asked)

    running.wait_for(ask)


def test_it_shows_what_all_workers_do(fleet: ServeProcess, tmp_path: Path) -> None:
    with tail(tmp_path, fleet, "--json", key=fleet.admin_key) as running:
        wait_heard(fleet, running)
        ids = {fleet.chat(model, stream=True)[1]["x-request-id"] for model in ("fake/normal", PACED) for _ in range(4)}
        running.wait_finished(ids)
        mine = [event for event in running.events() if event.get("request_id") in ids]
    kinds = [event["type"] for event in mine]
    assert (kinds.count("request.started"), kinds.count("request.finished")) == (8, 8)
    assert kinds.count("request.progress") >= 3


def test_a_listener_hears_of_requests_at_both_workers(fleet: ServeProcess) -> None:
    pids = set()
    with Watcher(fleet.url, "/v1/live", fleet.key) as watcher:
        while len(pids) < 2:
            client = fleet.client()
            stream = client.chat.completions.create(
                model="fake/normal?tokens=5&duration_ms=100", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            port = stream.response.extensions["network_stream"].get_extra_info("socket").getsockname()[1]
            pids.add(fleet.worker_of(port))
            request_id = stream.response.headers["x-request-id"]
            list(stream)
            client.close()
            watcher.wait_finished(request_id)
    assert len(pids) == 2


def test_it_finds_another_worker_when_its_own_dies(fleet: ServeProcess, tmp_path: Path) -> None:
    with tail(tmp_path, fleet, "--json", key=fleet.admin_key) as running:
        wait_heard(fleet, running)
        (victim,) = [pid for pid in fleet.serving() if fleet_listens(fleet, pid, running.process.pid)]
        fleet.kill(victim)
        running.wait_for(lambda: any(event["type"] == "tail.reconnected" for event in running.events()))
        fleet.wait_workers(but={victim})
        wait_heard(fleet, running)


def fleet_listens(fleet: ServeProcess, worker: int, client: int) -> bool:
    """Whether a worker has the connection of a client's process."""
    inodes = {str(path.readlink()) for path in Path(f"/proc/{client}/fd").iterdir()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in inodes:
            return fleet.worker_of(int(fields[1].rpartition(":")[2], 16)) == worker
    return False


def test_on_a_terminal_running_requests_are_a_table(fleet: ServeProcess, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    with tail(tmp_path, fleet, key=fleet.key, stdout=child) as running:
        os.close(child)
        os.set_blocking(parent, False)
        said = b""

        def read() -> str:
            nonlocal said
            with suppress(OSError):
                said += os.read(parent, 65_536)
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))

        running.wait_for(lambda: fleet.chat("fake/normal") and "completed" in read())
        fleet.chat(PACED, stream=True)
        running.wait_for(lambda: PACED in read().replace("\r\n", "") and "first token" in read())
        shown = read()
    os.close(parent)
    assert re.search(r"200 fake/normal > fake  org_\w+/proj_\w+  completed  8\+\d+ tokens", shown), shown
    assert "tokens/s" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--key", "sk-mh-admin-nobody"], "401"),
        (["--url", "ftp://nowhere", "--key", "k"], "--url"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    fleet: ServeProcess, tmp_path: Path, words: list[str], complaint: str
) -> None:
    environment = {**os.environ, "OPENAI_BASE_URL": fleet.base_url}
    done = subprocess.run(
        [*TAIL, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
