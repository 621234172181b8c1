"""Noisy neighbours: thousands that are idle or slow, hundreds that read nothing, storms of refusals.

What another tenant waits (p99) stays within twice what it waits in calm, and 50 ms. Through nginx and without it; the
gateway, the neighbour and its provider are processes of their own, as they would be.
"""

import json
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from edge.wire import connect as connect_tls
from failure.test_slow_readers import SMALL_BUFFER_BYTES, flood
from fakes.daemon import wait_until
from fakes.fleet import ServeProcess
from fakes.gateway import MESSAGES, GatewayProcess, provider_environment
from fakes.nginx_server import NginxServer
from fakes.process import UpstreamProcess
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream
from meterhouse.keys.secret import make
from security.neighbour import CALM, STORM, Neighbour
from security.raw import post

IDLE = 5_000
READERS = 500
SLOW = 2_000
SPANS, SPAN_SECONDS = 3, 1.5
"""Four and a half seconds: nginx hangs up on who is slow after ten."""
STORM_CONNECTIONS = 20
AT_ONCE = 25
"""How many requests a connection of a storm sends before it reads the answers."""
MOST_PER_SECOND = 1_000
"""How many all of them send. What is measured is what they do to the gateway, and not that those who send, nginx and
the gateway together take all processors of the one machine on which they are."""
EVERY_SECONDS = AT_ONCE * STORM_CONNECTIONS / MOST_PER_SECOND
ANSWERED = b"HTTP/1.1 4"
ATTACKERS_NICE = 10
"""They leave the processors to the gateway, as they would on machines of their own."""
ATTACKER = "127.0.0.2"
"""Where storms come from. The neighbour has an address of its own: what nginx allows is per address."""
FLOOD = "fake/flood?tokens=1300"
"""15 MB in events of 12 KB: more than all buffers on the way take, and soon there."""
STALLED_SECONDS, LOOK_SECONDS = 300, 3
"""For a moment a busy machine moves nothing of it."""

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(900)]


@dataclass
class Door:
    """Where to knock, with whose key, and the neighbour who knocks there too."""

    name: str
    connect: Callable[[], socket.socket]
    key: str
    neighbour: Neighbour

    def check(self, name: str, figures: Callable[..., None]) -> None:
        """Compare what the neighbour waited in storms with its calm, once it has stopped."""
        calm_ms, stormy_ms = self.neighbour.p99s_ms
        stem = f"{name}_p99_ms_{self.name}"
        figures(**{f"{stem}_before": calm_ms, stem: stormy_ms})
        self.neighbour.check()


@pytest.fixture(scope="module")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def providers(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The attackers' provider, which is in this process, and the neighbour's."""
    with UpstreamProcess(tmp_path_factory.mktemp("quiet") / "quiet.log") as quiet:
        yield {**provider_environment("fake", up.base_url), **provider_environment("quiet", quiet.base_url)}


@pytest.fixture(scope="module")
def fleet(
    providers: dict[str, str], postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("fleet")
    with (
        RedisServer(tmp_path_factory.mktemp("redis")) as redis,
        ServeProcess(
            folder / "data",
            redis_url=redis.url,
            database_url=postgres_server.create_database(),
            environment=providers,
            bind=f"unix:{folder / 'gateway.sock'}",
        ) as running,
    ):
        yield running


@pytest.fixture(params=["nginx", "directly"])
def door(request: pytest.FixtureRequest, providers: dict[str, str], tmp_path: Path) -> Iterator[Door]:
    with ExitStack() as stack:
        if request.param == "nginx":
            fleet: ServeProcess = request.getfixturevalue("fleet")
            edge = stack.enter_context(NginxServer(tmp_path / "nginx", socket=Path(fleet.bind.removeprefix("unix:"))))
            processes = {"workers": fleet.pid, "nginx": edge.pid, "all clients": os.getpid()}
            neighbour = Neighbour(edge.url, fleet.key, edge.ca, log=fleet.log_path, processes=processes)
            yield Door(request.param, lambda: connect_tls(edge, source=ATTACKER), fleet.key, neighbour)
            return
        gateway = stack.enter_context(GatewayProcess(tmp_path / "data", providers))
        host, _, port = gateway.url.removeprefix("http://").rpartition(":")
        address, source = (host, int(port)), (ATTACKER, 0)
        assert gateway.process is not None
        processes = {"the gateway": gateway.process.pid, "all clients": os.getpid()}
        neighbour = Neighbour(gateway.url, gateway.key, log=gateway.log_path, processes=processes)
        yield Door(request.param, lambda: socket.create_connection(address, 10, source), gateway.key, neighbour)


@contextmanager
def between_calm(neighbour: Neighbour) -> Iterator[ExitStack]:
    """What the body has put on the stack is there for some spans, and before and after it there is calm."""
    with neighbour:
        stay(neighbour, CALM)
        with ExitStack() as stack:
            yield stack
            stay(neighbour, STORM)
        stay(neighbour, CALM)


def stay(neighbour: Neighbour, kind: str) -> None:
    for _ in range(SPANS):
        with neighbour.during(kind):
            time.sleep(SPAN_SECONDS)


def test_idle_connections(door: Door, figures: Callable[..., None]) -> None:
    with between_calm(door.neighbour) as stack:
        for _ in range(IDLE):
            stack.enter_context(door.connect())
    door.check("idle", figures)


@pytest.mark.parametrize("part", ["heads", "bodies"])
def test_slow_requests(door: Door, figures: Callable[..., None], part: str) -> None:
    """Each has begun a request and says no more; after ten seconds nginx hangs up on them."""
    head = post(door.key, b"content-length: 1000") + b"\r\n"
    begun = head[:40] if part == "heads" else head + b"{"
    with between_calm(door.neighbour) as stack:
        for _ in range(SLOW):
            stack.enter_context(door.connect()).sendall(begun)
    door.check(f"slow_{part}", figures)


def test_slow_readers(door: Door, figures: Callable[..., None], up: FakeUpstream) -> None:
    """Each asks for a long answer and takes nearly nothing of it."""
    up.script("flood", flood)
    body = json.dumps({"model": FLOOD, "messages": MESSAGES, "stream": True}).encode()
    with between_calm(door.neighbour) as stack:
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
    door.check("slow_readers", figures)


def has_stalled(up: FakeUpstream) -> bool:
    """Whether the provider has been asked by all, and can write to nobody."""
    floods = [attempt for attempt in up.attempts if attempt.model.startswith("flood")][-READERS:]
    before = sum(attempt.tokens for attempt in floods)
    time.sleep(LOOK_SECONDS)
    return len(floods) == READERS and sum(attempt.tokens for attempt in floods) == before


def test_storms_of_refusals(door: Door, figures: Callable[..., None]) -> None:
    """Wrong keys and broken bodies, a thousand a second, while a neighbour asks."""
    wrong = post(make("dev").value, b"content-length: 2") + b"\r\n{}"
    broken = post(door.key, b"content-length: 2") + b"\r\n{]"
    refused = 0
    with door.neighbour as neighbour:
        for _ in range(SPANS):
            with neighbour.during(CALM):
                time.sleep(SPAN_SECONDS)
            with Storm(door.connect, [wrong, broken]) as storm, neighbour.during(STORM):
                time.sleep(SPAN_SECONDS)
            refused += storm.refused
    figures(**{f"refusals_per_second_{door.name}": refused / (SPANS * SPAN_SECONDS)})
    assert refused > SPANS * STORM_CONNECTIONS, "that was no storm"
    door.check("refusals", figures)


class Storm:
    """``with Storm(connect, requests):`` sends them again and again, on twenty connections, and reads what comes."""

    def __init__(self, connect: Callable[[], socket.socket], requests: list[bytes]) -> None:
        self._connect = connect
        self._threads = [
            threading.Thread(target=self._blow, args=(requests[number % len(requests)],))
            for number in range(STORM_CONNECTIONS)
        ]
        self._has_ended = threading.Event()
        self.refused = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        for thread in self._threads:
            thread.join()

    def _blow(self, request: bytes) -> None:
        os.nice(ATTACKERS_NICE)  # of this thread
        due = time.monotonic() + random.random() * EVERY_SECONDS
        while not self._has_ended.is_set():
            with suppress(ConnectionError, TimeoutError, ssl.SSLError), self._connect() as connection:
                connection.settimeout(1)
                while not self._has_ended.wait(max(0.0, due - time.monotonic())):
                    due = max(due + EVERY_SECONDS, time.monotonic())
                    connection.sendall(request * AT_ONCE)
                    if not self._read_answers(connection):
                        break

    def _read_answers(self, connection: socket.socket) -> bool:
        """Read as many answers as were asked for; returns whether the connection is still there."""
        answers, end = 0, b""
        while answers < AT_ONCE and not self._has_ended.is_set():
            data = connection.recv(1 << 16)
            if not data:
                return False
            seen = end + data
            found = seen.count(ANSWERED)
            answers += found
            self.refused += found
            end = seen[1 - len(ANSWERED) :]
        return True
