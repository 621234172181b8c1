"""Seals what has no seal, over and over. Not here: what a seal is (``seal``), and how rows are found (``db.seals``)."""

import asyncio
from typing import Protocol

from meterhouse.errors import StoreDown
from meterhouse.telemetry.logs import Event, Log

BUSY_TRIES = 40
BUSY_SECONDS = 0.05
"""Whoever ships holds the turn for a few milliseconds; with many hosts one of them nearly always does."""


class SealedStep(Protocol):
    """What one step of sealing did."""

    @property
    def sealed(self) -> int:
        """How many rows were sealed."""
        ...

    @property
    def has_more(self) -> bool:
        """Whether more rows wait."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether somebody else is sealing."""
        ...


class SealsRows(Protocol):
    """Seals rows that have no seal, a bounded number at a time."""

    async def seal_new(self, *, limit: int = ..., least_interval_ms: int = ...) -> SealedStep:
        """Seal the next rows; raises StoreDown."""
        ...


class Sealer:
    """The loop of one process, for what was not sealed as it was shipped. Of all processes one seals at a time."""

    def __init__(self, store: SealsRows, log: Log, *, interval_seconds: float = 3.0, batch_rows: int = 500) -> None:
        self._store = store
        self._log = log
        self._interval_seconds = interval_seconds
        self._batch_rows = batch_rows
        self.sealed = 0
        """Rows that this process has sealed."""

    async def step(self, *, is_forced: bool = False) -> int:
        """Seal until nothing is left or somebody else stays at it; returns how many rows were sealed.

        Args:
            is_forced: look even when another process looked a moment ago.

        Raises:
            StoreDown: The database is away; what was sealed before stays.
        """
        least_interval_ms = 0 if is_forced else int(self._interval_seconds * 1000) // 2
        sealed, tries = 0, 0
        while True:
            step = await self._store.seal_new(limit=self._batch_rows, least_interval_ms=least_interval_ms)
            sealed += step.sealed
            self.sealed += step.sealed
            tries = tries + 1 if step.is_busy else 0
            if tries == BUSY_TRIES or not (step.is_busy or step.has_more):
                return sealed
            # Between two batches, requests get their turn.
            await asyncio.sleep(BUSY_SECONDS if step.is_busy else 0)

    async def seal_all(self, *, retry_seconds: float = 0.2) -> int:
        """Seal all that was recorded before this call, waiting for whoever else is sealing."""
        sealed = 0
        while True:
            step = await self._store.seal_new(limit=self._batch_rows, least_interval_ms=0)
            sealed += step.sealed
            self.sealed += step.sealed
            if step.is_busy:
                await asyncio.sleep(retry_seconds)
            elif not step.has_more:
                return sealed

    async def run(self) -> None:
        """Seal every few seconds until cancelled; a database that is away is waited for."""
        while True:
            try:
                await self.step()
            except StoreDown as error:
                self._log.warning(Event.STORE_FAILED, detail=error.detail)
            await asyncio.sleep(self._interval_seconds)
