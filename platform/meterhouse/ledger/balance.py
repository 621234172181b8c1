"""Answers what was used up to this moment, exactly.

Invariant: the sums contain every record appended to the journal before the call and none appended after it, so that
whoever counts on from the moment of the call counts nothing twice and misses nothing. Not here: the summing (SQL).
"""

from collections.abc import Coroutine, Sequence
from typing import Any

from meterhouse.ledger.journal import Journal
from meterhouse.ledger.shipper import Pause, Shipper
from meterhouse.ledger.store import SumsPeriods
from meterhouse.metering import Period, Sums


class Balance:
    """The sums of the ledger, with what this process has not shipped yet."""

    def __init__(self, journal: Journal, shipper: Shipper, store: SumsPeriods) -> None:
        self._journal = journal
        self._shipper = shipper
        self._store = store

    def sums(self, periods: Sequence[Period]) -> Coroutine[Any, Any, list[Sums]]:
        """Sum each period as of this call; awaiting later changes nothing about the moment.

        While the store is down this waits; cancelling is safe.

        Raises:
            StoreDown: The store went away between the shipping and the summing.
        """
        return self._sums_at(self._shipper.paused_at(self._journal.position), periods)

    async def _sums_at(self, pause: Pause, periods: Sequence[Period]) -> list[Sums]:
        async with pause:
            return await self._store.sum_periods(periods)
