"""A meter, the clock it reads and the ledger it learns from: what the contract suite of meters runs on.

Three kinds: in memory; on a Redis whose clock stands still until the bench moves it; on a real cluster, in real time.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fakes.journals import EventLog
from fakes.meter_oracle import (
    ORGANIZATION,
    START_MS,
    FakeClock,
    Oracle,
    Record,
    admitted,
    build_demand,
    key_limits,
)
from fakes.servers import RedisCluster, RedisServer
from meterhouse.limits.allowance import AllowanceFile
from meterhouse.limits.layout import encode_settle, keys_of
from meterhouse.limits.learning import Learner
from meterhouse.limits.link import LinkPolicy, RedisLink
from meterhouse.limits.memory import MemoryMeter
from meterhouse.limits.outage import OutageMeter
from meterhouse.limits.redis import RedisMeter
from meterhouse.limits.reserves import MOST_TOGETHER
from meterhouse.limits.scripts import load_scripts
from meterhouse.metering import Demand, Limit, LimitState, Refusal, Reservation, Scope, Settlement
from meterhouse.usage import Exactness

LEASE_MS = 60_000
OTHER_ORGANIZATION = "org_2"
PATIENT = LinkPolicy(timeout_seconds=20, connect_timeout_seconds=20, probe_seconds=0.02)
"""These tests are not about time: the machine may be busy."""
DAY_MS = 86_400_000
MIDNIGHT_MS = 20_000


class ServerClock(FakeClock):
    """The clock of a Redis server that stands still until it is moved."""

    def __init__(self, server: RedisServer, now_ms: int = START_MS) -> None:
        super().__init__(now_ms)
        self._server = server
        server.set_time_ms(now_ms)

    def move(self, *, ms: int = 0, seconds: int = 0, hours: int = 0, days: int = 0) -> None:
        super().move(ms=ms, seconds=seconds, hours=hours, days=days)
        self._server.set_time_ms(self.now_ms())


class RealClock(FakeClock):
    """Real time, which nobody moves."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def move(self, *, ms: int = 0, seconds: int = 0, hours: int = 0, days: int = 0) -> None:
        raise AssertionError("nobody moves real time")


@dataclass
class Bench:
    """A memory meter; its worker's demands; and what every bench can do."""

    seed_wait_seconds: float = 10.0
    clock: FakeClock = field(default_factory=FakeClock)
    clock_slack_ms: int = 0
    oracle: Oracle = field(default_factory=Oracle)
    demands: dict[str, Demand] = field(default_factory=dict)
    meter: MemoryMeter | RedisMeter = field(init=False)

    async def open(self) -> None:
        self.meter = MemoryMeter(
            self.clock, self.oracle.seed, lease_ms=LEASE_MS, seed_wait_seconds=self.seed_wait_seconds
        )

    async def close(self) -> None:
        await self.meter.close()

    async def lose_patience(self) -> None:
        """From now on, requests wait for the ledger a quarter of a second."""
        self.seed_wait_seconds = 0.25
        await self.restart()

    async def restart(self) -> None:
        """Everything is lost but the ledger."""
        await self.close()
        await self.open()

    async def sweep(self) -> int:
        """Reap all expired leases now; returns how many."""
        assert isinstance(self.meter, MemoryMeter)
        return self.meter.sweep()

    async def reconcile(self) -> None:
        """Correct the counters by the ledger; those in memory are never off."""

    async def reserve(self, limits: tuple[Limit, ...] | str = (), **changes: object) -> Reservation | Refusal:
        demand = build_demand(limits, **changes)
        self.demands[demand.request_id] = demand
        return await self.meter.reserve(demand)

    async def admit(self, limits: tuple[Limit, ...] | str = (), **changes: object) -> Reservation:
        return admitted(await self.reserve(limits, **changes))

    async def refuse(self, limits: tuple[Limit, ...] | str = (), **changes: object) -> Refusal:
        refusal = await self.reserve(limits, **changes)
        assert isinstance(refusal, Refusal), refusal
        return refusal

    def settle(self, reservation: Reservation, settlement: Settlement) -> None:
        """Write the record and settle, in one step, as the settler does."""
        demand = self.demands[reservation.request_id]
        self.oracle.records.append(Record(demand, reservation.admitted_at_ms, settlement))
        self.meter.settle(reservation, settlement)

    async def state(self, limits: tuple[Limit, ...] | str) -> LimitState:
        wanted = key_limits(limits) if isinstance(limits, str) else limits
        is_whole = wanted[0].scope is Scope.ORGANIZATION
        (state,) = await self.meter.list_states(wanted[0].scope_id if is_whole else ORGANIZATION, wanted)
        return state

    async def counts(self, limits: tuple[Limit, ...] | str) -> tuple[int, int]:
        state = await self.state(limits)
        return state.spent, state.reserved


@dataclass
class RedisBench(Bench):
    """A worker with a meter on Redis; the only one, so it is the whole fleet."""

    server: RedisServer | RedisCluster = field(kw_only=True)
    folder: Path = field(kw_only=True)
    live_workers: int = 1
    flushes: int = 0

    async def open(self) -> None:
        self.link = RedisLink(self.server.url, PATIENT, EventLog())  # type: ignore[arg-type]
        self.allowance = AllowanceFile(self.folder / "allowance", clock=self.clock, log=EventLog())  # type: ignore[arg-type]
        self.learner = Learner(self.link, load_scripts(), self, self.oracle)
        outage = OutageMeter(self.allowance, self.clock, percent=0, hosts=1, live_workers=lambda: 1)
        self.meter = RedisMeter(
            self.link, self.learner, outage, self.clock, lease_ms=LEASE_MS, wait_seconds=self.seed_wait_seconds
        )
        await self.link.open()

    async def close(self) -> None:
        await self.learner.close()
        await self.meter.close()
        await self.link.close()
        await self.allowance.close()

    async def restart(self) -> None:
        await self.close()
        if isinstance(self.clock, ServerClock):
            self.clock.move(ms=10)  # no restart takes less, and what comes back admits later than what was lost
        self.server.flush()
        await self.open()
        await self.warm()

    async def replace_worker(self) -> None:
        """The worker dies, and the next one finds Redis as it is."""
        await self.close()
        await self.open()

    async def create(self) -> None:
        """Make the organizations known, as they are when they are created."""
        assert isinstance(self.meter, RedisMeter)
        for organization_id in (ORGANIZATION, OTHER_ORGANIZATION):
            await self.meter.create(organization_id)
        await self.warm()

    async def warm(self) -> None:
        """Have the server know the script of settlements."""
        for organization_id in (ORGANIZATION, OTHER_ORGANIZATION):
            # A script that the server does not have yet is sent again, after what was asked meanwhile.
            payload = encode_settle([("warm", Settlement(0, 0, 0, Exactness.COUNTED))])
            await self.link.call(load_scripts().settle, keys_of(organization_id), payload)

    async def settled(self) -> None:
        """Wait until Redis has every settlement."""
        assert isinstance(self.meter, RedisMeter)
        await self.meter.settlements.drain()

    async def sweep(self) -> int:
        assert isinstance(self.meter, RedisMeter)
        return await self.meter.sweep()

    async def reconcile(self) -> None:
        assert isinstance(self.meter, RedisMeter)
        assert await self.meter.reconcile() == 0

    async def flush(self, organization_id: str, *, registers: bool) -> bool:
        """Be the fleet: every record is in the ledger at once, so only registering is left to do."""
        assert isinstance(self.meter, RedisMeter)
        self.flushes += 1
        if registers:
            await self.meter.register(organization_id)
        return True


@asynccontextmanager
async def open_bench(bench: Bench) -> AsyncIterator[Bench]:
    """Open a bench that is made, and close it."""
    await bench.open()
    try:
        if isinstance(bench, RedisBench):
            await bench.create()
        yield bench
    finally:
        await bench.close()


@asynccontextmanager
async def timed_bench(server: RedisServer, folder: Path) -> AsyncIterator[Bench]:
    """A bench on a server whose clock stands still; what the server held is gone."""
    server.flush()
    async with open_bench(RedisBench(clock=ServerClock(server), server=server, folder=folder)) as bench:
        yield bench


@asynccontextmanager
async def cluster_bench(cluster: RedisCluster, folder: Path) -> AsyncIterator[Bench]:
    """A bench on a cluster, in real time; it does not begin shortly before midnight, when periods end."""
    cluster.flush()
    clock = RealClock()
    rest_ms = DAY_MS - clock.now_ms() % DAY_MS
    await asyncio.sleep(rest_ms / 1000 if rest_ms < MIDNIGHT_MS else 0)
    bench = RedisBench(clock=clock, clock_slack_ms=20_000, server=cluster, folder=folder)
    async with open_bench(bench):
        yield bench


async def reserve_together(bench: RedisBench, demands: Sequence[Demand]) -> list[Reservation | Refusal]:
    """Ask for demands of one organization in one tick, and see that no more calls were made than are needed."""
    for demand in demands:
        bench.demands[demand.request_id] = demand
    before = bench.link.figures.calls
    decided = await asyncio.gather(*[bench.meter.reserve(demand) for demand in demands])
    assert bench.link.figures.calls - before <= -(-len(demands) // MOST_TOGETHER) + 1, "one for a settlement"
    return decided
