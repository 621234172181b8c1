"""What a journal says of itself, for the metrics. Not here: who counts it."""

from dataclasses import dataclass

from meterhouse.ledger.chain import SegmentChain
from meterhouse.ledger.supply import SegmentSupply
from meterhouse.ledger.sync_watch import SyncWatch
from meterhouse.ledger.waiters import Waiters


@dataclass(frozen=True, slots=True)
class JournalFigures:
    """What the metrics say of a journal, since it was opened."""

    records: int
    appended_bytes: int
    barriers: int
    failed_barriers: int
    syncs: int
    sync_failures: int
    spool_bytes: int
    """What segments take that SQL may not have, of all journals of the folder."""


def read_figures(chain: SegmentChain, waiters: Waiters, watch: SyncWatch, supply: SegmentSupply) -> JournalFigures:
    """Read them where they are counted."""
    return JournalFigures(
        records=chain.position,
        appended_bytes=chain.appended_bytes,
        barriers=waiters.came,
        failed_barriers=waiters.failed,
        syncs=watch.syncs,
        sync_failures=watch.failures,
        spool_bytes=supply.spool_bytes,
    )
