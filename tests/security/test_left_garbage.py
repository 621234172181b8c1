"""What is refused, fails or is left costs the garbage collector nothing: its objects are gone when it is over.

An error knows the frames that it came through, and they the request, which knows its error. A storm of such circles
made the collector stop everybody for tens of milliseconds at a time.
"""

import gc
import json
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from fakes.daemon import wait_until
from fakes.gateway import MESSAGES, Gateway
from fakes.upstream import FakeUpstream
from meterhouse.http.cycle import Cycle
from meterhouse.keys.secret import make
from security.raw import connect, listen, post

TIMES = 3
SILENCE_SECONDS = 20
GONE_SECONDS = 20
QUICK, PACED = "fake/normal?tokens=5", "fake/paced?tokens=40&duration_ms=4000"
SLOW = "fake/paced?tokens=5&duration_ms=600"
"""Long enough that it is watched whether its client leaves: from the second look on."""


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is collected while the test runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> int:
    """Return of how many requests there is something left."""
    return sum(isinstance(found, Cycle) for found in gc.get_objects())


def chat(key: str, model: str, *, is_streamed: bool = True) -> bytes:
    body = json.dumps({"model": model, "messages": MESSAGES, "stream": is_streamed}).encode()
    return post(key, b"content-length: %d" % len(body), b"connection: close") + b"\r\n" + body


def ask(gateway: Gateway, data: bytes) -> None:
    with connect(gateway) as connection:
        connection.sendall(data)
        assert listen(connection, SILENCE_SECONDS).is_closed


def leave(gateway: Gateway, up: FakeUpstream, data: bytes) -> None:
    """Ask, and reset the connection once the provider has begun to answer."""
    before = len(up.attempts)
    with connect(gateway) as connection:
        connection.sendall(data)
        wait_until(lambda: len(up.attempts) > before, "the provider's attempt")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


CASES: dict[str, Callable[[Gateway, FakeUpstream], None]] = {
    "an answer": lambda gateway, _: ask(gateway, chat(gateway.key, QUICK)),
    "an answer that took a while": lambda gateway, _: ask(gateway, chat(gateway.key, SLOW)),
    "a wrong key": lambda gateway, _: ask(gateway, chat(make("dev").value, QUICK)),
    "a broken body": lambda gateway, _: ask(
        gateway, post(gateway.key, b"content-length: 2", b"connection: close") + b"\r\n{]"
    ),
    "an unknown model": lambda gateway, _: ask(gateway, chat(gateway.key, "nobody/has-this")),
    "a provider that fails": lambda gateway, _: ask(gateway, chat(gateway.key, "fake/normal?status=500")),
    "a stream that breaks": lambda gateway, _: ask(gateway, chat(gateway.key, "fake/normal?tokens=20&fault=close")),
    "a client that leaves a stream": lambda gateway, up: leave(gateway, up, chat(gateway.key, PACED)),
    "a client that leaves a body": lambda gateway, up: leave(gateway, up, chat(gateway.key, PACED, is_streamed=False)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("uncollected")
def test_nothing_of_a_request_waits_for_the_collector(gateway: Gateway, up: FakeUpstream, case: str) -> None:
    CASES[case](gateway, up)  # what is made once is made
    gateway.settle()
    before = alive()
    for _ in range(TIMES):
        CASES[case](gateway, up)
    wait_until(lambda: alive() <= before, f"the end of all that is left of {case}", GONE_SECONDS)
