"""A bounded wait tells an answer that does not come from one that a busy loop had no time to read."""

import asyncio
import threading
import time

import pytest

from fakes.meter_oracle import FakeClock, Oracle, admitted, build_demand
from meterhouse.limits.memory import MemoryMeter
from meterhouse.limits.patience import patience
from meterhouse.metering import Period, Sums


async def test_what_comes_in_time_is_waited_for() -> None:
    async with patience(20):
        await asyncio.sleep(0.01)


async def test_what_does_not_come_is_given_up() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with patience(0.05):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.05


async def test_a_loop_that_was_busy_reads_what_came_meanwhile() -> None:
    """The answer needs some turns of the loop after the long one, as one that goes through several tasks does."""
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    async with patience(0.1):
        threading.Timer(0.01, loop.call_soon_threadsafe, [answered.set]).start()
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - the loop is busy
        await answered.wait()
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_loop_that_was_busy_does_not_wait_for_ever() -> None:
    async def wait() -> None:
        async with patience(0.05):
            await asyncio.sleep(0)
            time.sleep(0.2)  # noqa: ASYNC251 - the loop is busy
            await asyncio.Event().wait()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await wait()
    assert time.monotonic() - began >= 0.24, "the fifth of its time in which it was busy counts once"


async def test_who_gives_up_while_waiting_is_let_go() -> None:
    async def wait() -> None:
        async with patience(20):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_budget_is_not_refused_because_the_loop_was_busy_when_the_ledger_answered() -> None:
    oracle = Oracle()

    async def seed(periods: list[Period]) -> list[Sums]:
        await asyncio.to_thread(time.sleep, 0.01)
        return await oracle.seed(periods)

    meter = MemoryMeter(FakeClock(), seed, seed_wait_seconds=0.1)
    asking = [asyncio.create_task(meter.reserve(build_demand("tokens 9000 total"))) for _ in range(3)]
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - the loop is busy
    for reservation in await asyncio.gather(*asking):
        assert admitted(reservation).held_output_tokens == 100
