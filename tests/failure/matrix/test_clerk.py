"""The clerk under load, while it is killed, stopped, replaced, and while PostgreSQL is away behind it.

Two workers, both stores behind fault proxies. Not here: what is quick (``tests/cli/test_clerk``), and what the shipper
and the clerk say to each other (``tests/unit/test_desk``).
"""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from failure.killing import Conversation
from failure.matrix.house import House, run_apart
from failure.matrix.test_postgres_away import HUNG, KILLED, REFUSED, Fault, restore
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import LedgerStore

KILLS = 8
LOCK_SECONDS = 60
"""Longer than PostgreSQL keeps the locks of a transaction whose client stands still (10 s), on a crowded machine."""
pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _restored(house: House) -> Any:
    yield
    restore(house)
    for pid in (house.fleet.clerk, *house.fleet.pids()):
        if pid:
            os.kill(pid, signal.SIGCONT)


def written(house: House, by: str) -> float:
    return house.fleet.metric("meterhouse_shipped_batches_total", by=by)


def wait_written(house: House, by: str) -> None:
    """Wait until one more batch was written by the clerk or by a worker."""
    before = written(house, by)
    house.fleet.wait_for(lambda: written(house, by) > before, LOCK_SECONDS)


def wait_clerk(house: House, *, but: int = 0) -> int:
    """Wait until another clerk than one serves; returns it."""

    def serving() -> int:
        started = {line["pid"] for line in house.fleet.events("clerk.started")}
        return house.fleet.clerk if house.fleet.clerk in started - {but} else 0

    return house.fleet.wait_for(serving)


def place(house: House) -> Path:
    (path,) = Path("/dev/shm").glob(f"meterhouse-{house.fleet.pid}-*/clerk.sock")
    return path


def judge(house: House, talks: Sequence[Conversation]) -> None:
    """Every request was answered whole; each is in the ledger once, and once in its sums."""
    verdict = house.judge(talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    assert not verdict.lost + verdict.doubled

    async def compare() -> list[Any]:
        engine = open_engine(house.database_url)
        try:
            return list(await LedgerStore(engine).rebuild_check())
        finally:
            await close(engine)

    assert run_apart(compare()) == []


async def under_load(house: House, work: Callable[[], object]) -> None:
    keys = [await asyncio.to_thread(house.new_key) for _ in range(2)]
    async with house.crowd(keys, clients=8) as talks:
        await asyncio.to_thread(wait_written, house, "clerk")
        await asyncio.to_thread(work)
    await asyncio.to_thread(judge, house, talks)


def count_unsealed(house: House) -> int:
    async def count() -> int:
        connection = await asyncpg.connect(house.database_url)
        try:
            found = await connection.fetchval(
                "SELECT count(*) FROM usage_record r WHERE NOT EXISTS"
                " (SELECT FROM seal s WHERE s.attempt = r.attempt"
                " AND s.request_id = replace(r.request_id::text, '-', ''))"
            )
        finally:
            await connection.close()
        return int(found)

    return run_apart(count())


async def test_kills_of_the_clerk_lose_and_double_nothing(house: House, figures: Callable[..., None]) -> None:
    def kill_again_and_again() -> None:
        for _ in range(KILLS):
            victim = wait_clerk(house)
            wait_written(house, "clerk")
            house.fleet.kill(victim)

    await under_load(house, kill_again_and_again)
    figures(clerks_killed=KILLS)


async def test_beside_a_clerk_that_stands_still_workers_ship_themselves(house: House) -> None:
    def stop_and_go_on() -> None:
        clerk = wait_clerk(house)
        house.fleet.pause(clerk)
        wait_written(house, "worker")
        house.fleet.resume(clerk)
        wait_written(house, "clerk")

    await under_load(house, stop_and_go_on)


@pytest.mark.parametrize("fault", [REFUSED, KILLED, HUNG], ids=["refused", "killed", "hung"])
async def test_postgres_away_behind_the_clerk_is_said_by_workers_and_ends(house: House, fault: Fault) -> None:
    def degraded() -> float:
        return house.fleet.metric("meterhouse_degraded", part="ledger")

    def take_away() -> None:
        fault.begin(house)
        house.wait_for(degraded)
        fault.end(house)
        house.wait_for(lambda: not degraded())
        wait_written(house, "clerk")

    await under_load(house, take_away)


async def test_everything_is_sealed_by_the_next_clerk_and_by_workers_where_there_is_none(house: House) -> None:
    def kill() -> None:
        house.fleet.kill(wait_clerk(house))

    def stand_still() -> None:
        house.fleet.pause(wait_clerk(house))
        wait_written(house, "worker")

    for fault in (kill, stand_still):
        await under_load(house, fault)
        # While it stands still a clerk is killed after half a minute, and its transaction ends before that.
        await asyncio.to_thread(house.fleet.wait_for, lambda: count_unsealed(house) == 0, LOCK_SECONDS)


async def test_a_clerk_that_stands_still_for_long_is_ended(house: House) -> None:
    clerk = await asyncio.to_thread(wait_clerk, house)
    house.fleet.pause(clerk)
    await asyncio.to_thread(wait_clerk, house, but=clerk)
    failed = [line for line in house.fleet.events("clerk.failed") if line["pid"] == clerk]
    assert "hangs" in failed[0]["detail"]


async def test_a_reload_replaces_it(house: House) -> None:
    clerk, workers = await asyncio.to_thread(wait_clerk, house), set(house.fleet.pids())

    def reload() -> None:
        house.fleet.reload()
        wait_clerk(house, but=clerk)
        house.fleet.wait_for(lambda: not workers & set(house.fleet.pids()))
        wait_written(house, "clerk")

    await under_load(house, reload)
    assert clerk in {line["pid"] for line in house.fleet.events("clerk.stopped")}


async def test_many_speak_to_it_at_once_and_say_nothing(house: House) -> None:
    """Whoever has this user's rights may do worse; but a worker that hangs is such a one, too."""
    clerk = await asyncio.to_thread(wait_clerk, house)
    silent = [await asyncio.open_unix_connection(place(house)) for _ in range(40)]
    await under_load(house, lambda: wait_written(house, "clerk"))
    for _, writer in silent:
        writer.close()
    assert house.fleet.clerk == clerk


async def test_a_host_that_is_told_to_stop_has_shipped_everything(house: House) -> None:
    await asyncio.to_thread(wait_clerk, house)
    keys = [await asyncio.to_thread(house.new_key) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        talks = list(pool.map(lambda number: house.ask(keys[number % 2]), range(40)))
    assert await asyncio.to_thread(house.fleet.stop) == 0
    await asyncio.to_thread(judge, house, talks)
    names = [line["event"] for line in house.fleet.events("worker.stopped", "clerk.stopped", "server.stopped")]
    assert names[-2:] == ["clerk.stopped", "server.stopped"]
    await asyncio.to_thread(house.fleet.start)
    clerk, parent = await asyncio.to_thread(wait_clerk, house), house.fleet.pid
    house.fleet.kill(parent)
    house.fleet.wait_for(lambda: not Path(f"/proc/{clerk}").exists())
    house.fleet.kill_all()
    await asyncio.to_thread(house.fleet.start)
