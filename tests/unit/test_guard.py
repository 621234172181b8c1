"""Waits of a request are ended by an interruption with its reason, and by nothing else that is told so."""

import asyncio
from collections.abc import Awaitable

import pytest

from meterhouse.errors import UpstreamTimeout
from meterhouse.http.guard import ClientGone, Guard

LATE = UpstreamTimeout("late")


async def wait_in_place(guard: Guard, awaitable: Awaitable[object]) -> object:
    """Wait as who saves the coroutine of ``wait``."""
    try:
        guard.is_waiting = True
        return await awaitable
    except (asyncio.CancelledError, ZeroDivisionError) as error:
        guard.explain(error)
        raise


WAYS = [Guard.wait, wait_in_place]


@pytest.mark.parametrize("wait", WAYS)
async def test_an_interruption_ends_the_wait_with_its_reason_and_the_task_goes_on(wait):
    guard = Guard(asyncio.current_task())
    asyncio.get_running_loop().call_soon(guard.interrupt, LATE)
    with pytest.raises(UpstreamTimeout):
        await wait(guard, asyncio.get_running_loop().create_future())
    assert not guard.is_waiting
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)


@pytest.mark.parametrize("wait", WAYS)
async def test_an_interruption_in_the_turn_of_the_result_is_not_lost(wait):
    guard = Guard(asyncio.current_task())
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, None)
    loop.call_soon(guard.interrupt, LATE)
    with pytest.raises(UpstreamTimeout):
        await wait(guard, future)
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("wait", WAYS)
async def test_a_cancellation_passes(wait):
    loop = asyncio.get_running_loop()
    started = loop.create_future()

    async def request() -> None:
        guard = Guard(asyncio.current_task())
        loop.call_soon(started.set_result, None)
        await wait(guard, loop.create_future())

    task = loop.create_task(request())
    await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("wait", WAYS)
async def test_a_failure_stays_what_it_is(wait):
    future = asyncio.get_running_loop().create_future()
    future.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await wait(Guard(asyncio.current_task()), future)


async def test_a_cancellation_between_waits_is_nobody_elses_though_a_reason_waits():
    guard = Guard(asyncio.current_task())
    guard.interrupt(ClientGone())
    guard.explain(asyncio.CancelledError())


async def test_a_reason_that_came_before_is_told_by_the_next_wait_and_nothing_is_begun():
    guard = Guard(asyncio.current_task())
    guard.interrupt(LATE)
    began = []

    async def begin() -> None:
        began.append(1)

    with pytest.raises(UpstreamTimeout):
        await guard.wait(begin())
    assert not began
