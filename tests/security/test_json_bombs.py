"""JSON bombs (the class of CVE-2026-34756): bodies whose decoding costs more than their length suggests."""

import asyncio
import json
import time
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest

from api.asking import error_of
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.errors import Malformed
from meterhouse.http.intake import MAX_DEPTH, MAX_VALUES, check_structure
from security.raw import connect, post, say

MEGABYTE = 1_048_576
PATIENCE_SECONDS = 1.5
HEAD = b'{"model":"fake/normal?tokens=1","messages":[{"role":"user","content":"Hi"}]'
BOMBS = {
    "arrays in arrays": HEAD + b',"x":' + b"[" * 200_000,
    "objects in objects": HEAD + b',"x":' + b'{"a":' * 200_000,
    "closed arrays in arrays": HEAD + b',"x":' + b"[" * 500 + b"]" * 500 + b"}",
    "empty arrays": HEAD + b',"x":[' + b"[]," * (2 * MEGABYTE) + b"1]}",
    "empty objects": HEAD + b',"x":[' + b"{}," * (2 * MEGABYTE) + b"1]}",
    "numbers": HEAD + b',"x":[' + b"1," * (4 * MEGABYTE) + b"1]}",
    "messages": b'{"model":"m","messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 110_000) + b"]}",
    "quotes that do not end": b'{"a":' + b'\\"' * (4 * MEGABYTE),
    "a long number": HEAD + b',"x":' + b"9" * MEGABYTE + b"}",
    "a long fraction": HEAD + b',"x":0.' + b"9" * MEGABYTE + b"e999999999}",
}
CHUNKS = (b"10000\r\n" + b"[" * 65_536 + b"\r\n") * 17
each = pytest.mark.parametrize("name", BOMBS)


@each
def test_a_bomb_is_refused_in_bounded_time(gateway: Gateway, name: str) -> None:
    began = time.monotonic()
    status, _, body = gateway.request("POST", "/v1/chat/completions", BOMBS[name])
    assert (status, error_of(body)["type"]) == (400, "invalid_request_error")
    assert time.monotonic() - began < PATIENCE_SECONDS


@pytest.mark.parametrize("name", ["messages", "empty arrays", "objects in objects"])
def test_a_bomb_is_refused_in_bounded_memory(name: str) -> None:
    peaks_bytes = []
    for _ in range(3):  # what a gateway in other threads loads meanwhile counts too: the least is the check's own
        tracemalloc.start()
        try:
            with pytest.raises(Malformed):
                check_structure(BOMBS[name])
            peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # 48 bytes for a map of each bracket, of which there may be 200,000, and a copy.
    assert min(peaks_bytes) < 2 * len(BOMBS[name]) + 12 * MEGABYTE


@pytest.mark.parametrize("path", ["/admin/keys", "/admin/organizations"])
def test_a_bomb_of_nobody_is_not_even_read_where_bodies_are_short(gateway: Gateway, path: str) -> None:
    """FastAPI decodes a body before it asks who sent it: two seconds of the event loop for 19 MB, to anybody."""
    head = b"POST %b HTTP/1.1\r\nhost: x\r\n" % path.encode()
    for framed in (b"content-length: 19000000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n" + CHUNKS):
        heard = say(gateway, head + framed)
        assert (heard.statuses, heard.error["code"]) == ([413], "request_too_large")


def test_others_are_answered_while_a_long_body_is_looked_at(gateway: Gateway) -> None:
    """Three million bytes that are all to be looked at; the loop must not wait for that."""
    content = ", ".join(["{[word]}"] * 300_000)
    body = json.dumps({"model": "fake/normal?tokens=1", "messages": [{"role": "user", "content": content}]})

    async def look() -> float:
        longest, done = 0.0, asyncio.create_task(asyncio.to_thread(check_structure, body.encode()))
        while not done.done():
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)
        await done
        return longest

    assert asyncio.run(look()) < 0.5
    assert gateway.request("POST", "/v1/chat/completions", body.encode())[0] == 200


@pytest.mark.parametrize("more", [0, 1])
def test_the_bounds_are_exact(more: int) -> None:
    deep = b"[" * (MAX_DEPTH + more) + b"]" * (MAX_DEPTH + more)
    # Brackets and commas inside a text are none.
    wide = b'["' + b"[,{" * 100_000 + b'",' + b"1," * (MAX_VALUES - 2 + more) + b"1]"
    for body in (deep, wide):
        if more:
            with pytest.raises(Malformed, match=r"nested too deeply|more than 100000 values"):
                check_structure(body)
        else:
            check_structure(body)


def test_long_bodies_have_a_bounded_memory_together(up: FakeUpstream, tmp_path: Path) -> None:
    """A tenant that sends many long bodies at once, and none to its end, leaves the others their room."""
    settings = {"METERHOUSE_BODY_MEMORY_BYTES": str(4 * MEGABYTE)}
    with Gateway(tmp_path / "data", settings) as small:
        with ExitStack() as held:
            for _ in range(6):
                connection = held.enter_context(connect(small))
                connection.sendall(post(small.key, b"content-length: %d" % (2 * MEGABYTE)) + b"\r\n" + b" " * MEGABYTE)
            deadline = time.monotonic() + 5
            long = post(small.key, b"content-length: 200000") + b"\r\n" + b" " * 200_000
            while (answer := say(small, long)).statuses != [503]:
                assert time.monotonic() < deadline
            assert answer.error["code"] == "overloaded"
            assert b"\r\nretry-after: 1\r\n" in answer.data
            assert small.chat("simulator-instant")[0] == 200, "short bodies need no room"
        while say(small, long).statuses != [400]:
            assert time.monotonic() < deadline, "what a client that left had sent is still counted"
