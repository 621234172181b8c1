"""``meterhouse tail`` shows the requests of every worker as they run, and finds the server again when it was away."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from api.live.watcher import Watcher
from fakes.fleet import ServeProcess, links_of
from meterhouse.keys.secret import make
from meterhouse.settings import SettingsError
from meterhouse.tail import address_of, follow

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

    def wait_for(self, predicate: Callable[[], Any], seconds: float = 40) -> Any:
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


def test_it_finds_another_worker_when_its_own_dies(fleet: ServeProcess) -> None:
    events: list[Mapping[str, Any]] = []
    is_over = threading.Event()

    def read() -> None:
        for event in follow(fleet.url, fleet.admin_key):
            events.append(event)
            if is_over.is_set():
                return

    following = threading.Thread(target=read, daemon=True)
    following.start()

    def is_heard() -> bool:
        request_id = fleet.chat("fake/normal")[1]["x-request-id"]
        time.sleep(0.1)
        return any(event.get("request_id") == request_id for event in events)

    fleet.wait_for(is_heard, 40)
    (victim,) = [pid for pid in fleet.serving() if fleet_listens(fleet, pid, os.getpid())]
    fleet.kill(victim)
    fleet.wait_for(lambda: any(event["type"] == "tail.reconnected" for event in events), 40)
    fleet.wait_workers(but={victim})
    fleet.wait_for(is_heard, 40)
    is_over.set()
    fleet.wait_for(lambda: fleet.chat("fake/normal") and not following.is_alive())


def fleet_listens(fleet: ServeProcess, worker: int, client: int) -> bool:
    """Whether a worker has the connection of a client's process."""
    inodes = links_of(client)
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in inodes:
            with suppress(AssertionError):  # of another connection of this process
                if fleet.worker_of(int(fields[1].rpartition(":")[2], 16)) == worker:
                    return True
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
    ("url", "key", "complaint"),
    [
        ("", "sk-mh-admin-nobody", "answered 401"),
        ("ftp://nowhere", "key", "--url"),
        ("", "", "answered 401"),
    ],
)
def test_what_cannot_work_is_said_at_once(fleet: ServeProcess, url: str, key: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        next(follow(url or fleet.base_url, key))


def test_who_sees_what() -> None:
    assert address_of("https://a.example/v1/", make("live").value, "org_1") == "https://a.example/v1/live"
    assert address_of("https://a.example", make("admin").value, "") == "https://a.example/admin/live"
    assert address_of("https://a.example", "a.b.c", "org_1") == "https://a.example/admin/live?organization_id=org_1"
