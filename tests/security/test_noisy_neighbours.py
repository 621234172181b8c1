"""Noisy neighbours: thousands that are idle or slow, hundreds that read nothing, storms of refusals.

What another tenant waits (p99) stays within twice what it waited before, and 50 ms. Through nginx and without it; the
gateway is a process of its own, as it would be.
"""

import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from edge.conftest import edge, fleet, socket_path, up  # noqa: F401 - fixtures of a served fleet behind nginx
from edge.wire import connect as connect_tls
from failure.test_slow_readers import SMALL_BUFFER_BYTES, flood
from fakes.daemon import wait_until
from fakes.fleet import ServeProcess
from fakes.gateway import MESSAGES, GatewayProcess, http_request, provider_environment
from fakes.nginx_server import NginxServer
from fakes.upstream import FakeUpstream
from meterhouse.keys.secret import make
from security.raw import post

IDLE = 5_000
READERS = 500
SLOW = 2_000
ASKED = 150
FLOOD = "fake/flood?tokens=1300"
"""15 MB in events of 12 KB: more than all buffers on the way take, and soon there."""
STALLED_SECONDS, LOOK_SECONDS = 300, 3
"""The buffers of the kernel take some 4 MB of each; for a moment a busy machine moves nothing of it."""
QUIET_MODEL = "fake/normal?tokens=5"
EXTRA_SECONDS = 0.05

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(900)]


class Door:
    """Where to knock: how to connect, and how a neighbour asks."""

    def __init__(
        self, name: str, connect: Callable[[], socket.socket], ask: Callable[[str, str], int], key: str
    ) -> None:
        self.name = name
        self.connect = connect
        self._ask = ask
        self.key = key

    def p99_seconds(self, key: str = "") -> float:
        """Ask as a neighbour, one request after another; returns what it waited at the 99th percentile."""
        waits = []
        for _ in range(ASKED):
            began = time.monotonic()
            status = self._ask(key or self.key, QUIET_MODEL)
            waits.append(time.monotonic() - began)
            assert status == 200
        return statistics.quantiles(waits, n=100)[98]


@pytest.fixture(params=["nginx", "directly"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    body = {"messages": MESSAGES}
    if request.param == "nginx":
        server: NginxServer = request.getfixturevalue("edge")
        served: ServeProcess = request.getfixturevalue("fleet")

        def ask(key: str, model: str) -> int:
            return server.request("POST", "/v1/chat/completions", {**body, "model": model}, key=key)[0]

        yield Door(request.param, lambda: connect_tls(server), ask, served.key)
        return
    provider: FakeUpstream = request.getfixturevalue("up")
    with GatewayProcess(tmp_path / "data", provider_environment("fake", provider.base_url)) as gateway:
        host, _, port = gateway.url.removeprefix("http://").rpartition(":")

        def ask(key: str, model: str) -> int:
            url = f"http://{host}:{port}"
            return http_request(url, "POST", "/v1/chat/completions", {**body, "model": model}, key=key)[0]

        yield Door(request.param, lambda: socket.create_connection((host, int(port)), 10), ask, gateway.key)


Check = Callable[[str], None]


@pytest.fixture
def check(door: Door, figures: Callable[..., None]) -> Check:
    """Return what compares a neighbour's wait with that of a moment ago, when all was calm."""
    before_seconds = door.p99_seconds()

    def compare(name: str) -> None:
        now_seconds = door.p99_seconds()
        stem = f"{name}_p99_ms_{door.name}"
        figures(**{f"{stem}_before": 1000 * before_seconds, stem: 1000 * now_seconds})
        assert now_seconds <= 2 * before_seconds + EXTRA_SECONDS

    return compare


def test_idle_connections(door: Door, check: Check) -> None:
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(door.connect())
        check("idle")


@pytest.mark.parametrize("part", ["heads", "bodies"])
def test_slow_requests(door: Door, check: Check, part: str) -> None:
    """Each has begun a request and says no more; after ten seconds nginx hangs up on them."""
    head = post(door.key, b"content-length: 1000") + b"\r\n"
    begun = head[:40] if part == "heads" else head + b"{"
    with ExitStack() as stack:
        for _ in range(SLOW):
            stack.enter_context(door.connect()).sendall(begun)
        check(f"slow_{part}")


def test_slow_readers(door: Door, check: Check, up: FakeUpstream) -> None:  # noqa: F811 - the fixture
    """Each asks for a long answer and takes nearly nothing of it."""
    up.script("flood", flood)
    body = json.dumps({"model": FLOOD, "messages": MESSAGES, "stream": True}).encode()
    with ExitStack() as stack:
        readers = []
        for _ in range(READERS):
            reader = stack.enter_context(door.connect())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            reader.sendall(post(door.key, b"content-length: %d" % len(body)) + b"\r\n" + body)
            readers.append(reader)
        wait_until(lambda: has_stalled(up), "the end of all that buffers take", STALLED_SECONDS)
        for reader in readers:
            reader.settimeout(0.001)
            with suppress(TimeoutError, OSError):
                reader.recv(1_024)
        check("slow_readers")


def has_stalled(up: FakeUpstream) -> bool:  # noqa: F811 - the fixture's type
    """Whether the provider has been asked by all, and can write to nobody."""
    floods = [attempt for attempt in up.attempts if attempt.model.startswith("flood")][-READERS:]
    before = sum(attempt.tokens for attempt in floods)
    time.sleep(LOOK_SECONDS)
    return len(floods) == READERS and sum(attempt.tokens for attempt in floods) == before


def test_storms_of_refusals(door: Door, check: Check) -> None:
    """Wrong keys and broken bodies, as fast as one connection carries them, while a neighbour asks."""
    wrong = post(make("dev").value, b"content-length: 2") + b"\r\n{}"
    broken = post(door.key, b"content-length: 2") + b"\r\n{]"
    with ExitStack() as stack:
        storms = [stack.enter_context(door.connect()) for _ in range(20)]
        for number, storm in enumerate(storms):
            storm.sendall((wrong if number % 2 else broken) * 200)
        check("refusals")
