"""The faults of the soak: each is caused, lasts for a while, and is over when its coroutine returns."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from failure.matrix.house import House

Fault = Callable[[House, random.Random], Awaitable[None]]
LONG_SECONDS, SHORT_SECONDS = 12.0, 5.0


async def kill_worker(house: House, chance: random.Random) -> None:
    pid = chance.choice(house.fleet.serving())
    await asyncio.to_thread(house.fleet.kill, pid)
    await asyncio.to_thread(house.fleet.wait_workers)


async def stop_worker(house: House, chance: random.Random) -> None:
    pid = chance.choice(house.fleet.serving())
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(SHORT_SECONDS)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def reload_workers(house: House, _: random.Random) -> None:
    old = set(house.fleet.serving())
    house.fleet.reload()
    await asyncio.to_thread(house.fleet.wait_workers, but=old)


async def refuse_redis(house: House, _: random.Random) -> None:
    house.redis_proxy.refuse()
    await asyncio.sleep(LONG_SECONDS)
    house.redis_proxy.heal()


async def hang_redis(house: House, _: random.Random) -> None:
    await asyncio.to_thread(house.redis.pause)
    await asyncio.sleep(SHORT_SECONDS)
    await asyncio.to_thread(house.redis.resume)


async def kill_redis(house: House, _: random.Random) -> None:
    await asyncio.to_thread(house.redis.kill)
    await asyncio.sleep(SHORT_SECONDS)
    await asyncio.to_thread(house.redis.start)


async def flush_redis(house: House, _: random.Random) -> None:
    await asyncio.to_thread(house.redis.flush)


async def delay_redis(house: House, _: random.Random) -> None:
    house.redis_proxy.delay(0.03)
    await asyncio.sleep(LONG_SECONDS)
    house.redis_proxy.heal()


async def refuse_postgres(house: House, _: random.Random) -> None:
    house.postgres_proxy.refuse()
    await asyncio.sleep(LONG_SECONDS)
    house.postgres_proxy.heal()


async def hang_postgres(house: House, _: random.Random) -> None:
    house.postgres_proxy.black_hole()
    await asyncio.sleep(SHORT_SECONDS)
    house.postgres_proxy.heal()
    house.postgres_proxy.reset()


async def kill_postgres(house: House, _: random.Random) -> None:
    await asyncio.to_thread(house.postgres.kill)
    await asyncio.sleep(SHORT_SECONDS)
    await asyncio.to_thread(house.postgres.start)


async def cut_the_stores(house: House, _: random.Random) -> None:
    house.redis_proxy.reset()
    house.postgres_proxy.reset()


async def cut_the_provider(house: House, _: random.Random) -> None:
    house.up.drop_connections()


FAULTS: dict[str, Fault] = {
    "a worker is killed": kill_worker,
    "a worker stands still": stop_worker,
    "the workers are reloaded": reload_workers,
    "Redis refuses": refuse_redis,
    "Redis hangs": hang_redis,
    "Redis is killed": kill_redis,
    "Redis forgets everything": flush_redis,
    "Redis is slow": delay_redis,
    "PostgreSQL refuses": refuse_postgres,
    "PostgreSQL hangs": hang_postgres,
    "PostgreSQL is killed": kill_postgres,
    "every connection to the stores is cut": cut_the_stores,
    "every connection to the provider is cut": cut_the_provider,
}
