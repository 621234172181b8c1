"""Longer answers while Redis is away, also of requests that Redis holds; and the invariant over whole stories."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.meter_oracle import START_MS, admitted, build_demand, settlement_of
from fakes.outage_host import BUDGET, DAY_MS, LEASE_MS, Host, counts
from meterhouse.errors import MeterDown
from meterhouse.metering import Demand, Reservation, Use
from meterhouse.usage import Exactness


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    yield host
    await host.close()


# --- extending


def streamed(limits: str, **changes: object) -> Demand:
    return build_demand(limits, is_streamed=True, output_tokens=10_000, **changes)


def held_by_redis(demand: Demand, output_tokens: int = 2_048) -> Reservation:
    held_nanos = 10 + output_tokens if "spend" in str(demand.limits) else 0
    return Reservation(demand.request_id, START_MS, 10_000, output_tokens, held_nanos, ())


BIG = "spend 0.001 USD/day; tokens 1000000/month"


async def test_a_reservation_of_the_outage_is_extended_until_nothing_is_left(host: Host) -> None:
    meter = host.start()
    demand = streamed(BIG)
    reservation = admitted(await meter.reserve(demand))
    assert (reservation.allowance_tokens, reservation.held_output_tokens) == (5_000, 2_048)
    assert await meter.extend(demand, reservation, 2_048)
    assert (reservation.held_output_tokens, reservation.held_nanos) == (4_096, 4_106)
    assert await counts(meter, BIG) == [(0, 4_106), (0, 4_106)]
    assert not await meter.extend(demand, reservation, 15_895)
    assert await counts(meter, BIG) == [(0, 4_106), (0, 4_106)]
    assert await meter.extend(demand, reservation, 15_894)
    assert reservation.held_nanos == 20_000
    meter.settle(reservation, settlement_of(700))
    assert await counts(meter, BIG) == [(700, 0), (700, 0)]


async def test_a_reservation_that_redis_holds_is_given_a_supplement(host: Host) -> None:
    meter = host.start()
    demand = streamed(BIG)
    reservation = held_by_redis(demand)
    assert await meter.extend(demand, reservation, 2_048)
    assert await meter.extend(demand, reservation, 1_000)
    assert (reservation.held_output_tokens, reservation.held_nanos) == (5_096, 5_106)
    assert not reservation.is_degraded
    assert await counts(meter, BIG) == [(0, 3_048), (0, 3_048)]


@pytest.mark.parametrize(("used", "beyond"), [(0, 0), (2_058, 0), (2_059, 1), (5_106, 3_048), (6_000, 3_942)])
async def test_a_supplement_pays_only_what_was_used_beyond_the_hold_in_redis(
    host: Host, used: int, beyond: int
) -> None:
    meter = host.start()
    demand = streamed(BIG)
    reservation = held_by_redis(demand)
    assert await meter.extend(demand, reservation, 3_048)
    meter.settle(reservation, settlement_of(used, exactness=Exactness.COUNTED))
    meter.settle(reservation, settlement_of(9_999))
    assert await counts(meter, BIG) == [(beyond, 0), (beyond, 0)]
    assert not await meter.extend(demand, reservation, 1)


async def test_a_supplement_that_has_no_room_leaves_the_reservation_as_it_was(host: Host) -> None:
    meter = host.start()
    demand = streamed(BUDGET)
    reservation = held_by_redis(demand)
    assert not await meter.extend(demand, reservation, 2_001)
    assert (reservation.held_output_tokens, await counts(meter, BUDGET)) == (2_048, [(0, 0)])
    assert await meter.extend(demand, reservation, 2_000)
    assert await counts(meter, BUDGET) == [(0, 2_000)]


async def test_a_quota_of_requests_needs_no_supplement(host: Host) -> None:
    meter = host.start()
    demand = streamed("requests 10/day; tokens 1000000/month")
    assert await meter.extend(demand, held_by_redis(demand), 1_000)
    assert await counts(meter, "requests 10/day; tokens 1000000/month") == [(0, 0), (0, 1_000)]


async def test_what_holds_nothing_in_full_needs_no_more(host: Host) -> None:
    meter = host.start()
    demand = build_demand("requests 10/minute")
    reservation = admitted(await meter.reserve(demand))
    assert await meter.extend(demand, reservation, 5_000)
    assert reservation.held_output_tokens is None


async def test_extensions_at_once_are_each_held(host: Host) -> None:
    meter = host.start()
    demand = streamed(BIG)
    reservation = held_by_redis(demand)
    assert all(await asyncio.gather(*[meter.extend(demand, reservation, 500) for _ in range(8)]))
    assert reservation.held_output_tokens == 2_048 + 4_000
    assert await counts(meter, BIG) == [(0, 4_000), (0, 4_000)]


async def test_a_lease_of_a_supplement_is_renewed_and_expires(host: Host) -> None:
    meter = host.start()
    demand = streamed(BIG)
    reservation = held_by_redis(demand)
    assert await meter.extend(demand, reservation, 1_000)
    await meter.renew({reservation.request_id: Use(True, 2_100, 2_100)})
    host.clock.move(ms=LEASE_MS)
    assert meter.sweep() == 1
    assert await counts(meter, BIG) == [(42, 0), (42, 0)]
    meter.settle(reservation, settlement_of(2_058))
    assert await counts(meter, BIG) == [(0, 0), (0, 0)]


# --- the invariant


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "stream", "extend", "supplement", "settle", "restart", "sweep", "day"]),
        st.integers(0, 2),
        st.integers(1, 2_500),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_whatever_happens_a_host_never_uses_more_than_the_allowance_of_a_period(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(Story(Host(Path(folder), percent=5)).run(steps))


class Story:
    """Three processes of a host that live through steps; every settlement stays within its hold."""

    LIMITS = "spend 0.0001 USD/day; tokens 100000 total"
    TOTAL = 5_000

    def __init__(self, host: Host) -> None:
        self.host = host
        self.meters = [host.start() for _ in range(3)]
        self.live: list[tuple[int, Demand, Reservation, int]] = []
        self.used: dict[tuple[int, int], int] = {}

    async def run(self, steps: list[Step]) -> None:
        actions: dict[str, Callable[[int, int], Coroutine[object, object, None]]] = {
            "reserve": self.reserve,
            "stream": self.stream,
            "extend": self.extend,
            "supplement": self.supplement,
            "settle": self.settle,
            "restart": self.restart,
            "sweep": self.sweep,
            "day": self.day,
        }
        for action, process, amount in steps:
            await actions[action](process, amount)
            self.check()
        await self.host.close()

    def check(self) -> None:
        """What was used, and what is held, by all processes that ever were, is within each period's allowance."""
        held: dict[int, int] = {}
        forever = 0
        for _, demand, reservation, base in self.live:
            tokens = (reservation.held_output_tokens or 0) - base + (10 if reservation.is_degraded else 0)
            assert demand.request_id == reservation.request_id
            day = reservation.admitted_at_ms // DAY_MS
            held[day] = held.get(day, 0) + tokens
            forever += tokens
        for (day, _), amount in self.used.items():
            held[day] = held.get(day, 0) + amount
            forever += amount
        assert max(held.values(), default=0) <= self.TOTAL
        assert forever <= self.TOTAL

    async def reserve(self, process: int, amount: int) -> None:
        await self._reserve(process, build_demand(self.LIMITS, output_tokens=amount))

    async def stream(self, process: int, amount: int) -> None:
        await self._reserve(process, build_demand(self.LIMITS, output_tokens=4 * amount, is_streamed=True))

    async def _reserve(self, process: int, demand: Demand) -> None:
        try:
            reservation = admitted(await self.meters[process].reserve(demand))
        except MeterDown:
            return
        self.live.append((process, demand, reservation, 0))

    async def supplement(self, process: int, amount: int) -> None:
        demand = build_demand(self.LIMITS, output_tokens=10_000)
        reservation = Reservation(demand.request_id, self.host.clock.now_ms(), 10_000, 100, 110, ())
        if await self.meters[process].extend(demand, reservation, amount):
            self.live.append((process, demand, reservation, 100))

    async def extend(self, process: int, amount: int) -> None:
        for owner, demand, reservation, _ in self.live:
            if owner == process:
                await self.meters[owner].extend(demand, reservation, amount)
                return

    async def settle(self, process: int, amount: int) -> None:
        if not self.live:
            return
        owner, _, reservation, base = self.live.pop(amount % len(self.live))
        used = min(amount, 10 + (reservation.held_output_tokens or 0))
        self.meters[owner].settle(reservation, settlement_of(used, exactness=Exactness.COUNTED))
        beyond = max(0, used - 10 - base) if base else used
        key = reservation.admitted_at_ms // DAY_MS, len(self.used)
        self.used[key] = beyond

    async def restart(self, process: int, amount: int) -> None:
        """A process dies; what it held was used in full."""
        for owner, demand, reservation, base in list(self.live):
            if owner == process:
                self.live.remove((owner, demand, reservation, base))
                tokens = (reservation.held_output_tokens or 0) - base + (10 if reservation.is_degraded else 0)
                self.used[reservation.admitted_at_ms // DAY_MS, len(self.used)] = tokens
        self.meters[process] = self.host.start()

    async def sweep(self, process: int, amount: int) -> None:
        await self.meters[process].renew({r.request_id: Use(True, 0, 0) for _, _, r, _ in self.live})
        self.meters[process].sweep()

    async def day(self, process: int, amount: int) -> None:
        for meter in self.meters:
            await meter.renew({r.request_id: Use(True, 0, 0) for _, _, r, _ in self.live})
        self.host.clock.move(days=1)
        for meter in self.meters:
            await meter.renew({r.request_id: Use(True, 0, 0) for _, _, r, _ in self.live})
