"""Which organizations are looked after, and their counters a page at a time.

A sweep of a large organization in one go would hold up every other request of its shard, so each turn goes through a
few pages and the next one goes on there. Not here: what a sweep does (``lua/sweep.lua``).
"""

from collections.abc import Awaitable, Callable

from meterhouse.limits.layout import ACTIVE_KEY, Reply, Status, decode_sweep
from meterhouse.limits.link import CommandRefused, LinkDown, RedisLink
from meterhouse.metering import Clock

ACTIVE_MS = 600_000
"""How long after its last activity an organization is swept and reconciled: ten leases."""
NOTED_MS = 5_000
"""How often a worker says that an organization is active."""
MOST_NOTED = 10_000
MOST_REAPED = 500
"""In one call of the script, which holds up everybody of its shard."""
PAGES_TOGETHER = 8
FIRST_PAGE = "0"

Sweep = Callable[[str, str], Awaitable[Reply]]
"""Sweeps the page of an organization at a cursor; raises LinkDown and CommandRefused."""


class Activity:
    """The organizations that were active lately, on all workers."""

    def __init__(self, link: RedisLink, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._noted_ms: dict[str, int] = {}

    def note(self, organization_id: str) -> None:
        """Say now and then that an organization is active."""
        now_ms = self._clock.now_ms()
        noted_ms = self._noted_ms.get(organization_id)
        if noted_ms is not None and -NOTED_MS < now_ms - noted_ms < NOTED_MS:
            return
        if len(self._noted_ms) >= MOST_NOTED:
            self._noted_ms.clear()
        self._noted_ms[organization_id] = now_ms
        self._link.command("ZADD", ACTIVE_KEY, now_ms, organization_id)

    async def list_organizations(self) -> list[str]:
        """Return them; none while Redis is away."""
        since_ms = self._clock.now_ms() - ACTIVE_MS
        self._noted_ms = {name: noted_ms for name, noted_ms in self._noted_ms.items() if noted_ms >= since_ms}
        try:
            self._link.command("ZREMRANGEBYSCORE", ACTIVE_KEY, "-inf", f"({since_ms}")
            found = await self._link.command("ZRANGE", ACTIVE_KEY, 0, -1)
        except (LinkDown, CommandRefused):
            return []
        return sorted({*self._noted_ms, *[name.decode() for name in found]})


class Pages:
    """Goes through the pages of each organization's counters, some at each turn, over and over."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._cursors: dict[str, str] = {}

    async def turn(self, organization_id: str) -> tuple[int, list[str]]:
        """Sweep the next pages; returns how many leases were reaped, and the known slots of these pages.

        Nothing comes of an organization that is unknown or cannot be asked.
        """
        reaped = 0
        slots: list[str] = []
        cursor = self._cursors.pop(organization_id, FIRST_PAGE)
        for _ in range(PAGES_TOGETHER):
            try:
                reply = await self._sweep(organization_id, cursor)
            except (LinkDown, CommandRefused):
                return reaped, slots
            if reply[0] != Status.DONE:
                return reaped, slots
            some, cursor, page = decode_sweep(reply)
            reaped += some
            slots += page
            if cursor == FIRST_PAGE and some < MOST_REAPED:
                return reaped, slots
        self._cursors[organization_id] = cursor
        return reaped, slots
