"""A worker is killed, stands still, or is killed while PostgreSQL is away: rows 1, 3 and 35 of the matrix."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from failure.killing import Conversation, Judge, Totals
from failure.matrix.aiming import (
    GATE_TOKENS,
    GATED,
    LATE_SECONDS,
    LEASE_SECONDS,
    SWEEP_SECONDS,
    HalfSent,
    Replacement,
    Spool,
    Standing,
    estimate_tokens,
    has_clean_end,
    replay,
    rows_of,
    spent,
    wait_released,
    wait_rows,
)
from failure.matrix.house import AMPLE, LONG, PACED, QUICK_ANSWER, UNCOUNTED, House

FAST = "paced?tokens=1600&duration_ms=4000&usage=none"
"""Passes 256 tokens in less than a second."""
RUNNING = "paced?tokens=60&duration_ms=3000&usage=running"
HOUSE = {
    "models": (*GATED, FAST, RUNNING),
    # As in production, so that the matrix's figures (a second, ten seconds) are tested as they stand there.
    "environment": {
        "METERHOUSE_CHECKPOINT_SECONDS": "1",
        "METERHOUSE_ADOPT_SECONDS": "5",
        # Who stands still here is to be judged by what it does then, not to refuse work because it stood still.
        "METERHOUSE_MAX_LAG_SECONDS": "60",
    },
}
BACK_SECONDS = 2.0
STANDSTILL_SECONDS = 0.3
"""Three times what Redis has to answer."""
ADOPTED_SECONDS = 10.0
KILLS = 3


def judge_kill(house: House, talks: Sequence[Conversation], killed_at: float) -> Totals:
    """Hold what a kill broke off against what its clients got: at most 256 tokens or a second less is charged."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for trace_id, found in rows_of(house, talks).items():
        rows[trace_id] = [row for row in found if row["attempt"]]
    totals = Totals()
    judge = Judge(totals)
    judge.judge(talks, house.attempts(), rows, killed_at)
    assert not judge.faults, judge.faults[:10]
    return totals


def check_back(replacement: Replacement, killed: int, figures: Callable[..., None]) -> None:
    """A new worker serves within 2 s; what the machine gave to others meanwhile, stores too, is not its fault."""
    seconds = replacement.wait(killed)
    figures(kills=1, back_seconds=seconds, back_late_seconds=replacement.late_seconds)
    assert seconds <= BACK_SECONDS + replacement.late_seconds + LATE_SECONDS


async def settle_down(house: House, talks: Sequence[Conversation], keys: Sequence[str]) -> None:
    """Everything is in the ledger once, and the meter says what it says."""
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(0, 200))
    assert not verdict.faults, verdict.faults[:10]
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)


@pytest.mark.cell(1, "RCSE")
async def test_a_worker_is_killed_with_requests_in_every_phase(house: House, figures: Callable[..., None]) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    standing = Standing(house)
    for phase in "RCSE":
        await standing.add(phase, key)
    for model in (FAST, UNCOUNTED, RUNNING):
        await standing.add(model, key, model)
    await asyncio.sleep(0.5)
    replacement = Replacement(house)
    killed_at = time.time()
    house.fleet.kill(standing.pid)
    back = asyncio.create_task(asyncio.to_thread(check_back, replacement, standing.pid, figures))
    talks = await standing.end()
    hold_back_seconds = await asyncio.to_thread(wait_released, house, key, 3 * LEASE_SECONDS)
    await back
    figures(hold_back_seconds=hold_back_seconds)
    assert hold_back_seconds <= LEASE_SECONDS + SWEEP_SECONDS + LATE_SECONDS
    await settle_down(house, talks, [key])
    totals = judge_kill(house, talks, killed_at)
    figures(charged_less_tokens=totals.lag_tokens, charged_less_seconds=totals.lag_seconds)
    rows = rows_of(house, talks)
    for phase, talk in standing.talks.items():
        (row,) = rows[talk.trace_id]
        assert not has_clean_end(talk), f"{phase}: the answer seems to be whole"
        assert row["outcome"] == "worker_lost"
        assert phase not in "RC" or (row["output_tokens"], row["charge_nanos"]) == (0, 0)
        assert phase != "S" or row["output_tokens"]


@pytest.mark.cell(1, "A")
async def test_a_worker_is_killed_before_it_knows_who_asks(house: House, figures: Callable[..., None]) -> None:
    """One request has come in half; of the other, the key is being looked up in a PostgreSQL that says nothing."""
    known, key = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    assert (await asyncio.to_thread(house.ask, known)).is_whole
    half, pid = await HalfSent.send(house, known)
    replacement = Replacement(house)
    house.postgres_proxy.black_hole()
    try:
        asking, _ = await HalfSent.send(house, key, pid)
        asking.send_rest()
        await asyncio.sleep(0.3)
        house.fleet.kill(pid)
    finally:
        house.postgres_proxy.heal()
    back = asyncio.create_task(asyncio.to_thread(check_back, replacement, pid, figures))
    talks = [await half.read(), await asking.read()]
    assert [talk.arrivals for talk in talks] == [[], []]
    await back
    assert (await asyncio.to_thread(house.ask, key)).is_whole
    await settle_down(house, talks, [known, key])
    assert not any(rows_of(house, talks).values())


@pytest.mark.slow_fault
@pytest.mark.cell(1, "EP")
async def test_a_sibling_adopts_what_a_killed_worker_had_not_shipped(
    house: House, figures: Callable[..., None]
) -> None:
    """The parent stands still, so that no new worker can do it. What a client saw the end of is exact."""
    key = await asyncio.to_thread(house.new_key, AMPLE)
    standing = Standing(house)
    await standing.add("S", key)
    adopted_before = len(house.fleet.events("journal.adopted"))
    async with Spool(house):
        done = await asyncio.gather(*(house.talk(house.conversation(), key) for _ in range(40)))
        assert all(talk.is_whole for talk in done)
        assert not any(rows_of(house, done).values())
        house.fleet.pause(house.fleet.pid)
        killed_at = time.time()
        house.fleet.kill(standing.pid)
    try:
        talks = [*await standing.end(), *done]
        adopted_seconds = await asyncio.to_thread(wait_rows, house, talks)
        await asyncio.to_thread(house.wait_for, lambda: len(house.fleet.events("journal.adopted")) > adopted_before)
    finally:
        house.fleet.resume(house.fleet.pid)
    figures(kills=1, adopted_seconds=adopted_seconds)
    assert adopted_seconds <= ADOPTED_SECONDS
    (adopted,) = house.fleet.events("journal.adopted")[adopted_before:]
    assert adopted["worker_lost"] == 1
    # What the worker had offered to the clerk before it was killed may have been written by that, and be new to nobody.
    assert adopted["records"] >= 1
    await asyncio.to_thread(house.fleet.wait_workers, but={standing.pid})
    await settle_down(house, talks, [key])
    judge_kill(house, talks, killed_at)
    await asyncio.to_thread(replay, house, times=3)


@pytest.mark.slow_fault
@pytest.mark.cell(1, "RCSEP")
async def test_workers_are_killed_again_and_again_under_load(house: House, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    seen = 0
    for number in range(KILLS):
        async with house.crowd(keys, [QUICK_ANSWER, PACED, UNCOUNTED, LONG, RUNNING], clients=12) as talks:
            await asyncio.sleep(random.uniform(0.8, 2))
            victim = random.choice(house.fleet.serving())
            replacement = Replacement(house)
            killed_at = time.time()
            house.fleet.kill(victim)
            await asyncio.to_thread(check_back, replacement, victim, figures)
        await settle_down(house, talks, keys)
        judge_kill(house, [talk for talk in talks if not talk.is_whole], killed_at)
        seen += sum(not talk.is_whole for talk in talks)
        assert any(talk.is_whole for talk in talks), number
    figures(broken_off=seen)
    await asyncio.to_thread(replay, house, times=3)


@pytest.mark.slow_fault
@pytest.mark.cell(3, "ARCSE")
async def test_a_worker_stands_still_past_its_lease_and_goes_on(house: House, figures: Callable[..., None]) -> None:
    keys = {phase: await asyncio.to_thread(house.new_key, AMPLE) for phase in "RCSE"}
    half, pid = await HalfSent.send(house, keys["R"])
    standing = Standing(house, pid)
    for phase, key in keys.items():
        await standing.add(phase, key)
    await asyncio.sleep(1 + LATE_SECONDS)  # the leases are renewed with what was used, twice
    house.fleet.pause(pid)
    half.send_rest()
    others = [await asyncio.to_thread(house.ask, keys["R"]) for _ in range(5)]
    assert all(talk.is_whole and talk.ended_at - talk.asked_at < LATE_SECONDS for talk in others)
    for key in keys.values():
        hold_back_seconds = await asyncio.to_thread(wait_released, house, key, 3 * LEASE_SECONDS)
        figures(hold_back_seconds=hold_back_seconds)
    assert house.fleet.worker_of(half.writer.get_extra_info("sockname")[1]) == pid
    for phase, key in keys.items():
        used = estimate_tokens(standing.talks[phase], {"S": GATE_TOKENS, "E": 25}.get(phase, 0)) if phase in "SE" else 0
        known = [row for row in house.rows() if row["key_id"] == house.key_id_of(key)]
        recorded = sum(row["input_tokens"] + row["output_tokens"] for row in known)
        assert await asyncio.to_thread(spent, house, key, "tokens") == recorded + used, phase
        assert await asyncio.to_thread(spent, house, key, "requests") == len(known) + 1, phase
    assert not any(rows_of(house, list(standing.talks.values())).values())
    house.up.release()
    house.fleet.resume(pid)
    talks = await standing.end()
    assert all(talk.is_whole for talk in [*talks, await half.read()])
    await settle_down(house, [*talks, *others, half.talk], list(keys.values()))
    assert [len(found) for found in rows_of(house, [*talks, half.talk]).values()] == [1] * 5
    await asyncio.to_thread(replay, house, times=3)


@pytest.mark.slow_fault
@pytest.mark.cell(3, "RCSE")
async def test_workers_that_stand_still_for_a_moment_do_not_take_redis_for_lost(house: House) -> None:
    """For longer than Redis has to answer, in the middle of anything, again and again."""
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    lost_before = len(house.fleet.events("meter.lost"))
    async with house.crowd(keys, [QUICK_ANSWER, PACED], clients=12) as talks:
        for _ in range(20):
            for pid in house.fleet.serving():
                house.fleet.pause(pid)
                await asyncio.sleep(STANDSTILL_SECONDS)
                house.fleet.resume(pid)
    await settle_down(house, talks, keys)
    assert len(house.fleet.events("meter.lost")) == lost_before
    assert all(talk.is_whole for talk in talks)


@pytest.mark.slow_fault
@pytest.mark.cell(35, "SEP")
async def test_a_worker_is_killed_while_postgres_is_away(house: House, figures: Callable[..., None]) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    served = [await asyncio.to_thread(house.ask, key)]
    standing = Standing(house)
    for phase in "SE":
        await standing.add(phase, key)
    house.postgres.kill()
    done = await asyncio.gather(*(house.talk(house.conversation(), key) for _ in range(30)))
    await asyncio.sleep(1 + LATE_SECONDS)
    journals = set(house.fleet.data.glob("journals/*.seg"))
    replacement = Replacement(house)
    killed_at = time.time()
    house.fleet.kill(standing.pid)
    broken = await standing.end()
    figures(kills=1, back_without_postgres_seconds=await asyncio.to_thread(replacement.wait, standing.pid))
    for pid in house.fleet.serving():  # they are served by the old and by the new one
        half, _ = await HalfSent.send(house, key, pid)
        half.send_rest()
        served.append(await half.read())
    assert all(talk.is_whole for talk in [*done, *served])
    assert journals <= set(house.fleet.data.glob("journals/*.seg"))
    house.postgres.start()
    talks = [*broken, *done, *served]
    figures(adopted_after_postgres_seconds=await asyncio.to_thread(wait_rows, house, talks))
    await settle_down(house, talks, [key])
    judge_kill(house, broken, killed_at)
    await asyncio.to_thread(replay, house, times=3)
