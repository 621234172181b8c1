"""Settlements on their way from one worker to Redis: they wait a little for others, and what Redis missed waits for it.

Invariant: a settlement is sent again until Redis confirms it; its id makes it count once. Not here: which reservations
there are, and who must not wait (``metering.Meter.send_settled``).
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

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
        self._unconfirmed: set[asyncio.Future[Any]] = set()
        self._waiting: OrderedDict[str, tuple[str, Settlement]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self.forgotten = 0
        """How many found the queue full, since the start."""

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
        if not self._queued:
            return
        queued = dict(self._queued)
        self._queued.clear()
        for organization_id, settlements in queued.items():
            for batch in batches(settlements):
                future = self._link.call(self._script, keys_of(organization_id), encode_settle(batch))
                self._unconfirmed.add(future)
                future.add_done_callback(partial(self._confirm, organization_id, batch))

    def send_now(self) -> None:
        """Send those that wait, for others or for the end of the tick."""
        self.flush()
        self._link.push()

    def send_waiting(self) -> None:
        """Send what Redis missed, in one step."""
        waiting = list(self._waiting.items())
        self._waiting.clear()
        for request_id, (organization_id, settlement) in waiting:
            self._queued[organization_id].append((request_id, settlement))
        self.flush()

    async def drain(self) -> None:
        """Send what is left, and wait until Redis has answered or cannot."""
        self.flush()
        if self._unconfirmed:
            await asyncio.wait(self._unconfirmed)

    def _end_patience(self) -> None:
        self._timer = None
        self.flush()

    def _confirm(
        self, organization_id: str, batch: Sequence[tuple[str, Settlement]], future: "asyncio.Future[Any]"
    ) -> None:
        self._unconfirmed.discard(future)
        if not future.cancelled() and future.exception() is None:
            return
        for request_id, settlement in batch:
            self._waiting[request_id] = (organization_id, settlement)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)
            self.forgotten += 1


def batches(everything: Collection[_Each], most: int = MOST_AT_ONCE) -> Iterable[list[_Each]]:
    """Cut a collection into lists of at most so many."""
    source = iter(everything)
    while batch := list(islice(source, most)):
        yield batch
