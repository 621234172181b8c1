"""What this process has drawn of the outage allowance, and what its requests hold and used of it.

A pool is one budget or quota in one period. Invariant: what is drawn is in the allowance file before it is here, and
``spent + reserved`` exceeds it only by what answers used beyond their hold. Not here: who may draw.
"""

import asyncio

from meterhouse.limits.allowance import AllowanceFile
from meterhouse.limits.counter import Identity, PeriodCounter
from meterhouse.limits.sizing import held_amount, settled_amount
from meterhouse.metering import Clock, Demand, Limit, LimitState, Period, Settlement

CHUNK_PARTS = 10
"""A draw takes at least a tenth of this worker's part of the allowance, so that the file is not written each time."""
EMPTY_MS = 1_000
"""How long a file that granted less than was asked for is not asked again; only a raised limit can change it."""


class Pool:
    """A counter of this process alone, and the amount that it may reach."""

    __slots__ = ("_allowance", "_clock", "_drawing", "_empty_until_ms", "_slot", "counter", "drawn")

    def __init__(self, period: Period, slot: str, allowance: AllowanceFile, clock: Clock) -> None:
        self.counter = PeriodCounter(period)
        self.drawn = 0
        """What was granted to this process in the period, in the limit's unit."""
        self._slot = slot
        self._allowance = allowance
        self._clock = clock
        self._drawing: asyncio.Task[None] | None = None
        self._empty_until_ms = 0

    @property
    def is_drawing(self) -> bool:
        """Whether the file is being asked."""
        return self._drawing is not None and not self._drawing.done()

    def free(self, total: int) -> int:
        """Return what can be held now, without drawing."""
        return min(self.drawn, total) - self.counter.spent - self.counter.reserved

    def hoped(self, total: int) -> int:
        """Return what could be held if nobody else drew; what is free once the file has nothing left."""
        if self._clock.now_ms() < self._empty_until_ms:
            return self.free(total)
        return total - self.counter.spent - self.counter.reserved

    async def draw(self, total: int, shortfall: int, workers: int) -> None:
        """Draw a chunk that covers a shortfall, once for all who wait; what it brought shows in ``free``.

        The file is shared by ``workers``: while it lasts, none of them shall find it empty that has drawn nothing yet.
        """
        if not self.is_drawing:
            # A task of its own: a request that gives up must not lose what is granted.
            self._drawing = asyncio.create_task(self._draw(total, max(shortfall, total // (CHUNK_PARTS * workers))))
        assert self._drawing is not None
        await asyncio.wait({self._drawing})

    async def close(self) -> None:
        """Give back what nobody holds or used, after the draw that is under way; a process that is killed cannot."""
        if self._drawing is not None:
            await asyncio.wait({self._drawing})
        unused = self.drawn - self.counter.spent - self.counter.reserved
        if unused > 0:
            self.drawn -= unused
            await self._allowance.give_back(self._slot, self.counter.period.start_ms, unused)

    async def _draw(self, total: int, least: int) -> None:
        period = self.counter.period
        wanted = min(least, max(0, total - self.drawn))
        granted = await self._allowance.draw(self._slot, period.start_ms, period.end_ms, total, wanted)
        self.drawn += granted
        if granted < wanted or granted == 0:
            self._empty_until_ms = self._clock.now_ms() + EMPTY_MS

    def state(self, limit: Limit) -> LimitState:
        """Say where the allowance stands: ``limit`` has its amount."""
        return LimitState(limit, self.counter.spent, self.counter.reserved, self.counter.end_ms)


class Supplement:
    """What a request holds here beyond its hold in Redis; a debit whose truth is what it used beyond that hold."""

    __slots__ = ("applied", "base", "counter", "held")

    def __init__(self, counter: PeriodCounter, base: int) -> None:
        self.counter = counter
        self.base = base
        """What Redis holds, in the limit's unit."""
        self.held = 0
        self.applied = 0

    def resolve(self, settlement: Settlement, now_ms: int) -> None:  # noqa: ARG002 - the period was decided at admission
        """Give back the hold, and count what was used beyond what Redis held; a second time, the difference."""
        counter = self.counter
        amount = max(0, settled_amount(counter.kind, settlement) - self.base)
        counter.reserved -= self.held
        counter.spent += amount - self.applied
        self.held = 0
        self.applied = amount

    def more(self, demand: Demand, output_tokens: int) -> int:
        """Return what more must be held for this much output over all choices."""
        return held_amount(self.counter.kind, demand, output_tokens) - self.base - self.held

    def hold(self, more: int) -> None:
        """Hold so much more."""
        self.held += more
        self.counter.reserved += more


def slot_of(identity: Identity) -> str:
    """Name a budget or quota in the file, whatever its amount."""
    model = "" if identity.model is None else identity.model
    return f"{identity.scope}:{identity.scope_id}|{identity.kind}|{identity.window}|{identity.multiple}|{model}"
