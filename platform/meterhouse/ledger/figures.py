"""What a journal says of itself, for the metrics. Not here: who counts it (``journal``)."""

from dataclasses import dataclass


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
