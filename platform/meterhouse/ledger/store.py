"""What the journal's half of the ledger needs of SQL. Not here: SQL (``db.ledger`` satisfies this)."""

from collections.abc import Sequence
from typing import Protocol

from meterhouse.metering import Period, Sums
from meterhouse.usage import UsageRecord


class InsertsRecords(Protocol):
    """Takes usage records, each (request id, attempt) once."""

    async def insert(self, records: Sequence[UsageRecord]) -> int:
        """Write the records that are not there yet; returns how many were new.

        Raises:
            StoreDown: Nothing is known to be written; the same records may be offered again.
        """
        ...


class SumsPeriods(Protocol):
    """Answers what was used."""

    async def sum_periods(self, periods: Sequence[Period]) -> list[Sums]:
        """Sum each period, all at one moment; raises StoreDown."""
        ...
