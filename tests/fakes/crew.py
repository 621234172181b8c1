"""Workers of one fleet in one process: each with its own link, notices, heartbeat, meter and journal.

The journal is a list and ships into the real ledger; Redis and the database are real. Not here: HTTP, and the real
journal.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from fakes.journals import EventLog
from fakes.ledger import record
from fakes.link_bench import PATIENT, until
from fakes.meter_oracle import KEY, ORGANIZATION, PROJECT, admitted, build_demand, key_limits
from meterhouse.db.balances import LedgerBalances
from meterhouse.db.engine import writing
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.tables import worker
from meterhouse.db.workers import WorkerStore
from meterhouse.fleet import Fleet, Member, Rhythm
from meterhouse.http.tasks import Tasks
from meterhouse.ids import new_request_id
from meterhouse.limits.allowance import AllowanceFile
from meterhouse.limits.layout import slot_of
from meterhouse.limits.learning import Learner
from meterhouse.limits.link import RedisLink
from meterhouse.limits.outage import OutageMeter
from meterhouse.limits.redis import RedisMeter
from meterhouse.limits.scripts import load_scripts
from meterhouse.metering import Demand, Limit, Period, Reservation, Settlement
from meterhouse.notices import Notices
from meterhouse.stores import SystemClock
from meterhouse.usage import Usage, UsageRecord


@dataclass
class Journal:
    """Records in their order; ``gate`` closed holds shipping up."""

    ledger: LedgerStore
    records: list[UsageRecord] = field(default_factory=list)
    shipped: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.gate.set()

    async def ship(self) -> None:
        position = len(self.records)
        await self.gate.wait()
        async with self.turn:
            if position > self.shipped:
                await self.ledger.insert(self.records[self.shipped : position])
                self.shipped = position

    def count_unshipped(self) -> int:
        return len(self.records) - self.shipped


@dataclass
class CrewMember:
    """One worker."""

    name: str
    meter: RedisMeter
    learner: Learner
    fleet: Fleet
    notices: Notices
    link: RedisLink
    journal: Journal
    demands: dict[str, Demand] = field(default_factory=dict)

    async def admit(self, limits: str, **changes: object) -> Reservation:
        demand = build_demand(limits, **({"request_id": new_request_id()} | changes))
        self.demands[demand.request_id] = demand
        return admitted(await self.meter.reserve(demand))

    def settle(self, reservation: Reservation, truth: Settlement) -> None:
        """Journal and settle, in one step, as the settler does."""
        self.journal.records.append(record_of(self.demands.pop(reservation.request_id), reservation, truth))
        self.meter.settle(reservation, truth)

    async def arrive(self) -> None:
        """Wait until Redis has every settlement of this worker."""
        settlements = self.meter.settlements
        settlements.flush()
        await until(lambda: not settlements._unconfirmed and not settlements.waiting)

    async def reap(self, count: int) -> None:
        """Have so many ended leases reaped, once the table of workers says that they may be."""
        async with asyncio.timeout(20):
            while count > 0:
                count -= await self.meter.sweep()
                await asyncio.sleep(0)
        assert count == 0

    async def counts(self, limits: str) -> tuple[int, int]:
        (state,) = await self.meter.list_states(ORGANIZATION, key_limits(limits))
        return state.spent, state.reserved


def record_of(demand: Demand, reservation: Reservation, truth: Settlement) -> UsageRecord:
    return record(
        request_id=demand.request_id,
        requests=truth.requests,
        organization_id=demand.organization_id,
        project_id=demand.project_id,
        key_id=demand.root_key_id,
        root_key_id=demand.root_key_id,
        model=demand.model,
        usage=Usage(output_tokens=truth.total_tokens),
        charge_nanos=truth.charge_nanos,
        charges=(("output", truth.charge_nanos),),
        admitted_at_ms=reservation.admitted_at_ms,
    )


@dataclass
class Crew:
    """Where workers are hired."""

    engine: AsyncEngine
    redis_url: str
    folder: Path
    rhythm: Rhythm = field(default_factory=lambda: Rhythm(heartbeat_seconds=0.2, lease_seconds=20))

    @property
    def ledger(self) -> LedgerStore:
        return LedgerStore(self.engine)

    @asynccontextmanager
    async def hire(self, name: str, *, has_notices: bool = True) -> AsyncIterator[CrewMember]:
        """Run a worker until the end of the block."""
        async with AsyncExitStack() as stack:
            link = RedisLink(self.redis_url, PATIENT, EventLog())
            await link.open()
            stack.push_async_callback(link.close)
            notices = Notices(self.redis_url)
            stack.push_async_callback(notices.close)
            journal = Journal(self.ledger)
            clock = SystemClock()
            allowance = AllowanceFile(self.folder / f"{name}.allowance", clock=clock, log=EventLog())
            stack.push_async_callback(allowance.close)
            outage = OutageMeter(allowance, clock, percent=0, hosts=1, live_workers=lambda: 2)

            async def register(organization_id: str) -> None:
                await meter.register(organization_id)

            member = Member(name, "host", f"journal of {name}", journal.ship, register, journal.count_unshipped)
            fleet = Fleet(WorkerStore(self.engine), notices, link, member, self.rhythm)
            learner = Learner(link, load_scripts(), fleet, LedgerBalances(self.engine))
            stack.push_async_callback(learner.close)
            meter = RedisMeter(link, learner, outage, clock, wait_seconds=30, may_reap=fleet.may_reap)
            stack.push_async_callback(meter.close)
            await fleet.open()
            stack.push_async_callback(fleet.close)
            stack.push_async_callback(journal.ship)
            stack.callback(journal.gate.set)
            tasks = Tasks()
            stack.push_async_callback(tasks.close)
            tasks.keep(fleet.run)
            if has_notices:
                tasks.keep(notices.run)
                await asyncio.wait_for(notices.wait_connected(), 10)
            yield CrewMember(name, meter, learner, fleet, notices, link, journal)

    @asynccontextmanager
    async def hire_two(self) -> AsyncIterator[tuple[CrewMember, CrewMember]]:
        async with self.hire("one") as one, self.hire("two") as two:
            yield one, two

    async def sums(self, limits: str, *, tokens: bool = False) -> int:
        """Return what the ledger says of a limit of all time."""
        (limit,) = key_limits(limits)
        sums = await self.ledger.sum_period(Period(limit, None, None))
        return sums.total_tokens if tokens else sums.charge_nanos


async def age(engine, worker_id, by_ms):
    """Make a worker look as if it was seen so much earlier."""
    async with writing(engine) as connection:
        earlier = sa.update(worker).where(worker.c.id == worker_id).values(seen_at_ms=worker.c.seen_at_ms - by_ms)
        await connection.execute(earlier)


def slot(limits: str) -> str:
    return slot_of(limit(limits))


def limit(limits: str) -> Limit:
    (one,) = key_limits(limits)
    return one


__all__ = ["KEY", "ORGANIZATION", "PROJECT", "Crew", "CrewMember", "age", "limit", "slot", "until"]
