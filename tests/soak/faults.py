"""The faults of the soak: each is caused, lasts for a while, and is over when its coroutine returns.

Invariant: two at a time are faults of different parts, since a Redis that was killed can neither hang nor forget.
"""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from failure.matrix.house import House

LONG_SECONDS, SHORT_SECONDS = 12.0, 5.0


async def kill_worker(house: House, _: random.Random) -> None:
    """The youngest, so that the other one is as old as it can be when its memory is looked at."""
    await asyncio.to_thread(house.fleet.kill, house.fleet.serving()[-1])
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


@dataclass(frozen=True)
class Fault:
    """One fault and what it meets."""

    name: str
    part: str
    cause: Callable[[House, random.Random], Awaitable[None]]

    @property
    def ends_workers(self) -> bool:
        """Whether a worker that ran before it is gone after it."""
        return self.cause in {kill_worker, reload_workers}

    @property
    def hits_answers(self) -> bool:
        """Whether an answer that runs, or is asked for meanwhile, may be lost by it. What hits a store may not."""
        return self.part == "workers" or self.cause is cut_the_provider

    @property
    def ends_every_worker(self) -> bool:
        """Whether no worker is as old as the run after it."""
        return self.cause is reload_workers


FAULTS = (
    Fault("a worker is killed", "workers", kill_worker),
    Fault("a worker stands still", "workers", stop_worker),
    Fault("the workers are reloaded", "workers", reload_workers),
    Fault("Redis refuses", "Redis", refuse_redis),
    Fault("Redis hangs", "Redis", hang_redis),
    Fault("Redis is killed", "Redis", kill_redis),
    Fault("Redis forgets everything", "Redis", flush_redis),
    Fault("Redis is slow", "Redis", delay_redis),
    Fault("PostgreSQL refuses", "PostgreSQL", refuse_postgres),
    Fault("PostgreSQL hangs", "PostgreSQL", hang_postgres),
    Fault("PostgreSQL is killed", "PostgreSQL", kill_postgres),
    Fault("every connection to the stores is cut", "connections", cut_the_stores),
    Fault("every connection to the provider is cut", "connections", cut_the_provider),
)


class Deck:
    """All faults in some order; each comes once before one comes again."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._left: list[Fault] = []

    def draw(self, count: int, *, keeps_workers: bool) -> list[Fault]:
        """Take so many, of different parts; none that ends every worker where they are to be kept."""
        drawn: list[Fault] = []
        while len(drawn) < count:
            fitting = self._fitting({fault.part for fault in drawn}, keeps_workers=keeps_workers)
            found = next(iter(fitting), None)
            if found is None:
                self._left += self._chance.sample(FAULTS, len(FAULTS))
            else:
                self._left.remove(found)
                drawn.append(found)
        return drawn

    def _fitting(self, met: set[str], *, keeps_workers: bool) -> Iterable[Fault]:
        return (f for f in self._left if f.part not in met and not (keeps_workers and f.ends_every_worker))
