"""A storm of cancellations over whole requests: ten thousand clients leave at moments of their own.

Through nginx and without it. Each answer carries its own canary, each attempt has its one record, nothing stays held or
open, and a neighbour waits at most twice as long as before and 50 ms. The same on the connections to the stores is
``test_cross_talk``; what must become of each request is row 24 of the fault matrix.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from failure.matrix.house import AMPLE, House
from failure.matrix.launch_meterhouse import DRAIN
from failure.matrix.leaving import CANCEL, DRAIN_SECONDS, at_rest, storm
from fakes.gateway import provider_environment
from fakes.process import UpstreamProcess
from security.neighbour import Neighbour, check_p99

TESTS = Path(__file__).resolve().parents[1]
CANCELS = 10_000
CALM_SECONDS = 10.0

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(900)]


@pytest.fixture(params=["nginx", "directly"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    (tmp_path / "orders").mkdir()
    launcher = [sys.executable, "-m", "failure.matrix.launch_meterhouse", "--orders", str(tmp_path / "orders")]
    with UpstreamProcess(tmp_path / "quiet.log") as quiet:
        environment = {
            **provider_environment("quiet", quiet.base_url),
            "PYTHONPATH": str(TESTS),
            # The proxies in front of the stores share this process with all clients: slow stores are no fault here.
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
        ) as running:
            yield running


def neighbour_of(house: House, key: str) -> Neighbour:
    if house.edge:
        return Neighbour(house.edge.url, key, house.edge.ca)
    return Neighbour(house.fleet.url, key)


async def test_a_storm_of_cancellations(house: House, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(3)]
    quiet_key = await asyncio.to_thread(house.new_key, "requests 1000000 total")
    talks = await storm(house, keys, CANCELS // 4)
    before = await at_rest(house)
    calm, stormy = neighbour_of(house, quiet_key), neighbour_of(house, quiet_key)
    with calm:
        await asyncio.sleep(CALM_SECONDS)
    began = time.monotonic()
    with stormy:
        talks += await storm(house, keys, CANCELS - len(talks))
    figures(storm_cancels_per_second=(CANCELS - CANCELS // 4) / (time.monotonic() - began))
    after = await at_rest(house)
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(0, 200))
    assert not verdict.faults, verdict.faults[:10]
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.statuses[200] > CANCELS / 10, "hardly anybody was there when the answer began"
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    assert after.keys() == before.keys()
    for pid, (memory_bytes, files, tasks) in after.items():
        assert memory_bytes <= before[pid][0] * 1.1
        assert files <= before[pid][1] + 4
        assert tasks <= before[pid][2] + 2, (house.folder / "orders" / f"tasks.{pid}").read_text()
    figures(storm_calm_p99_ms=1000 * calm.p99_seconds, storm_p99_ms=1000 * stormy.p99_seconds)
    check_p99(calm, stormy)
