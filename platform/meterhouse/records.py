"""The ledger's side of one process: adopts what dead processes left, then journals and ships.

It ships by the clerk's hand where there is one. Opening adopts before anything is admitted, so that a budget spent
before a crash is spent after it. Closing ships what there is for a few seconds; what remains is adopted at the next
start.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from meterhouse.db.workers import WorkerStore
from meterhouse.errors import StoreDown
from meterhouse.http.tasks import Tasks
from meterhouse.ledger.adopter import Adopter, AdoptionReport
from meterhouse.ledger.balance import Balance
from meterhouse.ledger.desk import ClerkLine
from meterhouse.ledger.files import FileLayer, OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.journal import Journal
from meterhouse.ledger.record import UnreadableJournal
from meterhouse.ledger.shipper import Shipper
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import Stores
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.metrics import Metrics, Watched

DRAIN_SECONDS = 5.0
JOURNALS = "journals"


class Adoptions:
    """Takes over what dead processes of this host left, again and again."""

    def __init__(self, adopter: Adopter, folder: Path, every_seconds: float) -> None:
        self._adopter = adopter
        self._folder = folder
        self._every_seconds = every_seconds
        self.total = AdoptionReport()

    async def adopt(self) -> None:
        """Adopt what there is.

        Raises:
            StoreDown: SQL cannot take it now.
        """
        self.total += await self._adopter.adopt(self._folder)

    async def run(self) -> None:
        """Look for dead journals, over and over."""
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.adopt()
            except StoreDown as error:
                get_logger().warning(Event.STORE_FAILED, detail=error.detail)
            except (UnreadableJournal, OSError) as error:
                get_logger().error(Event.JOURNAL_CORRUPTED, error=str(error))


@dataclass(frozen=True, slots=True)
class Records:
    """An open journal, what ships it, and what adopts those of dead processes."""

    journal: Journal
    shipper: Shipper
    balance: Balance
    adoptions: Adoptions
    clerk: ClerkLine | None = None
    """Who writes for this process; None: nobody else does."""
    on_drained: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Called once nothing more is shipped, before the journal is closed."""

    def list_troubles(self) -> list[str]:
        """Say why new requests are refused; empty when they are not."""
        return [] if self.journal.is_writable else ["the journal cannot be written"]

    def unshipped_age_ms(self) -> int:
        """Return how long ago the oldest request ended that the database does not have yet."""
        return self.shipper.lag.oldest_age_ms

    async def ship_all(self) -> None:
        """Ship what was recorded before this call."""
        await self.shipper.ship_until(self.journal.position)


@asynccontextmanager
async def open_records(
    settings: Settings, stores: Stores, layer: FileLayer | None, metrics: Metrics, clerk: Path | None
) -> AsyncIterator[Records]:
    """Adopt, open the journal, ship until closed.

    Args:
        settings: of this process.
        stores: where to.
        layer: the journal's file layer; None: the operating system's.
        metrics: where the figures are read from.
        clerk: where somebody listens who writes for this process; None: nobody does.

    Raises:
        StoreDown: What a dead process left cannot be taken over now, and the meter in memory must know it.
        JournalDown: The journal cannot be written.
    """
    folder, files = settings.data / JOURNALS, layer or OsFiles()
    log = get_logger()
    adopter = Adopter(stores.ledger, files, log, on_shipped=WorkerStore(stores.engine).remove_journal)
    adoptions = Adoptions(adopter, folder, settings.adopt_seconds)
    try:
        await adoptions.adopt()
    except StoreDown as error:
        if settings.redis_url is None:
            raise
        log.warning(Event.STORE_FAILED, detail=error.detail)
    except (UnreadableJournal, OSError) as error:
        if settings.redis_url is None:
            raise SettingsError(f"{error} Without it the meter in memory cannot know what is spent.") from None
        log.error(Event.JOURNAL_CORRUPTED, error=str(error))  # noqa: TRY400 - the message says it all
    policy = JournalPolicy(
        durability=settings.journal_durability,
        segment_bytes=settings.journal_segment_bytes,
        keep_bytes=settings.journal_keep_bytes,
        keep_seconds=settings.journal_keep_seconds,
        max_bytes=settings.journal_max_bytes,
    )
    journal = Journal(folder, files, stores.clock, policy, log)
    await journal.open()
    shipper = Shipper(stores.ledger, journal, stores.clock, log, interval_ms=int(settings.ship_seconds * 1000))
    shipper.clerk = line = None if clerk is None else ClerkLine(clerk)
    records = Records(journal, shipper, Balance(journal, shipper, stores.ledger), adoptions, line)
    _watch(metrics, records)
    shipping = Tasks()
    if line is not None:
        shipping.keep(line.run)
    shipping.keep(shipper.run)
    shipping.keep(adoptions.run)
    try:
        yield records
    finally:
        await shipper.drain(DRAIN_SECONDS)
        await shipping.close()
        for tell in records.on_drained:
            await tell()
        await journal.close()


def _watch(metrics: Metrics, records: Records) -> None:
    journal, shipper = records.journal, records.shipper
    metrics.watch(Watched.JOURNAL_BYTES, lambda: journal.figures.spool_bytes)
    metrics.watch(Watched.BARRIER_FAILURES, lambda: journal.figures.failed_barriers)
    metrics.watch(Watched.UNSHIPPED_RECORDS, lambda: shipper.lag.unshipped_records)
    metrics.watch(Watched.UNSHIPPED_NANOS, lambda: shipper.lag.unshipped_nanos)
    metrics.watch(Watched.SHIPPING_LAG_SECONDS, lambda: shipper.lag.oldest_age_ms / 1000)
    metrics.watch(Watched.SHIPPED_BATCHES, lambda: shipper.by_clerk, label="clerk")
    metrics.watch(Watched.SHIPPED_BATCHES, lambda: shipper.by_hand, label="worker")
    metrics.watch(Watched.ADOPTED_RECORDS, lambda: records.adoptions.total.records)
    metrics.watch(Watched.WORKER_LOST_RECORDS, lambda: records.adoptions.total.worker_lost)
    metrics.watch(Watched.DEGRADED, lambda: int(not journal.is_writable), label="journal")
    metrics.watch(Watched.DEGRADED, lambda: int(shipper.is_late), label="ledger")
