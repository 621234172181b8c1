"""Who gets a slot of a worker that is full, and what counts as a loop that lags."""

import asyncio
import time
from contextlib import ExitStack

import pytest

from meterhouse.errors import Overloaded
from meterhouse.http.shedding import PROBE_SECONDS, LoopProbe, Slots


class Party:
    """Requests of organizations that stay."""

    def __init__(self, most: int) -> None:
        self.slots = Slots(most, 0.5, LoopProbe())
        self.stays = ExitStack()

    def come(self, organization: str) -> bool:
        """Whether one more is let in."""
        with ExitStack() as mine:
            try:
                mine.enter_context(self.slots.take()).assign(organization)
            except Overloaded:
                return False
            self.stays.push(mine.pop_all())
        return True


def test_every_slot_is_given_and_comes_back() -> None:
    party = Party(5)
    assert [party.come(f"org_{number}") for number in range(7)] == [True] * 5 + [False] * 2
    assert party.slots.refused_for_slots == 2
    party.stays.close()
    assert party.slots.taken == 0
    assert party.come("org_1")


def test_one_organization_leaves_a_tenth_to_others() -> None:
    party = Party(100)
    assert [party.come("big") for _ in range(100)].count(True) == 90
    assert [party.come("small") for _ in range(20)].count(True) == 10
    assert party.slots.refused_for_share == 10
    assert party.slots.refused_for_slots == 10
    assert party.slots.taken == 100


def test_what_ends_goes_to_those_who_have_less_than_their_share() -> None:
    party = Party(100)
    for _ in range(90):
        assert party.come("big")
    for _ in range(10):
        assert party.come("small")
    for _ in range(5):
        party.slots.give_back("big")
    assert not party.come("big")
    assert [party.come("small") for _ in range(6)] == [True] * 5 + [False]


def test_a_request_of_nobody_known_counts_and_goes_without_a_trace() -> None:
    party = Party(1)
    with party.slots.take(), pytest.raises(Overloaded):
        party.slots.take()
    assert party.slots.taken == 0
    assert not party.slots._by_organization


async def probed(work: float, pause: float) -> tuple[float, bool, float]:
    """Keep the loop from running; returns the lag right after, whether a slot is refused, and the lag when it rests."""
    observed: list[float] = []
    probe = LoopProbe(observed.append)
    running = asyncio.create_task(probe.run())
    slots = Slots(10, 0.2, probe)
    await asyncio.sleep(0)
    end = time.thread_time() + work
    while time.thread_time() < end:
        pass
    time.sleep(pause)  # noqa: ASYNC251 - the process stands still
    late = probe.lag_seconds()
    try:
        slots.take()
        is_refused = False
    except Overloaded:
        is_refused = True
    await asyncio.sleep(3 * PROBE_SECONDS)
    running.cancel()
    assert max(observed) > (work + pause) / 2
    return late, is_refused, probe.lag_seconds()


async def test_a_loop_that_works_too_long_refuses_until_it_is_in_time_again() -> None:
    late, is_refused, rested = await probed(work=0.5, pause=0)
    assert late > 0.3
    assert is_refused
    assert rested < 0.2


async def test_a_process_that_stood_still_refuses_nothing() -> None:
    late, is_refused, _ = await probed(work=0, pause=0.6)
    assert late < 0.2
    assert not is_refused
