"""What goes on beside the requests so that the meter and the ledger stay in order.

Leases are swept and counters reconciled, partitions made ahead of time, records sealed. Every process does it; where
one is enough, the store decides which. Records are sealed by the clerk while there is one (``clerk``). Not here:
shipping and adopting (``records``).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from meterhouse.db.clock import DatabaseClock
from meterhouse.db.refusals import RefusalStore
from meterhouse.db.schema import count_default_rows, ensure_partitions
from meterhouse.db.seals import SealStore
from meterhouse.errors import StoreDown
from meterhouse.http.refusals import FLUSH_SECONDS, Refusals
from meterhouse.http.tasks import Tasks
from meterhouse.ledger.desk import ClerkLine
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.sealer import Sealer
from meterhouse.meters import MeterParts
from meterhouse.providers.routes import Routes
from meterhouse.stores import Stores
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.metrics import Metrics, Watched

SEAL_SECONDS = 5
PARTITION_SECONDS = 3600.0
TOMBSTONE_SECONDS = 600.0
CLOCK_SECONDS = 30.0
LAST_FLUSH_SECONDS = 1.0
"""How long a process that stops waits for the database to take the last refusals."""
FIRST_SECONDS = 1.0
"""When what is rarely done is done first after a start."""


class Partitions:
    """Makes the ledger's partitions ahead of time, and counts what has none."""

    def __init__(self, stores: Stores) -> None:
        self._engine = stores.engine
        self.stray_records = 0

    async def look_after(self) -> None:
        """Make partitions and count; raises StoreDown."""
        await ensure_partitions(self._engine)
        self.stray_records = await count_default_rows(self._engine)


def start_upkeep(
    tasks: Tasks, stores: Stores, metrics: Metrics, parts: MeterParts, clerk: ClerkLine | None = None
) -> None:
    """Start every loop; each ends with ``tasks``. While ``clerk`` is there, it seals."""
    for every_seconds, work in parts.beats:
        tasks.keep(partial(repeat, every_seconds, work))
    for run in parts.runs:
        tasks.keep(run)
    sealer = Sealer(SealStore(stores.engine, hash_rows), get_logger(), interval_seconds=SEAL_SECONDS)

    async def seal() -> None:
        if clerk is None or not clerk.is_there:
            await sealer.step()

    tasks.keep(partial(repeat, SEAL_SECONDS, seal))
    partitions = Partitions(stores)
    metrics.watch(Watched.STRAY_RECORDS, lambda: partitions.stray_records)
    tasks.keep(partial(repeat, PARTITION_SECONDS, partitions.look_after, FIRST_SECONDS))
    if isinstance(stores.clock, DatabaseClock):
        tasks.keep(partial(repeat, CLOCK_SECONDS, stores.clock.synchronize, FIRST_SECONDS))
    mirror = stores.mirror
    if mirror is not None:
        tasks.keep(partial(repeat, TOMBSTONE_SECONDS, stores.service.renew_tombstones, FIRST_SECONDS))
        metrics.watch(Watched.MIRROR_FAILURES, lambda: mirror.failures)


@asynccontextmanager
async def open_refusals(stores: Stores, routes: Routes) -> AsyncIterator[Refusals]:
    """Count what is refused and write it down every second, and once more at the end if the database takes it then."""
    refusals = Refusals(RefusalStore(stores.engine), routes, stores.clock)
    tasks = Tasks()
    tasks.keep(partial(repeat, FLUSH_SECONDS, refusals.flush))
    try:
        yield refusals
    finally:
        await tasks.close()
        try:
            async with asyncio.timeout(LAST_FLUSH_SECONDS):
                await refusals.flush()
        except (StoreDown, TimeoutError) as error:
            get_logger().warning(Event.STORE_FAILED, detail=f"the last refusals were not written: {error!r}")


async def repeat(
    every_seconds: float, work: Callable[[], Awaitable[object]], first_seconds: float | None = None
) -> None:
    """Do something over and over; a store that is down is tried again the next time.

    Args:
        every_seconds: how long after the end of one time the next begins.
        work: what to do.
        first_seconds: how long before the first time, where that is not as long.
    """
    await asyncio.sleep(every_seconds if first_seconds is None else first_seconds)
    while True:
        try:
            await work()
        except StoreDown as error:
            get_logger().warning(Event.STORE_FAILED, detail=error.detail)
        await asyncio.sleep(every_seconds)
