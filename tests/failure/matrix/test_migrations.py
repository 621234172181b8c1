"""The schema changes while requests flow: no request notices."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from failure.matrix.house import AMPLE, PACED, QUICK_ANSWER, UNCOUNTED, House
from failure.matrix.test_postgres_away import errors_of

REPOSITORY = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
TIMES = 2
MIX = (*[QUICK_ANSWER] * 4, PACED, UNCOUNTED)


def run(words: list[str], environment: Mapping[str, str]) -> str:
    """Run a command as an operator does; returns what it said."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=REPOSITORY,
        env={**base, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def migrate(house: House) -> str:
    return run(["meterhouse", "migrate"], {**house.fleet.environment, "METERHOUSE_DATABASE_URL": house.database_url})


def downgrade(house: House) -> None:
    """Take the newest migration back, again while it meets a lock: it waits for none longer than a request does."""
    for _ in range(10):
        try:
            run(["alembic", "-x", f"url={house.database_url}", "downgrade", "0001"], {})
        except AssertionError as error:
            if "LockNotAvailable" not in str(error) and "Deadlock" not in str(error):
                raise
            continue
        return
    raise AssertionError("every try met a lock")


def count_workers(house: House) -> int:
    return int(house.postgres.query("SELECT count(*) FROM worker", house.database_url)[0][0])


@pytest.mark.slow_fault
async def test_requests_notice_no_migration(house: House) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    async with house.crowd(keys, MIX, clients=8) as talks:
        assert "nothing was to be done" in await asyncio.to_thread(migrate, house)
        for _ in range(TIMES):
            await asyncio.to_thread(downgrade, house)
            issued = await asyncio.to_thread(house.new_key)
            began = time.time()
            assert (await asyncio.to_thread(house.ask, issued)).is_whole
            assert "was brought to" in await asyncio.to_thread(migrate, house)
        await asyncio.sleep(0.3)
    assert len([talk for talk in talks if talk.asked_at > began]) > 10
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    assert set(verdict.statuses) == {200}
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    await asyncio.to_thread(house.wait_for, lambda: count_workers(house) == house.fleet.workers)
    assert not errors_of(house)
