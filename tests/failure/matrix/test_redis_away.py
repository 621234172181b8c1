"""Redis refuses connections, hangs, refuses commands, forgets: rows 5 to 8 and 37 of the matrix."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from failure.killing import Conversation
from failure.matrix.house import AMPLE, PACED, QUICK_ANSWER, House

TIGHT_NANOS = 5_000_000
TIGHT = "spend 0.005 USD total"
SHORT = {"max_tokens": 16}
MOST_HELD_NANOS = 300_000
"""What one of the short requests can hold at most."""
ALLOWANCE_NANOS = TIGHT_NANOS * 2 // 100


def code_of(talk: Conversation) -> str:
    """Return the code of an error answer."""
    data = b"".join(data for _, data in talk.arrivals)
    return str(json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"]) if data else ""


def codes_of(talks: Sequence[Conversation]) -> Counter[str]:
    return Counter(code_of(talk) for talk in talks if talk.status not in {0, 200})


async def spend_all(house: House, key: str, fault: Callable[[], object], seconds: float) -> list[Conversation]:
    """Ask on and on until the budget is spent, with a fault in the middle."""
    async with house.crowd([key], [QUICK_ANSWER], clients=12, **SHORT) as talks:
        await asyncio.sleep(0.15)
        await asyncio.to_thread(fault)
        await asyncio.sleep(seconds)
    return talks


async def check_budget(house: House, key: str, talks: Sequence[Conversation], figures: Callable[..., None]) -> None:
    """The budget is spent and not overspent, and was refused for good only when it was spent."""
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(200, 429, 503), is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    await asyncio.to_thread(house.wait_at_rest, key)
    spent = house.spent_nanos(key)
    figures(overrun_nanos=max(0, spent - TIGHT_NANOS), allowance_nanos=ALLOWANCE_NANOS)
    assert spent <= TIGHT_NANOS + ALLOWANCE_NANOS
    codes = codes_of(talks)
    assert set(codes) <= {"insufficient_quota", "rate_limit_exceeded", "meter_unavailable"}
    if codes["insufficient_quota"]:
        assert spent > TIGHT_NANOS - MOST_HELD_NANOS, codes


@pytest.mark.cell(5, "ARCSEP")
async def test_redis_is_killed_under_load_and_comes_back(house: House) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    async with house.crowd(keys, clients=12) as talks:
        await asyncio.sleep(1)
        await asyncio.to_thread(house.redis.kill)
        away_at = time.time()
        await asyncio.to_thread(house.wait_for, lambda: house.fleet.metric("meterhouse_degraded", part="meter"))
        await asyncio.sleep(1)
        headers = (await asyncio.to_thread(house.fleet.chat, f"fake/{QUICK_ANSWER}", key=keys[0]))[1]
        await asyncio.to_thread(house.redis.start)
        await asyncio.sleep(1.5)
    assert headers["x-meterhouse-degraded"] == "meter"
    during = [talk for talk in talks if talk.arrivals and talk.arrivals[0][0] > away_at]
    assert len(during) > 10
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    assert not house.fleet.metric("meterhouse_degraded", part="meter")
    assert house.ask(keys[0]).is_whole


@pytest.mark.cell(6, "ARSEP")
async def test_redis_hangs_under_load_and_goes_on(house: House, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    async with house.crowd(keys, [QUICK_ANSWER, QUICK_ANSWER, QUICK_ANSWER, PACED], clients=12) as talks:
        await asyncio.sleep(1)
        house.redis.pause()
        paused_at = time.time()
        await asyncio.sleep(2.5)
        house.redis.resume()
        resumed_at = time.time()
        await asyncio.sleep(1.5)
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    quick = [talk for talk in talks if talk.model == QUICK_ANSWER and talk.arrivals]
    took = sorted(
        talk.ended_at - talk.asked_at for talk in quick if paused_at < talk.asked_at < talk.ended_at < resumed_at
    )
    before = sorted(talk.ended_at - talk.asked_at for talk in quick if talk.ended_at < paused_at)
    assert len(took) > 20
    added = took[int(len(took) * 0.99)] - before[len(before) // 2]
    figures(added_p99_seconds_with_redis_stopped=added)
    assert added < 0.5


@pytest.mark.cell(7, "AREP")
@pytest.mark.parametrize(
    "fault",
    [
        lambda house: house.redis.cli("FLUSHALL"),
        pytest.param(lambda house: (house.redis.kill(), house.redis.start()), marks=pytest.mark.slow_fault),
    ],
    ids=["FLUSHALL", "killed and restarted from its file"],
)
async def test_what_redis_forgets_is_not_free(
    house: House, fault: Callable[[House], object], figures: Callable[..., None]
) -> None:
    key = await asyncio.to_thread(house.new_key, TIGHT)
    talks = await spend_all(house, key, lambda: fault(house), 5)
    assert codes_of(talks)["insufficient_quota"]
    await check_budget(house, key, talks, figures)


@pytest.mark.slow_fault
@pytest.mark.cell(7, "RP")
@pytest.mark.parametrize("part", ["m", "h", "l"])
async def test_a_key_of_redis_that_is_evicted_is_not_free(
    house: House, part: str, figures: Callable[..., None]
) -> None:
    key = await asyncio.to_thread(house.new_key, TIGHT)

    def evict() -> None:
        for name in house.redis.cli("KEYS", f"mh:*:{part}"):
            house.redis.cli("DEL", name)

    talks = await spend_all(house, key, evict, 5)
    await check_budget(house, key, talks, figures)


@pytest.mark.cell(8, "R")
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        pytest.param(
            ("CONFIG", "SET", "min-replicas-to-write", "3"),
            ("CONFIG", "SET", "min-replicas-to-write", "0"),
            marks=pytest.mark.slow_fault,
        ),
        pytest.param(("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), marks=pytest.mark.slow_fault),
    ],
    ids=["OOM", "NOREPLICAS", "READONLY"],
)
async def test_a_redis_that_refuses_commands_is_taken_for_away(
    house: House, begin: tuple[str, ...], end: tuple[str, ...]
) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    assert (await asyncio.to_thread(house.ask, key)).is_whole
    house.redis.cli(*begin)
    try:
        talks = [await asyncio.to_thread(house.ask, key) for _ in range(5)]
        # Another worker may be asked for the metrics than was asked for the answers.
        await asyncio.to_thread(house.wait_for, lambda: house.fleet.metric("meterhouse_degraded", part="meter"))
    finally:
        house.redis.cli(*end)
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults
    await asyncio.to_thread(house.wait_at_rest, key)
    await asyncio.to_thread(house.wait_for, lambda: not house.fleet.metric("meterhouse_degraded", part="meter"))


@pytest.mark.cell(37, "R")
async def test_forgotten_scripts_are_sent_again_without_an_error(house: House) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    async with house.crowd([key], [QUICK_ANSWER, PACED], clients=8) as talks:
        for _ in range(5):
            await asyncio.sleep(0.2)
            house.redis.cli("SCRIPT", "FLUSH")
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    assert not house.fleet.metric("meterhouse_degraded", part="meter")
