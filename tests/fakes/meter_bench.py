"""A meter, the clock it reads and the ledger it is seeded from: what the contract suite of meters runs on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from fakes.meter_oracle import ORGANIZATION, FakeClock, Oracle, Record, admitted, build_demand, key_limits
from meterhouse.limits.memory import MemoryMeter
from meterhouse.metering import Demand, Limit, LimitState, Meter, Refusal, Reservation, Settlement

IMPLEMENTATIONS = ("memory",)
LEASE_MS = 60_000


class Swept(Meter, Protocol):
    """A meter that can be asked to reap all leases now."""

    def sweep(self) -> int: ...

    async def close(self) -> None: ...


@dataclass
class Bench:
    """A meter, the clock it reads, the ledger it is seeded from, and what a worker does with them."""

    implementation: str
    seed_wait_seconds: float = 10.0
    clock: FakeClock = field(default_factory=FakeClock)
    oracle: Oracle = field(default_factory=Oracle)
    demands: dict[str, Demand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.meter: Swept = self.build()

    def build(self) -> Swept:
        assert self.implementation in IMPLEMENTATIONS
        return MemoryMeter(self.clock, self.oracle.seed, lease_ms=LEASE_MS, seed_wait_seconds=self.seed_wait_seconds)

    async def lose_patience(self) -> None:
        """From now on, requests wait for the ledger a quarter of a second."""
        self.seed_wait_seconds = 0.25
        await self.restart()

    async def restart(self) -> None:
        """A new process: it knows what the ledger knows."""
        await self.meter.close()
        self.meter = self.build()

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
        (state,) = await self.meter.list_states(ORGANIZATION, key_limits(limits) if isinstance(limits, str) else limits)
        return state

    async def counts(self, limits: tuple[Limit, ...] | str) -> tuple[int, int]:
        state = await self.state(limits)
        return state.spent, state.reserved


@asynccontextmanager
async def open_bench(implementation: str) -> AsyncIterator[Bench]:
    bench = Bench(implementation)
    try:
        yield bench
    finally:
        await bench.meter.close()
