"""What is answered past the layers is what they would have passed on: byte for byte, and in the log.

A request with an ``Origin`` passes each of them; one without goes by the short ways.
"""

import json
import re
import socket
import time
from typing import Any

import pytest

from fakes.gateway import Gateway

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 20},
    "/v1/responses": {"input": "Hello"},
    "/chat": {"message": "Hello"},
}
CHAT = "/v1/chat/completions"
PAGE = b"Origin: https://page.example"
CHUNKED = b"Transfer-Encoding: chunked"
DIFFERENT = re.compile(
    rb"(?:req|resp|msg|cmpl|chatcmpl)[_-][0-9A-Za-z-]+"
    rb'|(?<="created":)\d+|(?<="created_at":)\d+|(?<="completed_at":)\d+|(?<=processing-ms: )\d+'
    rb"|(?<=x-ratelimit-re)(?:set|maining)-\w+: [0-9a-z.]+|(?<=date: )[^\r]+|(?<=content-length: )\d+"
)
"""What is of one request alone; a length too, as ids of the tests' provider grow."""
DIFFERENT_FIELDS = {"timestamp", "request_id", "duration_ms", "time_to_first_token_ms", "trace_id"}


def write(key: str, path: str, body: bytes, *headers: bytes) -> tuple[bytes, bytes]:
    """Return the bytes of a request's head, and of its body."""
    lines = [f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}".encode(), *headers]
    if CHUNKED not in headers:
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""]), body
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]))
    return b"\r\n".join([*lines, b"", b""]), chunks + b"0\r\nA: b\r\n\r\n"


def say(gateway: Gateway, *pieces: bytes) -> bytes:
    """Send pieces, of which the last request closes the connection; returns all that comes."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        found = b""
        while data := connection.recv(65_536):
            found += data
        return found


def lines_of(gateway: Gateway, answers: bytes) -> list[dict[str, Any]]:
    """Return the log's lines of all that was answered, without what is of one request alone."""
    ids = [found.decode() for found in re.findall(rb"x-request-id: (\S+)", answers)]
    assert ids
    deadline = time.monotonic() + 60
    while True:
        lines = {line["request_id"]: line for line in gateway.log_lines() if line["event"] == "request.finished"}
        if lines.keys() >= set(ids):
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [{name: value for name, value in lines[each].items() if name not in DIFFERENT_FIELDS} for each in ids]


@pytest.mark.parametrize(
    ("path", "more", "way"),
    [
        *((path, {}, "whole") for path in BODIES),
        (CHAT, {"max_tokens": "x"}, "whole"),
        (CHAT, {"model": "fake/normal?tokens=20000"}, "whole"),
        (CHAT, {"user": "é" * 10_000}, "pieces"),
        (CHAT, {}, "chunked"),
        (CHAT, {}, "expect"),
        (CHAT, {}, "two"),
        (CHAT, {}, "old"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_who_is_no_page_is_answered_as_a_page_is(gateway: Gateway, path: str, more: dict[str, Any], way: str) -> None:
    body = json.dumps({"model": "fake/normal", **BODIES[path], **more}).encode()
    key = gateway.new_key("requests 1000/minute; tokens 1000000/minute")
    added = {"chunked": [CHUNKED], "expect": [b"Expect: 100-continue"]}.get(way, [])

    def ask(*headers: bytes) -> bytes:
        first, sent = write(key, path, body, b"Connection: close", *added, *headers)
        if way == "two":
            return say(gateway, b"".join([*write(key, path, body, *headers), first, sent]))
        if way == "old":
            first = first.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        return say(gateway, *([first, sent[:9], sent[9:]] if way in {"pieces", "expect"} else [first + sent]))

    to_page, to_other = ask(PAGE), ask()
    assert DIFFERENT.sub(b"*", to_other) == DIFFERENT.sub(b"*", to_page)
    assert to_other.count(b"x-request-id") == (2 if way == "two" else 1)
    assert to_other.rpartition(b"\r\n\r\n")[2]
    assert lines_of(gateway, to_other) == lines_of(gateway, to_page)
