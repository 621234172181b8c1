"""Reading a request's body: whole, in pieces, from a client that leaves or never ends."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from meterhouse.errors import BodyTooSlow
from meterhouse.http import body as module
from meterhouse.http.body import read_body, read_pieces
from meterhouse.http.guard import ClientGone

PIECE = {"type": "http.request", "body": b"ab", "more_body": True}
LAST = {"type": "http.request", "body": b"c", "more_body": False}


def receiver(messages: Sequence[dict[str, Any]]):
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


@pytest.mark.parametrize(("messages", "body"), [([LAST], b"c"), ([PIECE, PIECE, LAST], b"ababc")])
async def test_a_body_is_joined(messages: Sequence[dict[str, Any]], body: bytes) -> None:
    assert await read_body(receiver(messages)) == body


async def test_a_client_that_leaves_in_its_body_is_gone() -> None:
    with pytest.raises(ClientGone):
        await read_body(receiver([PIECE, {"type": "http.disconnect"}]))


async def test_a_body_that_the_server_has_whole_is_read_as_any_other() -> None:
    assert await read_pieces(receiver([LAST])) == b"c"
    with pytest.raises(ClientGone):
        await read_pieces(receiver([{"type": "http.disconnect"}]))


async def test_a_body_that_never_ends_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.02)
    with pytest.raises(BodyTooSlow) as caught:
        await read_body(receiver([PIECE]))
    assert (caught.value.status, caught.value.code) == (408, "request_timeout")
