"""A connection to Redis that closes while a command is written to it, on the event loop of production (uvloop)."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis.asyncio
import uvloop

from fakes.store import MovingClock
from meterhouse.keys.mirror import KeyMirror
from meterhouse.keys.reader import MirrorDown
from meterhouse.notices import Notices
from meterhouse.stores import open_redis

PATIENT_SECONDS = 5.0


def run_on_uvloop(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(uvloop.run, run()).result()


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have every connection close right before a command is written to it; ``closing()`` begins with it."""
    original = redis.asyncio.Connection._send_packed_command

    async def send(connection: redis.asyncio.Connection, command: Any) -> None:
        assert connection._writer is not None
        connection._writer.transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)
        await original(connection, command)

    return lambda: monkeypatch.setattr(redis.asyncio.Connection, "_send_packed_command", send)


def test_the_mirror_is_down_when_its_connection_closes_in_between(
    redis_url: str, closing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        client = open_redis(redis_url, PATIENT_SECONDS)
        mirror = KeyMirror(client, MovingClock(), b"s" * 32, PATIENT_SECONDS)
        assert await mirror.find(["a"]) == {}
        closing()
        with pytest.raises(MirrorDown, match="the handler is closed"):
            await mirror.find(["a"])
        assert mirror.failures == 1
        monkeypatch.undo()
        await asyncio.sleep(0.6)  # it asks again after half a second
        assert await mirror.find(["a"]) == {}
        await client.aclose()

    run_on_uvloop(work)


def test_a_notice_is_not_taken_when_the_connection_closes_in_between(
    redis_url: str, closing: Callable[[], None]
) -> None:
    async def work() -> None:
        notices = Notices(redis_url)
        assert await notices.publish("key", {})
        closing()
        assert not await notices.publish("key", {})
        await notices.close()

    run_on_uvloop(work)
