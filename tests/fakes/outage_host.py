"""A host whose Redis is away: its allowance file, its processes, and what the tests of them ask for.

One token costs one nano here; a demand is 10 input and 100 output tokens unless a test says otherwise.
"""

from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from fakes.journals import EventLog
from fakes.meter_oracle import ORGANIZATION, FakeClock, admitted, build_demand, key_limits
from meterhouse.errors import MeterDown
from meterhouse.limits.allowance import AllowanceFile
from meterhouse.limits.outage import OutageMeter
from meterhouse.metering import Limit, Refusal, Reservation

BUDGET = "spend 0.0001 USD/day"
QUOTA = "tokens 100000/month"
TOTAL = 2_000
LEASE_MS = 60_000
DAY_MS = 86_400_000


@dataclass
class Host:
    """One host: its allowance file, and as many processes as a test starts."""

    folder: Path
    clock: FakeClock = field(default_factory=FakeClock)
    log: EventLog = field(default_factory=EventLog)
    percent: int = 2
    hosts: int = 1
    live_workers: int = 1
    meters: list[OutageMeter] = field(default_factory=list)
    files: list[AllowanceFile] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / "allowance"

    def start(self) -> OutageMeter:
        file = AllowanceFile(self.path, clock=self.clock, log=self.log, lock_wait_seconds=10)
        meter = OutageMeter(
            file,
            self.clock,
            percent=self.percent,
            hosts=self.hosts,
            live_workers=lambda: self.live_workers,
            lease_ms=LEASE_MS,
        )
        self.files.append(file)
        self.meters.append(meter)
        return meter

    async def close(self) -> None:
        for meter in self.meters:
            await meter.close()
        for file in self.files:
            await file.close()


async def counts(meter: OutageMeter, limits: str) -> list[tuple[int, int]]:
    states = await meter.list_states(ORGANIZATION, key_limits(limits))
    return [(state.spent, state.reserved) for state in states]


async def admit_all(meter: OutageMeter, limits: str | tuple[Limit, ...], **changes: object) -> list[Reservation]:
    """Reserve until nothing is left."""
    reservations: list[Reservation] = []
    while True:
        try:
            reservations.append(admitted(await meter.reserve(build_demand(limits, **changes))))
        except MeterDown:
            return reservations


async def refusal(decision: Coroutine[object, object, Reservation | Refusal]) -> Refusal:
    refused = await decision
    assert isinstance(refused, Refusal)
    return refused
