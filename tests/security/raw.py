"""A client that is made of one socket: it says what no HTTP library would, and takes down every byte of the answer."""

import json
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fakes.gateway import Gateway

BODY = b'{"model":"fake/normal?tokens=1","messages":[{"role":"user","content":"Hello"}]}'
REST_SECONDS = 10.0
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")


@dataclass
class Heard:
    """What came until the server closed, or fell silent."""

    data: bytes
    is_closed: bool

    @property
    def statuses(self) -> list[int]:
        """The status of each answer; a body that holds a status line would count too, which is what is looked for."""
        return [int(status) for status in _HEAD.findall(self.data)]

    @property
    def error(self) -> dict[str, Any]:
        """The error of the last answer: OpenAI's envelope and nothing else."""
        found = json.loads(self.data.rpartition(b"\r\n\r\n")[2])
        assert set(found) == {"error"}, found
        assert set(found["error"]) == {"message", "type", "param", "code"}, found
        error: dict[str, Any] = found["error"]
        return error


def connect(gateway: Gateway) -> socket.socket:
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def say(gateway: Gateway, data: bytes, silence_seconds: float = 0.3, answers: int = 1) -> Heard:
    """Send bytes on a connection of their own and listen until the server closes, or has answered and falls silent."""
    with connect(gateway) as connection:
        # The server may refuse, and close, before all is sent.
        with suppress(ConnectionError):
            connection.sendall(data)
        return listen(connection, silence_seconds, answers)


def listen(connection: socket.socket, silence_seconds: float, answers: int = 0) -> Heard:
    """Listen until nothing has come for so long; for so many answers, and the rest of one that has begun, longer."""
    connection.settimeout(silence_seconds)
    heard = b""
    try:
        while piece := _hear(connection, heard, answers):
            heard += piece
    except TimeoutError:
        return Heard(heard, is_closed=False)
    except ConnectionError:
        pass
    return Heard(heard, is_closed=True)


def _hear(connection: socket.socket, heard: bytes, answers: int) -> bytes:
    give_up_at = time.monotonic() + REST_SECONDS
    while True:
        try:
            return connection.recv(1 << 16)
        except TimeoutError:
            is_all = _is_whole(heard) and len(_HEAD.findall(heard)) >= answers
            if is_all or time.monotonic() > give_up_at:
                raise


def _is_whole(heard: bytes) -> bool:
    """Whether no answer has begun that says it goes on."""
    if not heard:
        return True
    head, _, body = heard[heard.rfind(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return length is None or len(body) >= int(length[1])


def post(key: str, *headers: bytes, version: bytes = b"1.1") -> bytes:
    """Return the head of a completion, without what says how long its body is."""
    lines = [
        b"POST /v1/chat/completions HTTP/" + version,
        b"host: localhost",
        b"authorization: Bearer " + key.encode(),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n"
