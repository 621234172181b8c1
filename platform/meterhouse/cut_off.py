"""Whose leases nobody may end just now: of whom a living worker holds reservations in Redis that it cannot renew.

Such a worker says so in its heartbeat, and by organization, so that those of whom it has nothing are reaped as ever.
Not here: the heartbeats (``fleet``), and reaping (``limits.redis``).
"""

import time
from collections.abc import Collection, Iterable

from meterhouse.db.workers import Heartbeat

BEATS = 3
"""For so many heartbeats a worker is believed to be cut off: it renews once it is not any more."""
MOST_NAMED = 1_000
"""Organizations that a heartbeat names; of more it says no more than that there are any."""
ANY = ""
"""Stands for every organization."""


class CutOff:
    """What the heartbeats of the others said lately."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def note(self, heartbeats: Iterable[Heartbeat], seconds: float) -> None:
        """Believe the heartbeats of workers that live, for so long."""
        now = time.monotonic()
        said = {name for one in heartbeats if one.is_cut_off for name in one.cut_off or (ANY,)}
        lately = {name: until for name, until in self._until.items() if until > now}
        self._until = lately | dict.fromkeys(said, now + seconds)

    def holds(self, organization_id: str) -> bool:
        """Whether leases of an organization may be those of a worker that lives."""
        if not self._until:
            return False
        return time.monotonic() < max(self._until.get(organization_id, 0.0), self._until.get(ANY, 0.0))


def name_few(organizations: Collection[str]) -> tuple[str, ...]:
    """Return what a heartbeat names of them: all, or none where they are too many."""
    return tuple(sorted(organizations)) if len(organizations) <= MOST_NAMED else ()
