"""The collector looks at what is old while few requests are open, or when that has waited long enough."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from meterhouse import garbage
from meterhouse.garbage import FEW_REQUESTS, LONGEST_SECONDS, OFTEN, YOUNG, collect_when_calm

TURNS = 50


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The generations that were looked at on purpose; it is looked without a pause."""
    found: list[int] = []
    collect = gc.collect
    collect()  # whatever the tests before have left to be looked at

    def note(generation: int = 2) -> int:
        found.append(generation)
        return collect(generation)

    monkeypatch.setattr(gc, "collect", note)
    monkeypatch.setattr(garbage, "PAUSE_SECONDS", 0.0)
    before = gc.get_threshold()
    yield found
    gc.set_threshold(*before)


async def run(
    looks: list[int],
    count_open: Callable[[], int],
    *,
    young_looks: int = OFTEN + 1,
    now: Callable[[], float] = time.monotonic,
) -> list[int]:
    """Return what was looked at after so many looks at the young."""
    task = asyncio.create_task(collect_when_calm(count_open, now))
    await asyncio.sleep(0)
    for _ in range(young_looks):
        gc.collect(0)
    looks.clear()
    for _ in range(TURNS):
        await asyncio.sleep(0)
    found = looks.copy()
    task.cancel()
    await asyncio.wait({task})
    return found


async def test_python_looks_at_nothing_old_by_itself(looks: list[int]) -> None:
    task = asyncio.create_task(collect_when_calm(lambda: 0))
    await asyncio.sleep(0)
    young, *old = gc.get_threshold()
    assert (young, min(old) > 1_000_000) == (YOUNG, True)
    task.cancel()
    await asyncio.wait({task})
    assert gc.get_threshold() == (YOUNG, OFTEN, OFTEN)
    assert not looks


async def test_the_old_are_looked_at_while_few_requests_are_open(looks: list[int]) -> None:
    assert len(await run(looks, lambda: FEW_REQUESTS)) == 1


async def test_the_old_wait_while_many_requests_are_open(looks: list[int]) -> None:
    assert await run(looks, lambda: FEW_REQUESTS + 1) == []


async def test_nobody_looks_again_before_there_is_something_new(looks: list[int]) -> None:
    assert await run(looks, lambda: 0, young_looks=OFTEN // 2) == []


async def test_the_old_wait_no_longer_than_so(looks: list[int]) -> None:
    hours = count(step=LONGEST_SECONDS)
    assert await run(looks, lambda: FEW_REQUESTS + 1, now=lambda: next(hours)) == [2]


async def test_the_wait_begins_when_a_look_is_due(looks: list[int]) -> None:
    moment = [0.0]
    task = asyncio.create_task(collect_when_calm(lambda: FEW_REQUESTS + 1, lambda: moment[0]))
    for _ in range(TURNS):
        await asyncio.sleep(0)
    moment[0] = 2 * LONGEST_SECONDS  # a quiet night
    for _ in range(OFTEN + 1):
        gc.collect(0)
    looks.clear()
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert looks == []
    task.cancel()
    await asyncio.wait({task})


async def test_the_oldest_are_looked_at_now_and_then(looks: list[int]) -> None:
    found = [await run(looks, lambda: 0) for _ in range(OFTEN + 2)]
    assert found == [[1]] * (OFTEN + 1) + [[2]]
