"""Settlements on their way from one worker to Redis: they wait a little for others, and what Redis missed waits for it.

Invariant: a settlement is sent again until Redis confirms it; its id makes it count once. Not here: which reservations
there are, and who must not wait (``metering.Meter.send_settled``).
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from meterhouse.limits.layout import encode_settle, keys_of
from meterhouse.limits.link import RedisLink
from meterhouse.limits.scripts import Script
from meterhouse.metering import Settlement

MOST_WAITING = 100_000
"""Beyond it the oldest is left to the end of its lease and to the reconciler: the ledger has the truth."""
PATIENCE_SECONDS = 0.005
"""How long one waits for others at most: where nobody is about to be answered, or the disk is slow."""
MOST_AT_ONCE = 500
"""Reservations in one call of a script, which holds up all others for about 10 us each."""
_Each = TypeVar("_Each")


class Settlements:
    """The settlements of one worker."""

    def __init__(self, link: RedisLink, script: Script) -> None:
        self._link = link
        self._script = script
        # Those that wait for others, by organization; whose answer is awaited; and those that Redis missed.
        self._queued: defaultdict[str, list[tuple[str, Settlement]]] = defaultdict(list)
        self._unconfirmed: set[_Batch] = set()
        self._waiting: OrderedDict[str, tuple[str, Settlement]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None
        self.given_up = 0
        """How many found the queue full, or could not be told, since the start."""

    @property
    def waiting(self) -> int:
        """How many wait for Redis to return."""
        return len(self._waiting)

    def add(self, organization_id: str, request_id: str, settlement: Settlement) -> None:
        """Send one with the next ``flush``, which comes soon by itself; on the event loop."""
        if self._timer is None:  # that of an earlier one does as well
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._end_patience)
        self._queued[organization_id].append((request_id, settlement))

    def flush(self) -> None:
        """Send those that wait for others in this tick's batch, so that whatever is asked next finds them done."""
        self.post()
        self._link.push_soon()

    def post(self) -> None:
        """Give those that wait for others to the link: whoever posts sees to a push of it in this tick."""
        if not self._queued:
            return
        queued, self._queued = self._queued, defaultdict(list)
        for organization_id, settlements in queued.items():
            for some in batches(settlements):
                self._post(organization_id, some)

    def _post(self, organization_id: str, settlements: list[tuple[str, Settlement]]) -> None:
        try:
            payload = encode_settle(settlements)
        except OverflowError:  # one of them has an amount of more than 64 bits, and takes no other with it
            if len(settlements) == 1:
                self.given_up += 1
                return
            for one in settlements:
                self._post(organization_id, [one])
            return
        batch = _Batch(organization_id, settlements, self._end)
        self._unconfirmed.add(batch)
        self._link.post(self._script, keys_of(organization_id), payload, batch)

    def send_waiting(self) -> None:
        """Send what Redis missed, in one step."""
        waiting = list(self._waiting.items())
        self._waiting.clear()
        for request_id, (organization_id, settlement) in waiting:
            self._queued[organization_id].append((request_id, settlement))
        self.flush()

    async def drain(self) -> None:
        """Send what is left, and wait until Redis has answered or cannot; what is settled meanwhile is not awaited."""
        self.flush()
        left = frozenset(self._unconfirmed)
        while not left.isdisjoint(self._unconfirmed):
            if self._ended is None:
                self._ended = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._ended})

    def _end_patience(self) -> None:
        self._timer = None
        self.flush()

    def _end(self, batch: "_Batch", *, is_confirmed: bool) -> None:
        self._unconfirmed.discard(batch)
        if not is_confirmed:
            for request_id, settlement in batch.settlements:
                self._waiting[request_id] = (batch.organization_id, settlement)
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popitem(last=False)
                self.given_up += 1
        if self._ended is not None:
            self._ended.set_result(None)
            self._ended = None


class _Batch:
    """Settlements of one call, whose reply is awaited whatever becomes of the callers: a ``Waiter``."""

    def __init__(
        self, organization_id: str, settlements: Sequence[tuple[str, Settlement]], end: Callable[..., None]
    ) -> None:
        self.organization_id = organization_id
        self.settlements = settlements
        self._end = end

    def done(self) -> bool:
        return False

    def set_result(self, _reply: object, /) -> None:
        self._end(self, is_confirmed=True)

    def set_exception(self, _error: Exception, /) -> None:
        self._end(self, is_confirmed=False)

    def exception(self) -> None:
        """Do nothing: what Redis missed waits for it."""


def batches(everything: list[_Each], most: int = MOST_AT_ONCE) -> Iterator[list[_Each]]:
    """Cut a list into lists of at most so many."""
    for first in range(0, len(everything), most):
        yield everything[first : first + most]
