"""Slow requests (slowloris) without an nginx in front: whoever holds a connection and says little is hung up on."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fakes.gateway import Gateway
from meterhouse.http.connection import Connection
from meterhouse.http.reading import MAX_HEAD_BYTES
from security.raw import connect, listen, post, say

SECONDS = 0.5


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that is in a hurry: ten seconds are half a one here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "head_seconds", SECONDS)
        with Gateway(tmp_path_factory.mktemp("hasty") / "data") as running:
            yield running


BEGINNINGS = {
    "nothing": b"",
    "a line's end": b"\r\n",
    "a letter": b"G",
    "a line": b"GET / HTTP/1.1\r\n",
    "half a header": b"GET / HTTP/1.1\r\nhost: x\r\nx: ",
    "a request and half another": b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\n",
}


def test_a_head_that_does_not_end_is_not_waited_for(hasty: Gateway) -> None:
    with ExitStack() as stack:
        waiting = {name: stack.enter_context(connect(hasty)) for name in BEGINNINGS}
        began = time.monotonic()
        for name, connection in waiting.items():
            connection.sendall(BEGINNINGS[name])
        for name, connection in waiting.items():
            heard = listen(connection, 5)
            assert heard.is_closed, name
            assert heard.statuses == ([200] if name.startswith("a request") else []), name
    assert time.monotonic() - began < 4 * SECONDS


def test_a_byte_now_and_then_buys_no_time(hasty: Gateway) -> None:
    with connect(hasty) as connection:
        began = time.monotonic()
        connection.settimeout(SECONDS / 5)
        while time.monotonic() - began < 5 * SECONDS:
            try:
                connection.sendall(b"x")
                if not connection.recv(1):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert time.monotonic() - began < 2.5 * SECONDS


def test_a_request_that_runs_is_not_hung_up_on(hasty: Gateway) -> None:
    """The control: an answer, and a body, may take longer than a head."""
    body = b'{"model":"simulator-instant","messages":[{"role":"user","content":"Hello"}]}'
    with connect(hasty) as connection:
        connection.sendall(
            post(hasty.key, b"content-length: %d" % len(body), b"connection: close") + b"\r\n" + body[:10]
        )
        assert not listen(connection, 1.5 * SECONDS).data
        connection.sendall(body[10:])
        assert listen(connection, 3).statuses == [200]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (MAX_HEAD_BYTES + 1),
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 1),
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(9_000)),
    ],
    ids=["a header", "an address", "many headers"],
)
def test_a_head_that_grows_without_end_is_refused(hasty: Gateway, head: bytes) -> None:
    heard = say(hasty, head)
    assert heard.is_closed
    assert heard.statuses in ([431], []), "a reset may come before the answer is read"


def test_too_many_headers_are_refused(hasty: Gateway) -> None:
    lines = b"".join(b"x-%d: y\r\n" % number for number in range(300))
    heard = say(hasty, b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")
    assert (heard.statuses, heard.error["code"]) == ([400], "invalid_request")


def test_a_body_of_nobody_is_waited_for_no_longer_than_two_minutes(tmp_path: Path) -> None:
    """FastAPI waits for a body without a bound, before it asks who sends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meterhouse.app.BODY_SECONDS", SECONDS)
        with Gateway(tmp_path / "data") as gateway, connect(gateway) as connection:
            head = b"POST /admin/keys HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{"
            connection.sendall(head)
            heard = listen(connection, 5)
            assert (heard.statuses, heard.error["code"]) == ([408], "request_timeout")
