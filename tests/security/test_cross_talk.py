"""Cross-talk (ChatGPT on 2023-03-20, CVE-2023-28858, CVE-2023-28859): a cancelled question's answer, given to another.

Ten thousand questions, each with its own canary, on the meter's connection, and hundreds on those of the keys; most are
cancelled at any await there is. Whoever is still there must get its own answer. The same over whole requests is in
``tests/failure/test_cancellation_storm.py`` and, ten thousand times, in ``test_cancelled_requests``.
"""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fakes.house import PEPPERS, House, opened_house
from fakes.link_bench import ECHO, linked
from fakes.servers import RedisServer
from meterhouse.db.engine import close, open_engine
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.mirror import KeyMirror
from meterhouse.limits.link import LinkPolicy
from meterhouse.stores import open_redis

QUESTIONS = 10_000
AT_ONCE = 200
PATIENT_SECONDS = 10.0
Question = Callable[[int], Awaitable[object]]


async def storm(ask: Question, questions: int = QUESTIONS, at_once: int = AT_ONCE) -> int:
    """Ask, cancel three of four after as many turns of the loop as chance says; returns how many got their answer.

    ``ask(n)`` raises when the answer is not that of ``n``.
    """
    chance = random.Random(38)
    answered = 0
    for first in range(0, questions, at_once):
        tasks = [asyncio.ensure_future(ask(first + number)) for number in range(at_once)]
        doomed = {task: chance.randrange(12) for task in tasks if chance.random() < 0.75}
        for turn in range(12):
            for task, moment in doomed.items():
                if moment == turn:
                    task.cancel()
            await asyncio.sleep(0)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, asyncio.CancelledError):
                continue
            if isinstance(result, BaseException):
                raise result
            answered += 1
    return answered


async def test_the_meters_connection(redis_server: RedisServer) -> None:
    redis_server.flush()
    async with linked(redis_server.url, LinkPolicy(timeout_seconds=10, connect_timeout_seconds=10)) as (link, _):

        async def ask(number: int) -> None:
            canary = b"canary %d" % number
            answer = await link.call(ECHO, [f"{{o{number % 7}}}"], canary)
            assert answer == [b"{o%d}" % (number % 7), canary]

        assert await storm(ask) > QUESTIONS / 5


@pytest.fixture(autouse=True)
async def _nothing_is_left_open() -> AsyncIterator[None]:
    """What a storm leaves open is said here, and not in whatever test collects it."""
    yield
    for _ in range(3):  # a connection that was cut is closed in the loop's next turns
        await asyncio.sleep(0)
    gc.collect()


@pytest.fixture
async def house(tmp_path) -> AsyncIterator[House]:
    async with opened_house(tmp_path) as found:
        yield found


async def test_the_connections_of_the_keys_in_redis(house: House, redis_url: str) -> None:
    issued = [await house.issue(name=f"canary {number}") for number in range(40)]
    client = open_redis(redis_url, PATIENT_SECONDS)
    mirror = KeyMirror(client, house.clock, b"s" * 32, PATIENT_SECONDS)
    found = await house.catalog.keys.find_keys([one.key.id for one in issued])
    for key in found.values():
        mirror.put(key, house.clock.now_ms())
    while mirror._writer is not None:
        await asyncio.wait({mirror._writer})

    async def ask(number: int) -> None:
        wanted = issued[number % len(issued)].key
        (mirrored,) = (await mirror.find([wanted.id])).values()
        assert (mirrored.key.id, mirrored.key.name) == (wanted.id, wanted.name)

    assert await storm(ask, QUESTIONS // 10, at_once=8) > QUESTIONS / 100
    await mirror.close()
    await client.aclose()


async def test_the_connections_of_the_keys_in_postgres(migrated_database_url: str) -> None:
    engine = open_engine(migrated_database_url)
    house = House(engine, None)
    organization = await house.service.create_organization("Acme")
    house.project = await house.service.create_project(organization.id, "Search")
    issued = [await house.issue(name=f"canary {number}") for number in range(40)]

    async def ask(number: int) -> None:
        wanted = issued[number % len(issued)].key
        (found,) = (await house.catalog.keys.find_keys([wanted.id])).values()
        assert (found.id, found.name) == (wanted.id, wanted.name)

    assert await storm(ask, QUESTIONS // 25, at_once=5) > 0
    await house.keyring.close()
    await close(engine)


async def test_readers_that_share_a_read(house: House) -> None:
    """One read for all who wait: who leaves takes nobody's answer along, and nobody gets another key's."""
    issued = [await house.issue(name=f"canary {number}") for number in range(40)]
    keyring = Keyring(house.catalog.keys, PEPPERS, house.clock, fresh_ms=1)

    async def ask(number: int) -> None:
        wanted = issued[number % len(issued)]
        principal = await keyring.verify(f"Bearer {wanted.value}", None)
        assert principal.key_id == wanted.key.id
        house.clock.move(1)

    assert await storm(ask, QUESTIONS // 10) > QUESTIONS / 100
    await keyring.close()
