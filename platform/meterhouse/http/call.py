"""One inference request on its way: what the steps of the path share, and its clock-driven side.

``Call`` is made once the request is admitted. ``Pacer`` looks at all calls a few times a second, so that no request
pays for timers: first-token, idle and total limits, keep-alive comments, and the watch for a client that leaves.
"""

import asyncio
import time
from dataclasses import dataclass

import msgspec
from starlette.types import Scope

from meterhouse.asked import Asked
from meterhouse.errors import GatewayError, UpstreamTimeout
from meterhouse.http.guard import ClientGone, Guard
from meterhouse.http.leaving import leaving_of
from meterhouse.http.middleware import let_go_headers
from meterhouse.http.outlet import Outlet
from meterhouse.http.passage import ClientWire
from meterhouse.http.tasks import Tasks
from meterhouse.providers.breaker import Breaker
from meterhouse.providers.provider import Deployment, Route, Timeouts
from meterhouse.request import Tally

NANOS_PER_SECOND = 1_000_000_000
USUAL_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds; providers' own timeouts come from their rows."""

    tick: float = 0.2
    head: float = 10.0
    keep_alive: float = 15.0
    tail: float = 5.0
    drain: float = 60.0
    most_drains: int = 64


class Call(msgspec.Struct, eq=False):
    """An admitted request. Times are monotonic nanoseconds."""

    wire: ClientWire
    asked: Asked
    route: Route
    tally: Tally
    outlet: Outlet
    guard: Guard
    scope: Scope
    """ASGI's, of the request."""
    deployment: Deployment | None = None
    timeouts: Timeouts = USUAL_TIMEOUTS
    event_at_ns: int = 0
    """The last data event, or the start of the attempt."""
    has_finish: bool = False
    """The provider has finished: a client that leaves cancels nothing any more."""
    tail_since_ns: int | None = None
    gone_since_ns: int | None = None
    is_ending: bool = False
    """The answer is over, its end on the way: nothing interrupts that."""
    is_watched: bool = False
    """Whether the pacer will hear when the client leaves."""
    has_let_go: bool = False
    """Whether what only the beginning of an answer needs is gone."""
    look_at_ns: int = 0
    """Nothing is due before; who brings something nearer sets it to 0."""
    occupied: Breaker | None = None
    """Of the deployment that works for this call."""

    def occupy(self, breaker: Breaker) -> None:
        """Count this call as under way at a deployment, and no more at the one before, until the pacer forgets it."""
        if self.occupied is not None:
            self.occupied.in_flight -= 1
        breaker.in_flight += 1
        self.occupied = breaker

    @property
    def is_draining(self) -> bool:
        """Whether the client is gone and the provider's answer is read on for its usage."""
        return self.gone_since_ns is not None

    @property
    def is_overdue(self) -> bool:
        """Whether the time for the whole answer is up, as the row of the running attempt has it."""
        total_ns = self.timeouts.total_seconds * NANOS_PER_SECOND
        return time.monotonic_ns() - self.tally.admitted_ns > total_ns


class Pacer:
    """Watches the clock for every call of this process."""

    def __init__(self, pace: Pace, tasks: Tasks) -> None:
        self._pace = pace
        self._tasks = tasks
        self._calls: set[Call] = set()
        self._drains = 0

    @property
    def pace(self) -> Pace:
        """The settings in force."""
        return self._pace

    @property
    def calls(self) -> frozenset[Call]:
        """The calls under way."""
        return frozenset(self._calls)

    def watch(self, call: Call) -> None:
        """Look after a call until ``forget``."""
        self._calls.add(call)

    def forget(self, call: Call) -> None:
        """Stop looking after a call, which is over: it is under way at no deployment, and not to be interrupted."""
        self._calls.discard(call)
        if call.occupied is not None:
            call.occupied.in_flight -= 1
            call.occupied = None
        call.guard.reason = None
        if call.gone_since_ns is not None:
            self._drains -= 1
        if call.is_watched and (leaving := leaving_of(call.scope)) is not None:
            leaving.forget()

    async def run(self) -> None:
        """Look at every call, over and over."""
        while True:
            await asyncio.sleep(self._pace.tick)
            self._look_at_all(time.monotonic_ns())

    def cut(self, call: Call, reason: GatewayError) -> None:
        """End a running call from outside: its key was revoked, or the server stops."""
        if not call.is_ending and not call.has_finish:
            call.guard.interrupt(reason)

    def _look_at_all(self, now_ns: int) -> None:
        for call in tuple(self._calls):
            # Of thousands of streams few have anything due: the others cost a comparison.
            if call.look_at_ns <= now_ns:
                self._look_at(call, now_ns)

    def _look_at(self, call: Call, now_ns: int) -> None:
        if now_ns - call.tally.admitted_ns > self._pace.tick * NANOS_PER_SECOND:
            # An answer that is over by the next look has no need of it.
            self._settle_down(call)
        if call.is_ending:
            # A disk that takes its time must not keep text from its reader.
            call.outlet.pay()
            return
        call.look_at_ns = self._next_look_ns(call, now_ns)
        reason = self._overdue(call, now_ns)
        if reason is not None:
            call.guard.interrupt(reason)
        elif call.tally.is_streamed and not call.outlet.is_gone:
            self._keep_alive(call, now_ns)

    def _settle_down(self, call: Call) -> None:
        """Be told when the client leaves, and, once the answer has begun, drop what only its beginning needed."""
        leaving = leaving_of(call.scope)
        if not call.is_watched:
            call.is_watched = True
            if leaving is not None:
                leaving.watch(self, call)
        if call.outlet.is_started and not call.has_let_go:
            call.has_let_go = True
            let_go_headers(call.scope)
            call.asked.pack()
            if leaving is not None:
                leaving.settle_down()

    def _next_look_ns(self, call: Call, now_ns: int) -> int:
        """Return when something can be due at the earliest, whatever happens meanwhile to the answer."""
        pace, timeouts, outlet = self._pace, call.timeouts, call.outlet
        attempts = call.tally.attempts
        has_begun = call.has_let_go and attempts and attempts[-1].first_event_ns is not None
        if not has_begun or outlet.sending_since_ns is not None:
            return now_ns
        waits = [
            (outlet.wrote_at_ns, pace.keep_alive),
            (call.event_at_ns, timeouts.idle_seconds),
            (call.tally.admitted_ns, timeouts.total_seconds),
        ]
        if call.gone_since_ns is not None:
            waits.append((call.gone_since_ns, pace.drain))
        if call.tail_since_ns is not None:
            waits.append((call.tail_since_ns, pace.tail))
        return min(since_ns + int(seconds * NANOS_PER_SECOND) for since_ns, seconds in waits)

    def _overdue(self, call: Call, now_ns: int) -> Exception | None:
        """Return the reason to interrupt a call whose time is up."""
        if call.tail_since_ns is not None:
            return TimeoutError() if now_ns - call.tail_since_ns > self._pace.tail * NANOS_PER_SECOND else None
        if call.has_finish:
            return None
        if call.gone_since_ns is not None and now_ns - call.gone_since_ns > self._pace.drain * NANOS_PER_SECOND:
            return ClientGone("drained for as long as allowed")
        if not call.tally.attempts:
            return None
        timeouts = call.timeouts
        if call.is_overdue:
            return UpstreamTimeout("The answer took too long and was ended.", detail="total timeout")
        quiet_ns = now_ns - call.event_at_ns
        if call.tally.attempt.first_event_ns is not None:
            # While the client is slow to read, nobody reads from the provider.
            if call.outlet.sending_since_ns is None and quiet_ns > timeouts.idle_seconds * NANOS_PER_SECOND:
                return UpstreamTimeout("The provider stopped sending.", detail="idle timeout")
        elif call.tally.is_streamed and quiet_ns > timeouts.first_token_seconds * NANOS_PER_SECOND:
            return UpstreamTimeout("The provider did not begin to answer in time.", detail="first-token timeout")
        return None

    def _keep_alive(self, call: Call, now_ns: int) -> None:
        """Send the head early where the provider is slow, and a comment where it is quiet."""
        outlet = call.outlet
        since_ns = outlet.wrote_at_ns if outlet.is_started else call.tally.started_ns
        patience = self._pace.keep_alive if outlet.is_started else self._pace.head
        if outlet.sending_since_ns is None and now_ns - since_ns > patience * NANOS_PER_SECOND:
            self._tasks.start(outlet.keep_alive())

    def leave(self, call: Call, /) -> None:
        """Act on a client that left: nothing at the end, else read on or hang up, as the provider's row says."""
        call.outlet.is_gone = True
        call.look_at_ns = 0
        if call.is_ending or call.has_finish or call.is_draining:
            return
        drains = call.deployment is not None and call.deployment.provider.on_client_gone == "drain"
        if drains and self._drains < self._pace.most_drains:
            self._drains += 1
            call.gone_since_ns = time.monotonic_ns()
        else:
            call.guard.interrupt(ClientGone("the client left"))
