"""The schema changes while requests flow: no request notices."""

import asyncio
import time

import pytest

from failure.matrix.house import AMPLE, PACED, QUICK_ANSWER, UNCOUNTED, House
from failure.matrix.test_postgres_away import errors_of
from failure.schema import migrate, take_back

TIMES = 2
MIX = (*[QUICK_ANSWER] * 4, PACED, UNCOUNTED)


def count_workers(house: House) -> int:
    return int(house.postgres.query("SELECT count(*) FROM worker", house.database_url)[0][0])


@pytest.mark.slow_fault
async def test_requests_notice_no_migration(house: House) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    async with house.crowd(keys, MIX, clients=8) as talks:
        assert "nothing was to be done" in await asyncio.to_thread(migrate, house.fleet.environment, house.database_url)
        for _ in range(TIMES):
            await asyncio.to_thread(take_back, house.database_url, "0001")
            began = time.time()
            assert "was brought to" in await asyncio.to_thread(migrate, house.fleet.environment, house.database_url)
            issued = await asyncio.to_thread(house.new_key)
            told = await asyncio.to_thread(house.ask, issued)
            assert told.is_whole, told.arrivals
        await asyncio.sleep(0.3)
    assert len([talk for talk in talks if talk.asked_at > began]) > 10
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    assert set(verdict.statuses) == {200}
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    await asyncio.to_thread(house.wait_for, lambda: count_workers(house) == house.fleet.workers)
    assert not errors_of(house)
