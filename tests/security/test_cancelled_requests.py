"""A storm of cancellations over whole requests: ten thousand clients leave at moments of their own.

Through nginx and without it. Each answer carries its own canary, each attempt has its one record, nothing stays held or
open, and a neighbour waits at most twice as long as in calm and 50 ms. The same on the connections to the stores is
``test_cross_talk``; what must become of each request is row 24 of the fault matrix.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from failure.killing import Conversation
from failure.matrix.house import AMPLE, House
from failure.matrix.launch_meterhouse import DRAIN
from failure.matrix.leaving import CANCEL, DRAIN_SECONDS, at_rest, calm_down, storm
from fakes.fleet import run_apart
from fakes.gateway import provider_environment
from fakes.process import UpstreamProcess
from security.neighbour import CALM, STORM, Neighbour

TESTS = Path(__file__).resolve().parents[1]
CANCELS = 10_000
ROUNDS = 5
CALM_SECONDS = 3.0
MOST_PER_SECOND = 100
"""How fast they come while a neighbour measures: what is measured is what they do to the gateway, and not that they
take the processors of this machine."""
CLIENTS_NICE = 10

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(900)]


@pytest.fixture(params=["nginx", "directly"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    (tmp_path / "orders").mkdir()
    launcher = [sys.executable, "-m", "failure.matrix.launch_meterhouse", "--orders", str(tmp_path / "orders")]
    with UpstreamProcess(tmp_path / "quiet.log") as quiet:
        environment = {
            **provider_environment("quiet", quiet.base_url),
            "PYTHONPATH": str(TESTS),
            "METERHOUSE_REDIS_TIMEOUT_SECONDS": "5",
            "METERHOUSE_STATEMENT_TIMEOUT_SECONDS": "10",
            "METERHOUSE_DRAIN_SECONDS": str(DRAIN_SECONDS),
        }
        with House(
            tmp_path,
            environment=environment,
            providers=(CANCEL, DRAIN),
            launcher=launcher,
            is_guarded=request.param == "nginx",
            is_proxied=False,
        ) as running:
            yield running


def neighbour_of(house: House, key: str) -> Neighbour:
    url, ca = (house.edge.url, house.edge.ca) if house.edge else (house.fleet.url, None)
    processes = {
        "workers": house.fleet.pid,
        **({"nginx": house.edge.pid} if house.edge else {}),
        "PostgreSQL": house.postgres.pid,
        "Redis": house.redis.pid,
        "all clients and their provider": os.getpid(),
    }
    return Neighbour(url, key, ca, log=house.fleet.log_path, processes=processes)


async def polite_storm(house: House, keys: list[str], cancels: int) -> list[Conversation]:
    """Make a storm whose clients leave the processors to the gateway, as those of other machines do."""
    os.nice(CLIENTS_NICE)  # of this thread, which ends with the storm
    return await storm(house, keys, cancels, most_per_second=MOST_PER_SECOND)


async def test_a_storm_of_cancellations(house: House, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(3)]
    quiet_key = await asyncio.to_thread(house.new_key, "requests 1000000 total")
    talks = await storm(house, keys, CANCELS // 4)
    before = await at_rest(house)
    (hurry := house.folder / "orders" / "hurry").touch()
    storm_seconds = 0.0
    with neighbour_of(house, quiet_key) as neighbour:
        for number in range(ROUNDS):
            with neighbour.during(CALM):
                await asyncio.sleep(CALM_SECONDS)
            began = time.monotonic()
            with neighbour.during(STORM):
                count = (CANCELS - len(talks)) // (ROUNDS - number)
                talks += await asyncio.to_thread(run_apart, polite_storm(house, keys, count))
            storm_seconds += time.monotonic() - began
            await calm_down(house)
    hurry.unlink()
    figures(storm_cancels_per_second=(CANCELS - CANCELS // 4) / storm_seconds)
    after = await at_rest(house)
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(0, 200))
    assert not verdict.faults, verdict.faults[:10]
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.statuses[200] > CANCELS / 20, "hardly anybody was there when the answer began"
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    assert after.keys() == before.keys()
    for pid, (memory_bytes, files, tasks) in after.items():
        assert memory_bytes <= before[pid][0] * 1.1
        assert files <= before[pid][1] + 4
        assert tasks <= before[pid][2] + 2, (house.folder / "orders" / f"tasks.{pid}").read_text()
    calm_ms, stormy_ms = neighbour.p99s_ms
    figures(storm_calm_p99_ms=calm_ms, storm_p99_ms=stormy_ms)
    neighbour.check()
