"""Many requests on one connection, none of which waits for the answer to the one before it (HTTP pipelining).

They are answered one after another, and few are parsed ahead: neither one long step of the event loop nor memory can be
had for the price of a few bytes each. nginx never sends like that; this is for who asks the gateway itself.
"""

import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import SO_LINGER, SOL_SOCKET, socket
from typing import Any

from api.asking import marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.http.connection import FEW_LINES, MAX_HELD_BYTES, PIECE_BYTES
from meterhouse.http.reading import MAX_HEAD_BYTES
from security.raw import connect, listen, post

REQUESTS = 1_000
LONG_HEADER = b"x-padding: " + 1_000 * b"x"
MOST_READ_BYTES = 262_144
"""One read of uvloop's."""
INSIDE = b'{"a":"GET /health/live HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n"]'
LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n" + LONG_HEADER + b"\r\n\r\n"
SILENCE_SECONDS = 20


@contextmanager
def sending(connection: socket, data: bytes) -> Iterator[None]:
    """Send while the body runs, however slowly it is taken."""

    def send() -> None:
        with suppress(OSError):  # closed from the other side
            connection.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def served(gateway: Gateway, connection: socket) -> Any:
    """Return a connection as the server has it; None when it is not there."""
    assert gateway._server is not None
    port = connection.getsockname()[1]
    return next(
        (found for found in list(gateway._server.server_state.connections) if found.client and found.client[1] == port),
        None,
    )


def test_few_are_parsed_ahead_and_each_is_answered_in_its_turn(gateway: Gateway) -> None:
    broken = post(gateway.key, b"content-length: %d" % len(INSIDE), LONG_HEADER) + b"\r\n" + INSIDE
    statuses, heard, most = [200, 400, 200] * (REQUESTS // 3), b"", (0, 0)

    def look() -> tuple[int, int]:
        found = served(gateway, connection)
        return (0, 0) if found is None else (len(found.pipeline), len(found._held))

    with connect(gateway) as connection:
        connection.settimeout(SILENCE_SECONDS)
        with sending(connection, (LIVE + broken + LIVE) * (REQUESTS // 3)):
            while heard.count(b"HTTP/1.1 ") < len(statuses):
                most = max(most[0], (now := gateway.call(look))[0]), max(most[1], now[1])
                piece = connection.recv(1 << 14)
                assert piece
                heard += piece
    found = [int(part[:3]) for part in heard.split(b"HTTP/1.1 ")[1:]]
    assert found == statuses
    assert most[0] <= max(PIECE_BYTES // len(LIVE), FEW_LINES // LIVE.count(b"\n")) + 1
    assert most[1] <= MAX_HELD_BYTES + MOST_READ_BYTES


def test_nothing_is_read_behind_the_last_request(gateway: Gateway) -> None:
    last = LIVE.replace(LONG_HEADER, b"connection: close")
    with connect(gateway) as connection, sending(connection, LIVE + last + LIVE * 20):
        heard = listen(connection, SILENCE_SECONDS)
    assert heard.is_closed
    assert heard.statuses == [200, 200]


def test_half_a_head_behind_a_long_body_is_no_long_head(gateway: Gateway) -> None:
    body = b'{"x":"%b"}' % (b"x" * 100_000)
    head, rest = LIVE[:40], LIVE[40:].replace(LONG_HEADER, b"connection: close")
    with connect(gateway) as connection:
        connection.sendall(post(gateway.key, b"content-length: %d" % len(body)) + b"\r\n" + body + head)
        connection.settimeout(SILENCE_SECONDS)
        assert connection.recv(1 << 14).startswith(b"HTTP/1.1 400 ")
        connection.sendall(rest)
        assert listen(connection, SILENCE_SECONDS).statuses[-1] == 200


def test_a_head_behind_a_request_that_was_answered_early_has_its_bound(gateway: Gateway) -> None:
    with connect(gateway) as connection:
        connection.settimeout(SILENCE_SECONDS)
        connection.sendall(post("sk-nobody", b"content-length: 5") + b"\r\n")
        assert connection.recv(1 << 14).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"12345" + LIVE[:-4] + b"\r\nx-endless: ")
        sent = 0
        with suppress(OSError):  # closed from the other side
            while sent < 8 * MAX_HEAD_BYTES:
                sent += connection.send(b"x" * 16_384)
                time.sleep(0.02)
        assert sent < 8 * MAX_HEAD_BYTES


def test_a_client_that_leaves_with_a_request_still_waiting_is_seen_to_leave(gateway: Gateway, up: FakeUpstream) -> None:
    marker, messages = marked()
    body = json.dumps({"model": "fake/never-begins", "stream": True, "messages": messages}).encode()
    connection = connect(gateway)
    connection.sendall(post(gateway.key, b"content-length: %d" % len(body)) + b"\r\n" + body)
    up.wait_for(lambda truth: truth.by_marker(marker))
    connection.sendall(LIVE)
    deadline = time.monotonic() + SILENCE_SECONDS
    while not gateway.call(lambda: (found := served(gateway, connection)) is not None and len(found.pipeline)):
        assert time.monotonic() < deadline
    connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    up.wait_for(lambda truth: truth.by_marker(marker)[0].ended_by == "client_gone")


def test_garbage_behind_a_request_is_not_written_into_its_answer(gateway: Gateway, up: FakeUpstream) -> None:
    marker, messages = marked()
    body = json.dumps({"model": "fake/infinite", "stream": True, "messages": messages}).encode()
    with connect(gateway) as connection:
        connection.sendall(post(gateway.key, b"content-length: %d" % len(body)) + b"\r\n" + body)
        connection.settimeout(SILENCE_SECONDS)
        heard = connection.recv(1 << 16)
        connection.sendall(LIVE + b"no http at all\r\n\r\n")
        heard += listen(connection, SILENCE_SECONDS).data
    assert heard.count(b"HTTP/1.1 ") == 1
    up.wait_for(lambda truth: truth.by_marker(marker)[0].ended_by == "client_gone")
