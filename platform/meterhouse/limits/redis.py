"""The meter that all workers share: every decision is one script on Redis, on one shard for each organization.

This module keeps what one worker knows: its live reservations, and the settlements that Redis has not confirmed.
Invariant: a settlement reaches Redis before anything that this worker asks later, or waits until Redis is back; its id
makes it count once. Where Redis cannot answer, or cannot know in time, the outage path decides. Not here: what the
scripts do (``lua``), how slots become known (``learning``), and the connection (``link``).
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from meterhouse.errors import MeterDown
from meterhouse.limits.counters import meter_down
from meterhouse.limits.layout import (
    EMPTY,
    REAP_NOTHING,
    Plan,
    Plans,
    Reply,
    Status,
    decode_ids,
    decode_reserve,
    decode_slots,
    decode_states,
    encode_adjust,
    encode_extend,
    encode_register,
    encode_renew,
    encode_states,
    encode_sweep,
    keys_of,
    slot_of,
    strictest,
)
from meterhouse.limits.learning import Learner
from meterhouse.limits.link import CommandRefused, LinkDown, RedisLink
from meterhouse.limits.outage import OutageMeter
from meterhouse.limits.patience import patience
from meterhouse.limits.reserves import Reserves
from meterhouse.limits.scripts import Script, load_scripts
from meterhouse.limits.settlements import Settlements, batches
from meterhouse.limits.sweeps import MOST_REAPED, Activity, Pages
from meterhouse.metering import (
    Clock,
    Correction,
    Demand,
    Limit,
    LimitState,
    Refusal,
    Reservation,
    Settlement,
    Use,
)
from meterhouse.usage import Exactness

LEASE_MS = 60_000
SWEPT_TOGETHER = 100
_UNLEARNED = (int(Status.LEARN), int(Status.UNKNOWN))
_RELEASED = Settlement(0, 0, 0, Exactness.COUNTED)
_UNUSED = Use(is_sent=False, total_tokens=0, charge_nanos=0)
_FAILURES = (LinkDown, CommandRefused, MeterDown)


class _Live(msgspec.Struct, eq=False):
    """A reservation of this worker."""

    demand: Demand
    reservation: Reservation
    is_in_outage: bool
    """Whether the outage path holds something of it."""
    use: Use | None = None


class RedisMeter:
    """Implements ``metering.Meter``. Call ``sweep`` every 30 s, ``reconcile`` each minute, ``close`` at the end."""

    def __init__(  # noqa: PLR0913 - the parts that it is made of, and three times
        self,
        link: RedisLink,
        learner: Learner,
        outage: OutageMeter,
        clock: Clock,
        *,
        lease_ms: int = LEASE_MS,
        wait_seconds: float = 1.0,
        silence_ms: int = 0,
        may_reap: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Prepare, and be told when Redis returns.

        Args:
            link: the way to Redis, opened and closed by others.
            learner: makes known what the scripts say they do not know.
            outage: the meter while Redis is away; closed with this one.
            clock: for noting activity only; Redis's own time decides everything else.
            lease_ms: how long a reservation lives without being renewed.
            wait_seconds: how long a request waits for what must be learned.
            silence_ms: after so long without a sweep or a renewal by anybody, leases get as long to be renewed; more
                than the time between two sweeps, less than a lease. 0: an expired lease is reaped at once.
            may_reap: whether an expired lease of an organization may be reaped at all now.
        """
        self._link = link
        self._scripts = scripts = load_scripts()
        self._learner = learner
        self._outage = outage
        self._clock = clock
        self._lease_ms = lease_ms
        self._wait_seconds = wait_seconds
        self._silence_ms = silence_ms
        self._may_reap = may_reap
        self._plans = Plans()
        self.settlements = Settlements(link, scripts.settle)
        """What is on its way to Redis."""
        self._activity = activity = Activity(link, clock)
        self._reserves = Reserves(link, scripts.reserve, self.settlements, lease_ms, self._find_silence_ms, activity)
        self._live: dict[str, _Live] = {}
        # Two that turn the pages, so that each sees all of them.
        self._sweeps = Pages(self._sweep)
        self._reviews = Pages(self._sweep)
        link.on_up.append(self._come_back)

    @property
    def is_degraded(self) -> bool:
        """Whether Redis is away."""
        return not self._link.is_up

    def list_cut_off(self) -> set[str]:
        """Return the organizations of which this worker has reservations in Redis that it cannot renew now."""
        if self._link.is_up:
            return set()
        held = {live.demand.organization_id for live in self._live.values() if not live.reservation.is_degraded}
        return {organization_id for organization_id in held if not self._link.is_up_for(keys_of(organization_id)[0])}

    @property
    def live(self) -> int:
        """How many reservations of this worker are live."""
        return len(self._live)

    # --- the meter

    async def reserve(self, demand: Demand) -> Reservation | Refusal:
        """Hold a demand against all limits or none; the same id gets the same live reservation.

        An id that was settled or reaped before gets a reservation that holds and allows nothing.

        Raises:
            MeterDown: Neither Redis nor the outage path can decide.
        """
        live = self._live.get(demand.request_id)
        if live is not None:
            return live.reservation
        try:
            plan = self._plans.of(demand)
            reply = await self._reserves.add(demand, plan)
            if reply[0] in _UNLEARNED:
                reply = await self._reserve_learned(demand, plan, reply)
            decided, is_held = decode_reserve(reply, demand.request_id, plan.limits), reply[0] == Status.DONE
        except _FAILURES as failure:
            decided, is_held = await self._reserve_in_outage(demand, failure)
        except asyncio.CancelledError:
            self._release(demand)
            raise
        if isinstance(decided, Refusal) or not is_held:
            return decided
        return self._live.setdefault(demand.request_id, _Live(demand, decided, decided.is_degraded)).reservation

    async def extend(self, reservation: Reservation, output_tokens: int) -> bool:
        """Hold more output tokens (over all choices) against every budget and token quota, or none of them.

        The limits under which the request was admitted decide. False: one of them has no room, or the reservation is
        not live; the hold stays as it was.
        """
        live = self._live.get(reservation.request_id)
        if live is None:
            return False
        target = (reservation.held_output_tokens or 0) + max(0, output_tokens)
        try:
            payload = encode_extend(reservation.request_id, target)
            status, *held = await self._ask(self._scripts.extend, live.demand.organization_id, payload)
        except _FAILURES:
            return await self._extend_in_outage(live, output_tokens)
        if status == Status.MISSING and live.is_in_outage:
            return await self._extend_in_outage(live, output_tokens)
        if status != Status.DONE:
            return False
        if reservation.held_output_tokens is not None:
            reservation.held_output_tokens = max(reservation.held_output_tokens, held[0])
            reservation.held_nanos = max(reservation.held_nanos, held[1])
        return True

    def settle(self, reservation: Reservation, settlement: Settlement) -> None:
        """Move every quota and budget to exactly the settlement; a second time changes nothing.

        After a reaping, the difference to what the reaping charged is applied once. Synchronous; while Redis is away
        the settlement waits.
        """
        live = self._live.pop(reservation.request_id, None)
        if live is not None:
            if live.is_in_outage:
                self._outage.settle(reservation, settlement)
            self.settlements.add(live.demand.organization_id, reservation.request_id, settlement)

    def send_settled(self) -> None:
        """Send to Redis what was settled."""
        self.settlements.post()
        self._link.push()

    async def renew(self, uses: Mapping[str, Use]) -> None:
        """Move live leases forward with what each request has used so far, and register what Redis does not know."""
        await self._outage.renew(uses)
        by_organization: defaultdict[str, dict[str, Use]] = defaultdict(dict)
        for request_id, use in uses.items():
            live = self._live.get(request_id)
            if live is not None:
                live.use = use
                by_organization[live.demand.organization_id][request_id] = use
        await asyncio.gather(*[self._renew(*renewal) for renewal in by_organization.items()])

    async def list_states(self, organization_id: str, limits: Sequence[Limit]) -> list[LimitState]:
        """Say where each of these limits stands now, in their order.

        Raises:
            MeterDown: The ledger did not say in time what is spent.
        """
        once = strictest(limits)
        try:
            reply = await self._ask(self._scripts.states, organization_id, encode_states(once))
        except (LinkDown, CommandRefused):
            return await self._outage.list_states(organization_id, limits)
        states = {slot_of(state.limit): state for state in decode_states(reply, once)}
        found = [(limit, states[slot_of(limit)]) for limit in limits]
        return [LimitState(limit, state.spent, state.reserved, state.resets_at_ms) for limit, state in found]

    async def adjust(self, correction: Correction) -> None:
        """Move what is spent by a correction that the ledger has; what is not known yet is learned with it.

        Raises:
            MeterDown: Redis cannot be asked.
        """
        await self._tell(self._scripts.adjust, correction.organization_id, encode_adjust(correction))

    # --- what the process does with it

    async def create(self, organization_id: str) -> None:
        """Make a new organization known: nothing is spent and nothing held. One that is there already stays.

        Raises:
            MeterDown: Redis cannot be asked; the organization will be recovered when it is met.
        """
        await self._tell(self._scripts.create, organization_id, EMPTY)

    async def register(self, organization_id: str) -> None:
        """Store those live reservations of this worker that Redis does not have.

        Raises:
            MeterDown: Redis cannot be asked.
        """
        try:
            # What was reserved before this call is known to this worker once an answer behind it is here.
            self._reserves.flush()
            await self._link.command("EXISTS", keys_of(organization_id)[0])
        except (LinkDown, CommandRefused) as error:
            raise meter_down(f"register: {error}") from error
        mine = [live for live in self._live.values() if live.demand.organization_id == organization_id]
        for batch in batches(mine):
            described = [(live.demand, live.reservation, live.use) for live in batch]
            await self._tell(self._scripts.register, organization_id, encode_register(self._lease_ms, described))

    async def sweep(self) -> int:
        """Reap expired leases of recently active organizations; returns how many. Redis away is no failure."""
        reaped = self._outage.sweep()
        if self._link.is_up:
            self.settlements.send_waiting()
        for batch in batches(await self._activity.list_organizations(), SWEPT_TOGETHER):
            swept = await asyncio.gather(*[self._sweeps.turn(organization_id) for organization_id in batch])
            reaped += sum(count for count, _ in swept)
        return reaped

    async def reconcile(self) -> int:
        """Correct the known slots of recently active organizations by the ledger; returns how many failed."""
        failed = 0
        for organization_id in await self._activity.list_organizations():
            _, slots = await self._reviews.turn(organization_id)
            try:
                await self._learner.reconcile(organization_id, slots)
            except MeterDown:
                failed += 1
        return failed

    async def close(self) -> None:
        """Send what is settled, and close the outage path."""
        await self.settlements.drain()
        self._link.on_up.remove(self._come_back)
        await self._outage.close()

    # --- asking

    def _call(self, script: Script, organization_id: str, payload: bytes) -> "asyncio.Future[Any]":
        self.settlements.flush()
        return self._link.call(script, keys_of(organization_id), payload)

    async def _tell(self, script: Script, organization_id: str, payload: bytes) -> Reply:
        try:
            reply: Reply = await self._call(script, organization_id, payload)
        except (LinkDown, CommandRefused) as error:
            raise meter_down(f"{script.name}: {error}") from error
        return reply

    async def _ask(self, script: Script, organization_id: str, payload: bytes) -> Reply:
        """Run a script, and again once what it misses is learned; raises LinkDown, CommandRefused and MeterDown."""
        reply: Reply = await self._call(script, organization_id, payload)
        if reply[0] not in _UNLEARNED:
            return reply
        return await self._ask_again(lambda: self._call(script, organization_id, payload), organization_id, reply)

    async def _reserve_learned(self, demand: Demand, plan: Plan, reply: Reply) -> Reply:
        return await self._ask_again(lambda: self._reserves.add(demand, plan), demand.organization_id, reply)

    async def _ask_again(self, ask: "Callable[[], asyncio.Future[Reply]]", organization_id: str, reply: Reply) -> Reply:
        try:
            async with patience(self._wait_seconds):
                while True:
                    if reply[0] == Status.LEARN:
                        await self._learner.learn(organization_id, decode_slots(reply))
                    else:
                        await self._learner.recover(organization_id)
                    reply = await ask()
                    if reply[0] not in _UNLEARNED:
                        return reply
        except TimeoutError:
            raise meter_down("learning is late") from None

    async def _reserve_in_outage(self, demand: Demand, failure: Exception) -> tuple[Reservation | Refusal, bool]:
        """Decide without Redis; where that cannot be, and Redis has come back meanwhile, it is asked once more."""
        try:
            try:
                decided, is_held = await self._outage.reserve(demand), True
            except MeterDown:
                if not isinstance(failure, LinkDown) or not self._link.is_up_for(keys_of(demand.organization_id)[0]):
                    raise
                decided, is_held = await self._reserve_again(demand)
        except (MeterDown, asyncio.CancelledError):
            self._release(demand)
            raise
        if isinstance(decided, Refusal):
            self._release(demand)
        return decided, is_held

    async def _reserve_again(self, demand: Demand) -> tuple[Reservation | Refusal, bool]:
        plan = self._plans.of(demand)
        try:
            reply = await self._reserves.add(demand, plan)
            if reply[0] in _UNLEARNED:
                reply = await self._reserve_learned(demand, plan, reply)
        except (LinkDown, CommandRefused) as error:
            raise meter_down(f"reserve: {error}") from error
        return decode_reserve(reply, demand.request_id, plan.limits), reply[0] == Status.DONE

    async def _extend_in_outage(self, live: _Live, output_tokens: int) -> bool:
        live.is_in_outage = True
        return await self._outage.extend(live.demand, live.reservation, output_tokens)

    def _release(self, demand: Demand) -> None:
        """Give back what Redis holds if it executed a call whose answer nobody has."""
        self.settlements.add(demand.organization_id, demand.request_id, _RELEASED)

    async def _renew(self, organization_id: str, uses: Mapping[str, Use]) -> None:
        self._activity.note(organization_id)
        for batch in batches(list(uses)):
            payload = encode_renew(self._lease_ms, {request_id: uses[request_id] for request_id in batch})
            try:
                unknown = decode_ids(await self._call(self._scripts.renew, organization_id, payload))
                if any(request_id in self._live for request_id in unknown):
                    await self.register(organization_id)
            except _FAILURES:
                return

    # --- coming back

    async def _come_back(self) -> None:
        """Redis is there again: what was settled goes first, then every lease, then what it may have lost."""
        self.settlements.send_waiting()
        await self.renew({name: live.use or _UNUSED for name, live in self._live.items()})
        for organization_id in {live.demand.organization_id for live in self._live.values()}:
            try:
                await self.register(organization_id)
            except MeterDown:
                return  # it is away again; what is missing is registered at its next return, or renewed

    async def _sweep(self, organization_id: str, cursor: str) -> Reply:
        payload = encode_sweep(MOST_REAPED, cursor, self._find_silence_ms(organization_id))
        reply: Reply = await self._call(self._scripts.sweep, organization_id, payload)
        return reply

    def _find_silence_ms(self, organization_id: str) -> int:
        return self._silence_ms if self._may_reap(organization_id) else REAP_NOTHING
