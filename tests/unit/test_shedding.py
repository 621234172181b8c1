"""Who gets a slot of a worker that is full, and what counts as a loop that lags."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from meterhouse.errors import Overloaded
from meterhouse.http.shedding import PROBE_SECONDS, LoopProbe, Slot, Slots


class Party:
    """Requests of organizations that stay."""

    def __init__(self, most: int) -> None:
        self.slots = Slots(most, 0.5, LoopProbe())
        self.stays: defaultdict[str, list[ExitStack]] = defaultdict(list)

    def come(self, organization: str) -> bool:
        """Whether one more is let in."""
        with ExitStack() as mine:
            try:
                mine.enter_context(Slot(self.slots)).assign(organization)
            except Overloaded:
                return False
            self.stays[organization].append(mine.pop_all())
        return True


def test_every_slot_is_given_and_comes_back() -> None:
    party = Party(5)
    assert [party.come(f"org_{number}") for number in range(7)] == [True] * 5 + [False] * 2
    assert party.slots.refused_for_slots == 2
    for number in range(5):
        party.stays[f"org_{number}"].pop().close()
    assert party.slots.taken == 0
    assert not party.slots.by_organization
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
        party.stays["big"].pop().close()
    assert not party.come("big")
    assert [party.come("small") for _ in range(6)] == [True] * 5 + [False]


def test_a_request_of_nobody_known_counts_and_goes_without_a_trace() -> None:
    party = Party(1)
    with Slot(party.slots), pytest.raises(Overloaded), Slot(party.slots):
        pass
    assert party.slots.taken == 0
    assert not party.slots.by_organization


def test_a_request_whose_organization_is_told_twice_is_one_request() -> None:
    party = Party(5)
    with Slot(party.slots) as slot:
        slot.assign("org_1")
        slot.assign("org_1")
        assert party.slots.by_organization == {"org_1": 1}
    assert not party.slots.by_organization


class Loop:
    """A loop with a probe, that a test keeps from running."""

    def __init__(self) -> None:
        self.observed: list[float] = []
        self.probe = LoopProbe(self.observed.append)
        self.slots = Slots(10, 0.2, self.probe)

    async def keep(self, *, work: float = 0, pause: float = 0) -> None:
        """Let the loop be late once, by work or by standing still."""
        await asyncio.sleep(0.01)
        end = time.thread_time() + work
        while time.thread_time() < end:
            pass
        time.sleep(pause)  # noqa: ASYNC251 - the process stands still

    def refuses(self) -> bool:
        try:
            with Slot(self.slots):
                return False
        except Overloaded:
            return True


@pytest.fixture
async def loop() -> AsyncIterator[Loop]:
    made = Loop()
    running = asyncio.create_task(made.probe.run())
    await asyncio.sleep(2 * PROBE_SECONDS)
    yield made
    running.cancel()


async def test_a_loop_that_is_late_again_and_again_refuses_until_it_is_in_time(loop: Loop) -> None:
    for _ in range(2):
        await loop.keep(work=0.5)
    assert loop.refuses()
    assert loop.probe.lag_seconds() > 0.3
    await asyncio.sleep(4 * PROBE_SECONDS)
    assert not loop.refuses()
    assert loop.slots.refused_for_lag == 1
    assert max(loop.observed) > 0.3


async def test_one_long_step_refuses_nothing(loop: Loop) -> None:
    await loop.keep(work=0.6)
    assert not loop.refuses()
    await asyncio.sleep(0.01)
    assert not loop.refuses()


async def test_a_process_that_stands_still_refuses_nothing(loop: Loop) -> None:
    for _ in range(2):
        await loop.keep(pause=0.5)
        assert not loop.refuses()
    assert loop.probe.lag_seconds() < 0.2
