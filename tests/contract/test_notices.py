"""Notices between processes, over real Redis: delivered when all is well, and again once it is well again."""

import asyncio
from contextlib import asynccontextmanager
from unittest import mock

import pytest
import redis.asyncio
from redis.asyncio.client import PubSub

from fakes.link_bench import until
from fakes.servers import RedisServer
from meterhouse.http.tasks import Tasks
from meterhouse.notices import CHANNEL, CONNECTED, Notices


@asynccontextmanager
async def listening(url):
    notices, tasks = Notices(url), Tasks()
    tasks.keep(notices.run)
    try:
        yield notices
    finally:
        await tasks.close()
        await notices.close()


def collect(notices, kind):
    heard = asyncio.Queue()
    notices.on(kind, heard.put_nowait)
    return heard


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, 10)


async def test_everybody_hears_a_notice_the_sender_too(redis_url):
    async with listening(redis_url) as one, listening(redis_url) as other:
        heard = [collect(notices, "key") for notices in (one, other)]
        twice = collect(other, "key")
        elsewhere = collect(other, "flush")
        await soon(asyncio.gather(one.wait_connected(), other.wait_connected()))
        payload = ["key_1", {"seconds": 1.5, "ids": [1, 2**53]}, None, b"\x00"]
        assert await one.publish("key", payload)
        for queue in (*heard, twice):
            assert await soon(queue.get()) == payload
        assert await other.publish("flush", 1)
        assert await soon(elsewhere.get()) == 1
        assert all(queue.empty() for queue in (*heard, twice))


async def test_what_nobody_understands_is_passed_over(redis_url):
    async with listening(redis_url) as notices, redis.asyncio.Redis.from_url(redis_url) as client:
        heard = collect(notices, "key")
        await soon(notices.wait_connected())
        for message in (b"", b"\xc1", b"\x93\x01\x02\x03", "text", b"\x92\x01\x02"):
            await client.publish(CHANNEL, message)
        await notices.publish("of a later version", {"a": 1})
        await notices.publish("key", "good")
        assert await soon(heard.get()) == "good"


async def test_a_broken_connection_is_made_again_and_told_of(redis_url, redis_server):
    async with listening(redis_url) as notices:
        connected, heard = collect(notices, CONNECTED), collect(notices, "key")
        await soon(connected.get())
        for number in range(3):
            redis_server.cli("CLIENT", "KILL", "TYPE", "pubsub")
            redis_server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await soon(connected.get())
            assert await notices.publish("key", number)
            assert await soon(heard.get()) == number
        assert notices.losses >= 3


async def test_a_redis_that_comes_back_is_heard_again(tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        async with listening(server.url) as notices:
            connected, heard = collect(notices, CONNECTED), collect(notices, "key")
            await soon(connected.get())
            await asyncio.to_thread(server.kill)
            await until(lambda: not notices.is_connected)
            assert not await notices.publish("key", "lost")
            await asyncio.to_thread(server.start)
            await soon(connected.get())
            assert await notices.publish("key", "heard")
            assert await soon(heard.get()) == "heard"


async def test_a_redis_that_hangs_is_given_up_and_found_again(tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        async with listening(server.url) as notices:
            connected, heard = collect(notices, CONNECTED), collect(notices, "key")
            await soon(connected.get())
            server.pause()
            assert not await soon(notices.publish("key", "lost"))
            await until(lambda: not notices.is_connected)
            server.resume()
            await soon(connected.get())
            assert await notices.publish("key", "heard")
            # What hung may be delivered after all, but never after what followed.
            assert await soon(heard.get()) in {"lost", "heard"}


async def test_a_start_without_redis_waits_for_it(tmp_path):
    server = RedisServer(tmp_path / "redis")
    async with listening(server.url) as notices:
        connected = collect(notices, CONNECTED)
        assert not await notices.publish("key", "lost")
        await until(lambda: notices.losses > 0)
        with server:
            await soon(connected.get())
            assert notices.is_connected


async def test_a_cluster_passes_notices_on_between_its_nodes(redis_cluster):
    first, other = (f"redis+cluster://127.0.0.1:{node.port}" for node in redis_cluster.nodes[:2])
    async with listening(first) as one, listening(other) as two:
        heard = collect(two, "key")
        await soon(asyncio.gather(one.wait_connected(), two.wait_connected()))
        assert await one.publish("key", 1)
        assert await soon(heard.get()) == 1


async def test_another_node_of_a_cluster_takes_over(redis_cluster):
    node = redis_cluster.nodes[0]
    async with listening(f"redis+cluster://127.0.0.1:{node.port}") as notices:
        connected, heard = collect(notices, CONNECTED), collect(notices, "key")
        await soon(connected.get())
        node.pause()
        try:
            await soon(connected.get())
            assert await notices.publish("key", "still here")
            while await soon(heard.get()) != "still here":
                pass
        finally:
            node.resume()
            await asyncio.to_thread(redis_cluster.wait_until_whole)


@pytest.mark.parametrize("is_answered", [True, False], ids=["an answer", "a failure"])
async def test_a_cancellation_that_the_client_library_drops_ends_the_listening_nevertheless(redis_url, is_answered):
    """``wait_for`` drops one in Python 3.11 when it comes as what is waited for ends: this way or that."""
    get_message = PubSub.get_message

    async def drop(channel, **arguments):
        try:
            return await get_message(channel, **arguments)
        except asyncio.CancelledError:
            if is_answered:
                return None
            raise redis.ConnectionError("gone") from None

    notices = Notices(redis_url)
    with mock.patch.object(PubSub, "get_message", drop):
        listening = asyncio.ensure_future(notices.run())
        await soon(notices.wait_connected())
        listening.cancel()
        assert await soon(asyncio.wait({listening})) == ({listening}, set())
    assert listening.cancelled()
    await notices.close()
