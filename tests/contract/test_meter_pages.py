"""A large organization is swept and reconciled a page at a time, so that no script holds up the others for long."""

import asyncio
from pathlib import Path

import pytest

from fakes.meter_bench import RedisBench, timed_bench
from fakes.meter_oracle import ORGANIZATION, key_limits, settlement_of
from fakes.servers import RedisServer
from meterhouse.limits.layout import keys_of

KEYS = 600
LIMITS = "requests 5/second; requests 9/day; spend 0.001 USD total"


@pytest.fixture
async def crowded(timed_redis_server: RedisServer, tmp_path: Path):
    """An organization with the counters of many keys, all of them used."""
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        assert isinstance(bench, RedisBench)
        names = [f"key_{number}" for number in range(KEYS)]
        admitted = await asyncio.gather(*[bench.admit(key_limits(LIMITS, name), root_key_id=name) for name in names])
        for reservation in admitted:
            bench.settle(reservation, settlement_of(10))
        await bench.settled()
        yield bench


def fields(bench: RedisBench) -> int:
    return int(bench.server.cli("HLEN", keys_of(ORGANIZATION)[0]))  # type: ignore[union-attr]


async def test_what_is_over_goes_away_in_several_sweeps(crowded: RedisBench) -> None:
    before = fields(crowded)
    assert before > KEYS * 8
    crowded.clock.move(days=3)
    await crowded.admit()  # only who is active is swept
    await crowded.sweep()
    after_one = fields(crowded)
    assert KEYS * 5 < after_one < before
    for _ in range(4):
        await crowded.sweep()
    # What is left of each key: its budget, and that it has one.
    assert fields(crowded) <= KEYS * 5 + 20


async def test_every_counter_is_compared_in_the_end(crowded: RedisBench) -> None:
    slots = [f"key:key_{number}|spend|total|1|" for number in (0, KEYS // 2, KEYS - 1)]
    for slot in slots:
        crowded.server.cli("HSET", keys_of(ORGANIZATION)[0], f"{slot}|0|s", 3)  # type: ignore[union-attr]
    for _ in range(4):
        await crowded.reconcile()
    assert crowded.learner.figures.counter_drift_total == len(slots)
    for number in (0, KEYS // 2, KEYS - 1):
        assert await crowded.counts(key_limits("spend 0.001 USD total", f"key_{number}")) == (10, 0)


async def test_no_page_holds_the_server_up_for_long(crowded: RedisBench) -> None:
    crowded.server.cli("CONFIG", "SET", "slowlog-log-slower-than", "20000")  # type: ignore[union-attr]
    crowded.server.cli("SLOWLOG", "RESET")  # type: ignore[union-attr]
    await asyncio.gather(crowded.sweep(), crowded.reconcile())
    assert crowded.server.cli("SLOWLOG", "LEN") == 0  # type: ignore[union-attr]
