"""A host is lost with its journals, and a host loses everything but its disks: what may not survive, and what must.

The invariants P1, P2 and I7: another host goes on with what the stores know; what a client saw the end of is recorded.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from urllib.parse import urlsplit

import pytest

from failure.killing import Conversation
from failure.matrix.aiming import (
    GATED,
    LATE_SECONDS,
    LEASE_SECONDS,
    SWEEP_SECONDS,
    Spool,
    Standing,
    replay,
    rows_of,
    spent,
    wait_released,
)
from failure.matrix.house import AMPLE, INPUT_NANOS, OUTPUT_NANOS, PACED, QUICK_ANSWER, UNCOUNTED, House
from fakes.fleet import ServeProcess

pytestmark = pytest.mark.slow_fault

HOUSE = {"models": GATED, "environment": {"METERHOUSE_HOSTS": "2"}, "fsync": True}
RECONCILE_SECONDS = 1.0
"""As in ``fleet.QUICK``."""
BUDGET_NANOS = 5_000_000
BUDGET = "spend 0.005 USD total"
SHORT = {"max_tokens": 16}
MOST_HELD_NANOS = 300_000
"""What one of the short requests can hold at most."""
CLIENTS = 12


@contextmanager
def second_host(house: House) -> Iterator[ServeProcess]:
    """Run workers of another host on the same stores: with journals and an allowance of their own."""
    first = house.fleet
    settings = dict(first.environment)
    urls = {"redis_url": settings.pop("METERHOUSE_REDIS_URL"), "database_url": settings.pop("METERHOUSE_DATABASE_URL")}
    del settings["METERHOUSE_DATA"]
    fleet = ServeProcess(house.folder / "other", environment=settings, **urls)
    fleet.key, fleet.admin_key = first.key, first.admin_key
    with fleet:
        yield fleet


async def talk_until_killed(house: House, key: str, kill: Callable[[], None]) -> Conversation:
    """Ask, and kill in the very moment in which the end of the answer is read."""
    talk = house.conversation()
    address = urlsplit(house.fleet.url)
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(talk.encode(key))
        while data := await reader.read(1 << 16):
            if b"data: [DONE]" in data:
                kill()
            talk.arrivals.append((time.time(), data))
        writer.close()
    talk.read()
    return talk


class Catastrophe:
    """``kill -9`` of every worker, their parent, Redis and PostgreSQL, at once and only once."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._pids = [house.fleet.pid, *house.fleet.pids(), house.redis.pid, house.postgres.pid]
        self.has_struck = False

    def strike(self) -> None:
        """Kill; the rest of their children is ended by ``clear``."""
        if not self.has_struck:
            self.has_struck = True
            for pid in self._pids:
                os.kill(pid, signal.SIGKILL)

    def clear(self) -> None:
        """End what is left of them and start everything again."""
        house = self._house
        house.fleet.kill_all()
        house.redis.kill()
        house.postgres.kill()
        house.redis.start()
        house.postgres.start()
        house.fleet.start()


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow_fault)])
async def test_what_a_client_saw_the_end_of_survives_the_end_of_everything(
    house: House, figures: Callable[..., None], rounds: int
) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    assert (await asyncio.to_thread(house.ask, key)).is_whole
    for _ in range(rounds):
        catastrophe = Catastrophe(house)
        async with Spool(house):
            talks = await asyncio.gather(
                *(talk_until_killed(house, key, catastrophe.strike) for _ in range(CLIENTS)),
            )
        assert catastrophe.has_struck
        await asyncio.to_thread(catastrophe.clear)
        seen = [talk for talk in talks if talk.is_whole]
        assert seen
        verdict = await asyncio.to_thread(house.judge, talks, allowed=(0, 200))
        assert not verdict.faults, verdict.faults[:10]
        await asyncio.to_thread(house.wait_at_rest, key)
        figures(ends_of_everything=1, ends_seen=len(seen))
    await asyncio.to_thread(replay, house)


@pytest.mark.slow_fault
async def test_another_host_goes_on_when_one_is_lost_with_its_journals(
    house: House, figures: Callable[..., None]
) -> None:
    """What the lost host spent and had not shipped nobody can record, and nobody may give it back."""
    held, spending, ample = [await asyncio.to_thread(house.new_key, limits) for limits in (AMPLE, BUDGET, AMPLE)]
    standing = Standing(house)
    for phase in "RCSE":
        await standing.add(phase, held)
    first = house.fleet
    # Known before nothing is shipped any more, as whatever was met before is.
    assert await asyncio.to_thread(spent, house, spending, "spend") == 0
    with second_host(house) as second:
        async with Spool(house):
            lost = [await asyncio.to_thread(house.ask, spending, **SHORT) for _ in range(20)]
            assert all(talk.is_whole for talk in lost)
            unknown_nanos = sum(map(partial(cost_nanos, house), lost))
            await asyncio.to_thread(house.wait_for, lambda: spent(house, spending, "spend") == unknown_nanos)
            first.kill_all()
            shutil.rmtree(first.data)
        house.fleet = second
        try:
            await standing.end()
            for key in (held, spending):
                hold_back_seconds = await asyncio.to_thread(wait_released, house, key, 3 * LEASE_SECONDS)
                figures(hold_back_seconds=hold_back_seconds)
                assert hold_back_seconds <= LEASE_SECONDS + SWEEP_SECONDS + LATE_SECONDS
            assert not any(rows_of(house, lost).values())
            await stays_spent(house, spending, unknown_nanos)
            await spend_the_rest(house, spending, unknown_nanos, figures)
            async with house.crowd([ample], [QUICK_ANSWER, PACED, UNCOUNTED], clients=8) as talks:
                await asyncio.sleep(1.5)
            verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
            assert not verdict.faults, verdict.faults[:10]
            await asyncio.to_thread(house.wait_at_rest, ample)
            await asyncio.to_thread(replay, house, data=second.data)
        finally:
            house.fleet = first
    await asyncio.to_thread(first.start)


def cost_nanos(house: House, talk: Conversation) -> int:
    """Return what a request costs by the provider's own log."""
    (attempt,) = house.attempts()[talk.marker]
    assert attempt.usage is not None
    return int(attempt.usage["prompt_tokens"] * INPUT_NANOS + attempt.usage["completion_tokens"] * OUTPUT_NANOS)


async def stays_spent(house: House, key: str, nanos: int) -> None:
    """The reconciler has looked several times, and gives back nothing that only the lost journals knew."""
    until = time.monotonic() + LEASE_SECONDS + 2 * RECONCILE_SECONDS
    while time.monotonic() < until:
        assert await asyncio.to_thread(spent, house, key, "spend") == nanos
        await asyncio.sleep(0.2)


async def spend_the_rest(house: House, key: str, unknown_nanos: int, figures: Callable[..., None]) -> None:
    """The budget is spent and refused for good, the unrecorded part of it included."""

    def is_refused(talk: Conversation) -> bool:
        return b"insufficient_quota" in b"".join(data for _, data in talk.arrivals)

    async with house.crowd([key], [QUICK_ANSWER], clients=CLIENTS, **SHORT) as talks:
        await asyncio.to_thread(house.wait_for, lambda: any(map(is_refused, talks)), 30)
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(200, 429), is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    await asyncio.to_thread(wait_released, house, key, 3 * LEASE_SECONDS)
    total = house.spent_nanos(key) + unknown_nanos
    figures(overrun_nanos=max(0, total - BUDGET_NANOS))
    assert BUDGET_NANOS - MOST_HELD_NANOS < total <= BUDGET_NANOS
    assert await asyncio.to_thread(spent, house, key, "spend") == total
