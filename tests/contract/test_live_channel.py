"""Live events go from one process to another over a real Redis, alone or as a cluster, only while somebody listens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis.asyncio

from fakes.link_bench import until
from meterhouse.http.tasks import Tasks
from meterhouse.live_channel import CHANNEL, WANTED_NOTICE, LiveChannel
from meterhouse.notices import Notices
from meterhouse.telemetry.live import EVERYBODY, Live, LiveKind

FINISHED = {"organization_id": "org_1", "request_id": "req_1", "status": 200}


@pytest.fixture(params=["one server", "cluster"])
def urls(request):
    """The addresses that two processes have."""
    if request.param == "cluster":
        nodes = request.getfixturevalue("redis_cluster").nodes
        return [f"redis+cluster://127.0.0.1:{node.port}" for node in nodes[:2]]
    return [request.getfixturevalue("redis_url")] * 2


@asynccontextmanager
async def process(url: str) -> AsyncIterator[Live]:
    """What a worker has of it."""
    notices, tasks = Notices(url), Tasks()
    live = Live(LiveChannel(notices, url, tasks), lambda: (), lambda is_on: None, lambda tally: None)
    notices.on(WANTED_NOTICE, live.want)
    tasks.keep(notices.run)
    tasks.keep(live.run)
    await asyncio.wait_for(notices.wait_connected(), 10)
    try:
        yield live
    finally:
        await tasks.close()
        await notices.close()


def wanted_by(*lives: Live) -> set[str]:
    """What every one of them has heard that somebody listens to."""
    return set.intersection(*(set(live._wanted) for live in lives))


async def test_a_listener_hears_of_a_request_at_another_process(urls):
    async with process(urls[0]) as here, process(urls[1]) as there:
        assert not there.is_on
        there.note_finished("key_1", FINISHED)
        async with here.listen("org_1", "key_1") as mine, here.listen(EVERYBODY, None) as all_of_them:
            await until(lambda: wanted_by(here, there) == {"org_1", EVERYBODY})
            there.note_finished("key_1", FINISHED)
            there.note_finished("key_2", FINISHED)
            here.note_finished("key_1", FINISHED | {"request_id": "req_2"})
            heard = []
            while len(heard) < 2:
                heard += await mine.take(10)
            seen = []
            while len(seen) < 3:
                seen += await all_of_them.take(10)
        assert sorted(event["request_id"] for event in heard) == ["req_1", "req_2"]
        assert len(seen) == 3
        assert {event["type"] for event in seen} == {LiveKind.REQUEST_FINISHED}


async def test_a_lost_connection_is_told_and_made_again(redis_url):
    async with process(redis_url) as here, redis.asyncio.Redis.from_url(redis_url) as client:
        async with here.listen("org_1", None) as listener:
            await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            events = []
            while not events:
                events = await listener.take(10)
            assert [(event["type"], event["dropped_events"]) for event in events] == [(LiveKind.LIVE_INTERRUPTED, None)]
            here.want("org_1")
            here.note_finished("key_1", FINISHED)
            assert [event["request_id"] for event in await listener.take(10)] == ["req_1"]
        assert await client.execute_command("PUBSUB", "CHANNELS", f"{CHANNEL}*") == []


async def test_without_redis_a_listener_hears_nothing_and_holds_up_nothing(monkeypatch):
    url = "redis://127.0.0.1:1"
    monkeypatch.setattr("meterhouse.live_channel.CONNECT_SECONDS", 0.1)
    notices, tasks = Notices(url), Tasks()
    live = Live(LiveChannel(notices, url, tasks), lambda: (), lambda is_on: None, lambda tally: None)
    async with asyncio.timeout(5):
        async with live.listen("org_1", None) as listener:
            assert await listener.take(0.05) == []
    await tasks.close()
    await notices.close()
