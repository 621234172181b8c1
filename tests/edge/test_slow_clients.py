"""Row 26: clients that send a byte now and then are hung up on, never reach the gateway, and are in nobody's way."""

import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.wire import connect, receive
from fakes.fleet import ServeProcess
from fakes.nginx_server import NginxServer
from plugins.matrix import is_full

COUNT = 2_000 if is_full() else 60
TIMEOUT_SECONDS = 10 if is_full() else 0.4
"""In full: nginx's own timeouts and a byte every ten seconds."""
BODY_HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\n\r\n"
)


@pytest.fixture
def edge(tmp_path: Path, socket_path: Path) -> Iterator[NginxServer]:
    values = {} if is_full() else {"HEADER_TIMEOUT": "400ms", "BODY_TIMEOUT": "400ms"}
    with NginxServer(tmp_path / "nginx", socket=socket_path, values=values) as server:
        yield server


class Crowd:
    """Clients that have begun a request and say no more; ``ages`` is how long each was borne with."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[ssl.SSLSocket, float]] = {}
        self._poll = select.poll()
        self.ages: list[float] = []

    def join(self, connection: ssl.SSLSocket) -> None:
        """Take one in."""
        self._waiting[connection.fileno()] = connection, time.monotonic()
        self._poll.register(connection, select.POLLIN)

    def look(self, wait_seconds: float = 0) -> bool:
        """See who was hung up on; returns whether any is left."""
        for number, _ in self._poll.poll(wait_seconds * 1000):
            connection, since = self._waiting[number]
            if not is_closed(connection, 0):
                continue
            self.ages.append(time.monotonic() - since)
            self._poll.unregister(connection)
            del self._waiting[number]
            connection.close()
        return bool(self._waiting)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["headers", "body"])
def test_slow_clients_are_hung_up_on(edge: NginxServer, fleet: ServeProcess, part: str) -> None:
    head = BODY_HEAD.format(fleet.key)
    begun = head.encode() + b"{" if part == "body" else head[:40].encode()
    before = heard(fleet)
    crowd = Crowd()
    for _ in range(COUNT):
        connection = connect(edge)
        connection.sendall(begun)
        crowd.join(connection)
        crowd.look()
    assert edge.request("GET", "/v1/models", key=fleet.key)[0] == 200
    deadline = time.monotonic() + 30
    while crowd.look(0.1):
        assert time.monotonic() < deadline
    assert len(crowd.ages) == COUNT
    assert max(crowd.ages) < TIMEOUT_SECONDS * 1.5 + 1
    assert heard(fleet) == before


@pytest.mark.slow_fault
@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_byte_every_ten_seconds_is_too_slow(edge: NginxServer, fleet: ServeProcess, part: str) -> None:
    head = BODY_HEAD.format(fleet.key)
    connection = connect(edge)
    began = time.monotonic()
    connection.sendall(head.encode() + b"{" if part == "body" else head[:40].encode())
    while time.monotonic() - began < 30 and not is_closed(connection, 10):
        connection.sendall(b"x")
    connection.close()
    assert time.monotonic() - began < 15


def heard(fleet: ServeProcess) -> int:
    """Return how many completions the gateway was asked for so far."""
    return sum(line["route"] == "/v1/chat/completions" for line in fleet.events("request.finished"))


def is_closed(connection: socket.socket, wait_seconds: float) -> bool:
    connection.settimeout(wait_seconds)
    try:
        return not receive(connection)
    except (TimeoutError, ssl.SSLWantReadError):
        return False
