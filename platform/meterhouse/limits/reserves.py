"""Demands on their way from one worker to Redis: those of one organization and tick are one call of a script.

What a call costs Redis is mostly the call and not the demand: four together cost less than two alone. Invariant: what
was settled before a demand was added reaches Redis before it. Not here: what becomes of the replies (``redis``).
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from meterhouse.limits.layout import Plan, Reply, encode_reserve
from meterhouse.limits.link import CommandRefused, RedisLink
from meterhouse.limits.scripts import Script
from meterhouse.limits.settlements import Settlements
from meterhouse.limits.sweeps import Activity
from meterhouse.metering import Demand

MOST_TOGETHER = 8
"""So many do not wait for the end of the tick: Redis works on them while this process goes on."""
Waiting = tuple[Plan, Demand, "asyncio.Future[Reply]"]
"""What judges a demand, the demand, and who waits for the reply."""


class Reserves:
    """The demands of one worker that are not sent yet."""

    def __init__(
        self,
        link: RedisLink,
        script: Script,
        settlements: Settlements,
        lease_ms: int,
        find_silence_ms: Callable[[str], int],
        activity: Activity,
    ) -> None:
        """Prepare.

        Args:
            link: the way to Redis.
            script: ``reserve``.
            settlements: sent before any demand.
            lease_ms: how long a reservation lives without being renewed.
            find_silence_ms: says of an organization after how long a silence expired leases may be reaped.
            activity: told of an organization before each call for it.
        """
        self._link = link
        self._script = script
        self._settlements = settlements
        self._lease_ms = lease_ms
        self._find_silence_ms = find_silence_ms
        self._activity = activity
        self._loop = asyncio.get_running_loop()
        # By organization, in the order in which they came.
        self._queued: dict[str, list[Waiting]] = {}

    def add(self, demand: Demand, plan: Plan) -> "asyncio.Future[Reply]":
        """Ask for a demand with those of this tick; on the event loop. The reply is for ``decode_reserve``.

        The future raises:
            LinkDown: Redis cannot be asked now.
            CommandRefused: The script failed.
            OverflowError: An amount of the demand has more than 64 bits.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        organization_id = plan.organization_id
        waiting = self._queued.get(organization_id)
        if waiting is None:
            if not self._queued:
                self._loop.call_soon(self.flush)
            waiting = self._queued[organization_id] = []
        waiting.append((plan, demand, future))
        if len(waiting) >= MOST_TOGETHER:
            del self._queued[organization_id]
            self._send([waiting])
        return future

    def flush(self) -> None:
        """Send those of this tick now, so that whatever is asked next finds them decided."""
        if not self._queued:
            return
        queued, self._queued = self._queued, {}
        self._send(queued.values())

    def _send(self, calls: Iterable[Sequence[Waiting]]) -> None:
        """Write calls with what was settled before, each with demands of one organization."""
        self._settlements.post()
        for waiting in calls:
            self._post(waiting)
        self._link.push()

    def _post(self, waiting: Sequence[Waiting]) -> None:
        plan = waiting[0][0]
        self._activity.note(plan.organization_id)
        silence_ms = self._find_silence_ms(plan.organization_id)
        replies = _Replies(waiting, self._send_each)
        try:
            payload = encode_reserve(waiting, self._lease_ms, silence_ms)
        except OverflowError as error:
            replies.set_exception(error)
        else:
            self._link.post(self._script, plan.keys, payload, replies)

    def _send_each(self, waiting: Sequence[Waiting]) -> None:
        """Send each alone, so that the one that is refused, or cannot be told, stands for no other."""
        self._send([(one,) for one in waiting])


class _Replies:
    """Hands the replies of a call to those who wait: a ``Waiter``."""

    def __init__(self, waiting: Sequence[Waiting], send_each: Callable[[Sequence[Waiting]], None]) -> None:
        self._waiting = waiting
        self._send_each = send_each

    def done(self) -> bool:
        return all(future.done() for _, _, future in self._waiting)

    def set_result(self, replies: Sequence[Reply], /) -> None:
        for (_, _, future), reply in zip(self._waiting, replies, strict=True):
            if not future.done():
                future.set_result(reply)

    def set_exception(self, error: Exception, /) -> None:
        if isinstance(error, CommandRefused | OverflowError) and len(self._waiting) > 1:
            self._send_each([one for one in self._waiting if not one[2].done()])
            return
        for _, _, future in self._waiting:
            if not future.done():
                future.set_exception(type(error)(*error.args))
                future.exception()  # a caller that has gone is no reason for a line in the log

    def exception(self) -> None:
        """Do nothing: whoever waits has the error."""
