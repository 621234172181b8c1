"""Refuses at once what this worker could only serve late: more requests than it has slots, or while its loop lags.

Invariant: a request that is refused here has cost nothing yet, and holds nothing. The last tenth of the slots is for
organizations that have less than their share, so that one tenant cannot keep all others out. Only inference asks;
health, metrics and administration are never refused here. Not here: limits that tenants have (``limits``).
"""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from meterhouse.errors import Overloaded

RESERVED_PART = 10
"""One slot of so many is for organizations that have less than their share."""
PROBE_SECONDS = 0.1


class LoopProbe:
    """Measures how late the event loop is by its own work.

    A process that stood still, or that the machine gave no time, has no backlog that refusing would shorten; so a
    delay counts only as far as this thread has used the processor meanwhile. And one long step is no overload: what
    counts is two delays in a row.
    """

    def __init__(self, observe: Callable[[float], None] | None = None) -> None:
        self._observe = observe
        self._due = self._used = 0.0
        self.last_seconds = self._before_seconds = 0.0
        """How late the loop was at the last probe, and at the one before it."""
        self._is_running = False

    async def run(self) -> None:
        """Probe, over and over."""
        self._is_running = True
        try:
            while True:
                self._due = time.monotonic() + PROBE_SECONDS
                self._used = time.thread_time()
                await asyncio.sleep(PROBE_SECONDS)
                self._before_seconds, self.last_seconds = self.last_seconds, self._late_seconds(0.0)
                if self._observe is not None:
                    self._observe(max(0.0, time.monotonic() - self._due))
        finally:
            self._is_running = False

    def lag_seconds(self, noticed_seconds: float = 0.0) -> float:
        """Return how late the loop was at least at the last two probes, or at the last one and is again by now.

        Args:
            noticed_seconds: less than this is not looked at closely: asking for the time used costs a system call.
        """
        if not self._is_running or self.last_seconds <= noticed_seconds:
            return 0.0
        return min(self.last_seconds, max(self._before_seconds, self._late_seconds(noticed_seconds)))

    def _late_seconds(self, noticed_seconds: float) -> float:
        late_seconds = time.monotonic() - self._due
        if late_seconds <= noticed_seconds:
            return 0.0
        return min(late_seconds, time.thread_time() - self._used)


class Slots:
    """How many requests are under way, of whom, and how many there may be."""

    def __init__(self, most: int, most_lag_seconds: float, probe: LoopProbe) -> None:
        self.most = most
        self.reserved = most // RESERVED_PART
        self.most_lag_seconds = most_lag_seconds
        self.probe = probe
        self.taken = 0
        """How many are under way."""
        self.by_organization: dict[str, int] = {}
        """The same of each organization that has any."""
        self.refused_for_slots = self.refused_for_share = self.refused_for_lag = 0
        """How many requests were refused, since the start."""


class Slot(msgspec.Struct, eq=False):
    """A request's place in this worker; a context manager, which begins when nothing is known of the request yet.

    Raises:
        Overloaded: There is none, or the loop lags.
    """

    slots: Slots
    organization_id: str | None = None
    """Of whom it is, once that was said."""

    def __enter__(self) -> Self:
        slots = self.slots
        if slots.taken >= slots.most:
            slots.refused_for_slots += 1
            raise _overloaded(f"{slots.taken} requests are under way")
        if slots.probe.last_seconds > slots.most_lag_seconds:
            lag_seconds = slots.probe.lag_seconds(slots.most_lag_seconds)
            if lag_seconds > slots.most_lag_seconds:
                slots.refused_for_lag += 1
                raise _overloaded(f"the event loop is {lag_seconds:.2f} s late")
        slots.taken += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slots, organization_id = self.slots, self.organization_id
        slots.taken -= 1
        if organization_id is not None:
            mine = slots.by_organization[organization_id] - 1
            if mine:
                slots.by_organization[organization_id] = mine
            else:
                del slots.by_organization[organization_id]

    def assign(self, organization_id: str) -> None:
        """Say whose request it is, once or again; raises Overloaded when others are to have what is left."""
        if organization_id == self.organization_id:
            return
        slots = self.slots
        mine = slots.by_organization.get(organization_id, 0) + 1
        if slots.most - slots.taken < slots.reserved:
            # As if one more came: where there is only one, it leaves room for a second.
            organizations = len(slots.by_organization) + (mine == 1)
            if mine > max(1, slots.most // (organizations + 1)):
                slots.refused_for_share += 1
                raise _overloaded(f"{mine - 1} of {slots.taken} requests under way are of {organization_id}")
        slots.by_organization[organization_id] = mine
        self.organization_id = organization_id


def _overloaded(detail: str) -> Overloaded:
    return Overloaded("This server has more to do than it can just now. Try again in a moment.", detail=detail)
