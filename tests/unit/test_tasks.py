import asyncio

import pytest

from meterhouse.http import tasks as module
from meterhouse.http.tasks import Tasks


async def test_a_loop_that_fails_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", 0)
    runs: list[int] = []
    is_enough = asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 3:
            is_enough.set()
        raise RuntimeError("again")

    tasks = Tasks()
    tasks.keep(work)
    await asyncio.wait_for(is_enough.wait(), 5)
    await tasks.close()
    assert len(runs) >= 3


async def test_closing_ends_what_runs() -> None:
    tasks = Tasks()
    task = tasks.start(asyncio.Event().wait())
    await asyncio.sleep(0)
    await tasks.close()
    assert task.cancelled()
