"""The reservations of this process: live ones with their leases, reaped ones, and the ids that were settled.

Every hold is in one place: live until it is settled or its lease expires, reaped for 48 h after an expiry (a later
settlement applies the difference), and gone but for its id once settled. Not here: counters.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from meterhouse.limits.counter import Debit
from meterhouse.metering import Demand, Reservation, Settlement, Use
from meterhouse.usage import Exactness

REAPED_MS = 48 * 3_600_000
MOST_REAPED = 10_000
"""More than this are reaped only if renewal itself is broken; the oldest are then forgotten first."""
SETTLED_MS = 600_000
MOST_SETTLED = 100_000
"""Of one generation of settled ids; two are kept (about 10 MB each when full)."""


class Hold:
    """A reservation with what it took from each counter."""

    __slots__ = ("debits", "demand", "expires_at_ms", "reaped_at_ms", "reservation", "use")

    def __init__(self, demand: Demand, reservation: Reservation, debits: list[Debit], expires_at_ms: int) -> None:
        self.demand = demand
        self.reservation = reservation
        self.debits = debits
        self.expires_at_ms = expires_at_ms
        self.use: Use | None = None
        """What the last renewal said was used so far."""
        self.reaped_at_ms: int | None = None

    @property
    def held_output_tokens(self) -> int:
        """Output over all choices that bounds this request; the whole answer where nothing was held or clamped."""
        held = self.reservation.held_output_tokens
        return self.demand.output_tokens * self.demand.choices if held is None else held

    def resolve(self, settlement: Settlement, now_ms: int) -> None:
        """Move every counter to what the settlement says."""
        for debit in self.debits:
            debit.resolve(settlement, now_ms)

    def last_known(self) -> Settlement:
        """Return what a reaping settles at: nothing unless a renewal said that the request was sent."""
        use = self.use
        if use is None or not use.is_sent:
            return Settlement(0, 0, 0, Exactness.COUNTED)
        return Settlement(1, use.total_tokens, use.charge_nanos, Exactness.COUNTED)


class Holds:
    """All holds of the process."""

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._live: dict[str, Hold] = {}
        # By organization, in the order in which leases expire: all leases are equally long.
        self._lanes: dict[str, OrderedDict[str, Hold]] = {}
        self._reaped: OrderedDict[str, Hold] = OrderedDict()
        # Two generations instead of times: forgetting costs nothing, and strings do not burden the garbage collector.
        self._settled: set[str] = set()
        self._settled_before: set[str] = set()
        self._turned_at_ms = 0

    def __iter__(self) -> Iterator[Hold]:
        """Go over all holds that a settlement can still move: live and reaped ones."""
        yield from self._live.values()
        yield from self._reaped.values()

    def find_live(self, request_id: str) -> Hold | None:
        """Return the live hold of a request."""
        return self._live.get(request_id)

    def is_resolved(self, request_id: str) -> bool:
        """Whether a request was settled (in the last 10 minutes) or reaped."""
        return request_id in self._settled or request_id in self._settled_before or request_id in self._reaped

    def add(self, hold: Hold) -> None:
        """Keep a new live hold."""
        request_id = hold.demand.request_id
        self._live[request_id] = hold
        lane = self._lanes.get(hold.demand.organization_id)
        if lane is None:
            lane = self._lanes[hold.demand.organization_id] = OrderedDict()
        lane[request_id] = hold

    def renew(self, request_id: str, use: Use, now_ms: int) -> None:
        """Move a live lease forward with its use so far; others are ignored."""
        hold = self._live.get(request_id)
        if hold is not None:
            hold.use = use
            hold.expires_at_ms = now_ms + self._lease_ms
            self._lanes[hold.demand.organization_id].move_to_end(request_id)

    def settle(self, request_id: str, settlement: Settlement, now_ms: int) -> bool:
        """Resolve a live or reaped hold; False (and nothing changes) if there is none."""
        hold = self._live.pop(request_id, None)
        if hold is not None:
            del self._lanes[hold.demand.organization_id][request_id]
        else:
            hold = self._reaped.pop(request_id, None)
            if hold is None:
                return False
        if len(self._settled) >= MOST_SETTLED or now_ms - self._turned_at_ms >= SETTLED_MS:
            self._turn(now_ms)
        self._settled.add(request_id)
        hold.resolve(settlement, now_ms)
        return True

    def reap(self, organization_id: str, now_ms: int, lease_now_ms: int, most: int | None = None) -> int:
        """Resolve expired leases of an organization at their last renewed use; returns how many."""
        lane = self._lanes.get(organization_id)
        reaped = 0
        while lane and (most is None or reaped < most):
            request_id, hold = next(iter(lane.items()))
            if hold.expires_at_ms > lease_now_ms:
                break
            del lane[request_id]
            del self._live[request_id]
            hold.reaped_at_ms = now_ms
            self._reaped[request_id] = hold
            hold.resolve(hold.last_known(), now_ms)
            reaped += 1
        return reaped

    def organizations(self) -> Sequence[str]:
        """Return the organizations that have, or lately had, live holds."""
        return tuple(self._lanes)

    def forget(self, now_ms: int) -> None:
        """Drop what is too old to matter: reaped holds, settled ids, lanes without holds."""
        while self._reaped:
            oldest = next(iter(self._reaped.values()))
            is_old = oldest.reaped_at_ms is None or now_ms - oldest.reaped_at_ms >= REAPED_MS
            if not is_old and len(self._reaped) <= MOST_REAPED:
                break
            self._reaped.popitem(last=False)
        if now_ms - self._turned_at_ms >= SETTLED_MS:
            self._turn(now_ms)
        self._lanes = {organization_id: lane for organization_id, lane in self._lanes.items() if lane}

    def _turn(self, now_ms: int) -> None:
        self._settled_before = self._settled
        self._settled = set()
        self._turned_at_ms = now_ms
