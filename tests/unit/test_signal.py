"""What stands in for ``asyncio.Event`` in a client's connection."""

import asyncio

import pytest

from meterhouse.http.signal import Signal

PATIENCE_SECONDS = 60


async def test_nobody_waits_for_what_is_set() -> None:
    signal = Signal(is_set=True)
    assert await asyncio.wait_for(signal.wait(), PATIENCE_SECONDS)
    assert signal.is_set()


async def test_all_that_wait_are_woken_also_when_it_is_cleared_at_once() -> None:
    signal = Signal()
    waiting = [asyncio.create_task(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    signal.set()
    signal.clear()
    assert await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_SECONDS) == [True] * 3
    assert not signal.is_set()


async def test_who_gives_up_is_forgotten_and_the_others_are_woken() -> None:
    signal = Signal()
    gone, stays = asyncio.create_task(signal.wait()), asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    signal.set()
    assert await asyncio.wait_for(stays, PATIENCE_SECONDS)
