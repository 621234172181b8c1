"""Makes known to Redis what only the ledger knows: learning a slot and reconciling it are one operation.

Redis accounts for every request that is live when the operation begins or is admitted later, and for those that were
reaped and may be settled yet; the ledger, once all workers have shipped what they had journaled, accounts for all
others. So what a slot must say of the others is the ledger's sum before the beginning, without these; what it said of
them when it began is its ``spent`` of that moment; and the difference may be added at any time after, because
settlements only ever add. A reaped one is told by itself what the ledger has of it, so that a settlement that comes
late finds that counted.

Invariant: an unknown slot becomes known only by that sum; a known one is lowered only if no worker can have kept a
record back. Not here: the scripts (``lua``), when to learn, and what a request does that waits.
"""

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from meterhouse.errors import GatewayError, MeterDown
from meterhouse.ids import new_request_id
from meterhouse.limits.counters import meter_down
from meterhouse.limits.layout import EMPTY, Status, keys_of, limit_of, period_of_slot
from meterhouse.limits.learning_layout import (
    Begun,
    SlotCorrection,
    decode_learn_begin,
    decode_status,
    encode_known,
    encode_learn_begin,
    encode_learn_finish,
    untouched,
)
from meterhouse.limits.link import CommandRefused, LinkDown, LinkScript
from meterhouse.limits.settlements import batches
from meterhouse.metering import Kind, LedgerSums, Period, Sums

BUSY_SECONDS = 0.05
"""How long a slot that another worker learns is left to it before it is looked at again."""
SUM_SECONDS = 2.0
"""How long the ledger may take for its sums in the usual case; a lock outlives the wait for the workers by it."""
LONGEST_SUM_SECONDS = 30.0
"""How long it may take where that was too short: an organization with millions of rows in a period."""
QUIET_PART = 2 / 3
"""Whoever lives is heard of more often than in this part of a lease, also when a renewal is lost."""
MOST_SLOTS = 20
"""In one operation; more follow in further ones."""


class Fleet(Protocol):
    """The workers that share the meter."""

    @property
    def live_workers(self) -> int:
        """How many there are, by the last count known; at least 1."""
        ...

    async def flush(self, organization_id: str, *, registers: bool) -> bool:
        """Have every live worker ship what it had journaled and, if ``registers``, register its live reservations.

        False: one was silent for too long, or is dead and its journal was not adopted yet. Raises StoreDown and
        MeterDown.
        """
        ...


class SumsBefore(Protocol):
    """The ledger, as it accounts for what Redis does not."""

    async def sum_before(self, periods: Sequence[Period], before_ms: int, excluded: Collection[str]) -> LedgerSums:
        """Sum what was admitted before a moment, without some requests, in one snapshot; raises StoreDown."""
        ...


class Link(Protocol):
    """What is needed of ``link.RedisLink``."""

    def call(self, script: LinkScript, keys: Sequence[str], payload: bytes) -> Awaitable[Any]:
        """Run a script; raises LinkDown, or CommandRefused."""
        ...


class LearningScripts(Protocol):
    """The scripts that are needed; ``layout`` says what they are told and answer."""

    @property
    def open(self) -> LinkScript:
        """Begins anew with an organization."""
        ...

    @property
    def known(self) -> LinkScript:
        """Lets requests of an open organization in."""
        ...

    @property
    def learn_begin(self) -> LinkScript:
        """Locks and attaches slots, and says where they stand."""
        ...

    @property
    def learn_finish(self) -> LinkScript:
        """Corrects and unlocks them."""
        ...


@dataclass(slots=True)
class DriftFigures:
    """What reconciling found wrong, since the start; what is learned for the first time does not count."""

    counter_drift_total: int = 0
    """How often a known slot was off by anything."""
    raised_nanos: int = 0
    """What was added to budgets."""
    lowered_nanos: int = 0
    """What was taken off budgets."""


class _Aim(Enum):
    RECOVER = "recover"
    LEARN = "learn"
    RECONCILE = "reconcile"


class _Course(NamedTuple):
    """What goes on one after the other."""

    organization_id: str
    aim: _Aim


class _Found:
    """What the ledger says of slots whose learning began."""

    __slots__ = ("begun", "corrections", "may_lower", "sums")

    def __init__(self, begun: Begun, sums: LedgerSums, *, may_lower: bool) -> None:
        self.begun = begun
        self.sums = sums
        self.may_lower = may_lower
        """Nobody can have kept a record back."""
        self.corrections = [
            SlotCorrection(
                state.slot,
                state.start_ms,
                _amount_of(limit_of(state.slot).kind, known) - state.spent,
                may_lower=may_lower,
            )
            for state, known in zip(begun.slots, sums.periods, strict=True)
        ]


@dataclass(slots=True)
class _Batch:
    """One operation, and everybody who waits for its end."""

    done: "asyncio.Future[MeterDown | None]"
    slots: set[str] = field(default_factory=set)

    def finish(self, outcome: MeterDown | None) -> None:
        if not self.done.done():
            self.done.set_result(outcome)


@dataclass(slots=True)
class _Flight:
    """The running operation of a course, the one that comes next, and the task that does them."""

    next: _Batch | None
    current: _Batch | None = None
    task: "asyncio.Task[None] | None" = None


class Learner:
    """Learns and reconciles, per organization one operation of a kind at a time.

    Whoever asks while one runs waits for it, if it does what is asked for, else for the next one. Cancelling a wait
    stops nothing. All methods raise MeterDown when the fleet, the ledger or Redis could not say. Returning means that
    it is worth looking again, not that all is known: another worker may be at it.
    """

    def __init__(
        self,
        link: Link,
        scripts: LearningScripts,
        fleet: Fleet,
        sums: SumsBefore,
        *,
        lock_seconds: float = 5.0,
        lease_seconds: float = 60.0,
    ) -> None:
        """Prepare.

        Args:
            link: the way to Redis.
            scripts: what runs there.
            fleet: the workers that share it.
            sums: the ledger.
            lock_seconds: how long slots stay locked behind a learner that died in the usual case, where all workers
                answer at once.
            lease_seconds: how long a silent worker is waited for; then it is tried again with a lock as long as that.
                Workers renew at least three times in it.
        """
        self._link = link
        self._scripts = scripts
        self._fleet = fleet
        self._sums = sums
        self._lock_seconds = lock_seconds
        self._lease_seconds = lease_seconds
        self._flights: dict[_Course, _Flight] = {}
        self.figures = DriftFigures()

    async def recover(self, organization_id: str) -> None:
        """Make an organization known that Redis does not know: every live worker registers what it holds."""
        await self._join(_Course(organization_id, _Aim.RECOVER), ())

    async def learn(self, organization_id: str, slots: Iterable[str]) -> None:
        """Make unknown slots of a known organization known."""
        await self._join(_Course(organization_id, _Aim.LEARN), slots)

    async def reconcile(self, organization_id: str, slots: Iterable[str]) -> None:
        """Correct slots by what the ledger says, where they differ; those that another worker has are left to it."""
        await self._join(_Course(organization_id, _Aim.RECONCILE), slots)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- who waits for what

    async def _join(self, course: _Course, slots: Iterable[str]) -> None:
        wanted = set(slots)
        if not wanted and course.aim is not _Aim.RECOVER:
            return
        flight = self._flights.get(course)
        if flight is None:
            flight = self._flights[course] = _Flight(_new_batch())
            flight.task = asyncio.create_task(self._fly(course, flight))
        batches = []
        if flight.current is not None:
            batches.append(flight.current)
            wanted -= flight.current.slots
        if wanted or not batches:
            flight.next = flight.next or _new_batch()
            flight.next.slots |= wanted
            batches.append(flight.next)
        await asyncio.wait({batch.done for batch in batches})
        for batch in batches:
            failure = batch.done.result()
            if failure is not None:
                raise meter_down(failure.detail) from failure

    async def _fly(self, course: _Course, flight: _Flight) -> None:
        try:
            while flight.next is not None:
                flight.current, flight.next = flight.next, None
                flight.current.finish(await self._try(course, sorted(flight.current.slots)))
        finally:
            del self._flights[course]
            for batch in (flight.current, flight.next):
                if batch is not None:
                    batch.finish(MeterDown("", detail="the learner was closed"))

    async def _try(self, course: _Course, slots: Sequence[str]) -> MeterDown | None:
        organization_id, aim = course
        try:
            if aim is _Aim.RECOVER:
                await self._recover(organization_id)
            for start in range(0, len(slots), MOST_SLOTS):
                await self._learn(organization_id, slots[start : start + MOST_SLOTS], aim)
        except GatewayError as error:
            return meter_down(f"{aim.value}: {error.message} {error.detail}")
        except (LinkDown, CommandRefused) as error:
            return meter_down(f"{aim.value}: {error}")
        return None

    # --- what is done

    async def _recover(self, organization_id: str) -> None:
        keys = keys_of(organization_id)
        opened = await self._link.call(self._scripts.open, keys, EMPTY)
        if decode_status(opened) is not Status.RESOLVED:
            # A worker that stays silent for a lease is left out: what it held is reaped by then.
            await self._fleet.flush(organization_id, registers=True)
            await self._link.call(self._scripts.known, keys, encode_known(opened[1]))

    async def _learn(self, organization_id: str, slots: Sequence[str], aim: _Aim) -> None:
        is_done = await self._operate(organization_id, slots, aim)
        if is_done or aim is _Aim.RECONCILE:
            return
        if len(slots) == 1:
            await asyncio.sleep(BUSY_SECONDS)
        else:  # one of them is with somebody else; the others need not wait for it
            await asyncio.gather(*(self._learn(organization_id, [slot], aim) for slot in slots))

    async def _operate(self, organization_id: str, slots: Sequence[str], aim: _Aim) -> bool:
        """Learn or reconcile slots; False when somebody else is at one of them."""
        token = new_request_id()
        for patience_seconds, sum_seconds in (
            (self._lock_seconds, SUM_SECONDS),
            (self._lease_seconds + self._lock_seconds, LONGEST_SUM_SECONDS),
        ):
            begun = await self._begin(organization_id, slots, token, patience_seconds + sum_seconds)
            if not isinstance(begun, Begun):
                return begun is not Status.BUSY
            if aim is _Aim.LEARN and all(state.is_known for state in begun.slots):
                await self._finish(organization_id, token, untouched(slots))
                return True
            try:
                async with asyncio.timeout(patience_seconds):
                    may_lower = await self._fleet.flush(organization_id, registers=False)
                async with asyncio.timeout(sum_seconds):
                    found = _Found(begun, await self._sum_up(begun), may_lower=may_lower)
            except TimeoutError:
                continue  # begins again, because the lock would end before the last answer
            except GatewayError:
                await self._finish(organization_id, token, untouched(slots))
                raise
            await self._correct(organization_id, token, found)
            return True
        await self._finish(organization_id, token, untouched(slots))
        raise meter_down("the workers or the ledger did not answer")

    async def _begin(
        self, organization_id: str, slots: Sequence[str], token: str, lock_seconds: float
    ) -> Begun | Status:
        payload = encode_learn_begin(token, round(lock_seconds * 1000), slots)
        return decode_learn_begin(
            await self._link.call(self._scripts.learn_begin, keys_of(organization_id), payload), slots
        )

    async def _finish(self, organization_id: str, token: str, corrections: Sequence[SlotCorrection]) -> None:
        payload = encode_learn_finish(token, corrections)
        await self._link.call(self._scripts.learn_finish, keys_of(organization_id), payload)

    async def _sum_up(self, begun: Begun) -> LedgerSums:
        periods = [period_of_slot(state.slot, state.start_ms) for state in begun.slots]
        return await self._sums.sum_before(periods, begun.begin_ms, begun.live | begun.reaped)

    async def _correct(self, organization_id: str, token: str, found: "_Found") -> None:
        """Finish with what was found; reaped reservations beyond the first few in calls of their own."""
        begun, corrections = found.begun, found.corrections
        reaped = [(request_id, found.sums.left_out.get(request_id, Sums())) for request_id in sorted(begun.reaped)]
        quiet_since_ms = None
        if found.may_lower:
            quiet_since_ms = begun.begin_ms - round(self._lease_seconds * 1000 * QUIET_PART)
        first, *more = list(batches(reaped)) or [[]]
        payload = encode_learn_finish(token, corrections, first, quiet_since_ms, found.sums.corrections)
        reply = await self._link.call(self._scripts.learn_finish, keys_of(organization_id), payload)
        for batch in more:
            payload = encode_learn_finish(token, (), batch, quiet_since_ms)
            await self._link.call(self._scripts.learn_finish, keys_of(organization_id), payload)
        if decode_status(reply) is Status.DONE:
            self._count(begun, corrections)

    def _count(self, begun: Begun, corrections: Sequence[SlotCorrection]) -> None:
        figures = self.figures
        for state, correction in zip(begun.slots, corrections, strict=True):
            if not state.is_known or not correction.delta:
                continue
            figures.counter_drift_total += 1
            if limit_of(state.slot).kind is Kind.SPEND:
                figures.raised_nanos += max(0, correction.delta)
                figures.lowered_nanos += max(0, -correction.delta) if correction.may_lower else 0


def _new_batch() -> _Batch:
    return _Batch(asyncio.get_running_loop().create_future())


def _amount_of(kind: Kind, sums: Sums) -> int:
    if kind is Kind.SPEND:
        return sums.charge_nanos
    return sums.total_tokens if kind is Kind.TOKENS else sums.requests
