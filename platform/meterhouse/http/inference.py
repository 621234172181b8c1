"""The inference path of every wire: from the key to the released end of the answer.

It reads top to bottom in ``__call__``: verify, read, resolve, reserve, answer, settle, barrier, release. Nothing after
``reserve`` can skip ``settle``: it is synchronous, in one ``finally``, in one place. The end of an answer leaves only
when its record is durable. What differs from wire to wire is behind ``ClientWire`` and ``Passage``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from msgspec import structs
from starlette.types import Receive, Scope, Send

from meterhouse.asked import Asked
from meterhouse.errors import (
    GatewayError,
    JournalDown,
    Malformed,
    NotPermitted,
    StreamCut,
    UpstreamError,
    UpstreamRefused,
)
from meterhouse.http import intake
from meterhouse.http.attempts import Attempts
from meterhouse.http.call import Call, Pacer
from meterhouse.http.client_origin import check_origin
from meterhouse.http.exchange import Exchange, exchange_of
from meterhouse.http.guard import ClientGone, Guard
from meterhouse.http.middleware import credential_of, header
from meterhouse.http.naming import LimitNames
from meterhouse.http.outlet import Outlet
from meterhouse.http.passage import ClientWire, OpenAnswer, RelayParts, Whole
from meterhouse.http.relay import StreamRelay
from meterhouse.http.respond import Headers, rate_limit_headers, refused
from meterhouse.http.shedding import Slot, Slots
from meterhouse.http.skeleton import Skeleton
from meterhouse.http.tasks import Tasks
from meterhouse.http.tokens import TokenCounter
from meterhouse.http.tool_text import with_rendered_tools
from meterhouse.identity import Principal
from meterhouse.keys.keyring import Keyring
from meterhouse.ledger.checkpointer import Checkpointer
from meterhouse.ledger.journal import Journal
from meterhouse.ledger.settler import Settler
from meterhouse.ledger.shipper import Shipper
from meterhouse.limits.demand import build_demand
from meterhouse.metering import Clock, Demand, Meter, Refusal, Reservation
from meterhouse.money import PossiblePrices
from meterhouse.providers.provider import Deployment, Route
from meterhouse.providers.routes import Routes
from meterhouse.request import InputSize, Tally
from meterhouse.telemetry.metrics import Metrics
from meterhouse.usage import Outcome

ReadLong = Callable[[Skeleton], Asked | None]
ReadHeaders = Callable[[Scope], Mapping[str, str]]
_DEGRADED = {(True, False): b"meter", (False, True): b"ledger", (True, True): b"meter, ledger"}
"""What an answer was made without, for ``x-meterhouse-degraded``: by whether the meter, and the ledger, was away."""
KEPT_PROMPT_BYTES = 65_536
"""A longer prompt is let go once the answer has begun; if it must be counted, its estimate is charged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceParts:
    """What the inference path is made of."""

    keyring: Keyring
    routes: Routes
    meter: Meter
    attempts: Attempts
    settler: Settler
    journal: Journal
    checkpointer: Checkpointer
    counter: TokenCounter
    pacer: Pacer
    tasks: Tasks
    metrics: Metrics
    clock: Clock
    slots: Slots
    shipper: Shipper
    """Says whether the ledger's database is away, or late; records wait in the journal then."""
    default_model: str | None = None
    """Who answers a simple endpoint when no model is named; None: the first listed one that the key may use."""


class InferenceEndpoint:
    """The endpoint of one wire."""

    def __init__(
        self,
        parts: InferenceParts,
        wire: ClientWire,
        read_long: ReadLong | None = None,
        read_headers: ReadHeaders | None = None,
    ) -> None:
        """Take the parts.

        Args:
            parts: see there.
            wire: of its clients.
            read_long: reads a long body of the wire by its skeleton, where it can.
            read_headers: returns those headers of a request that go upstream with its body; None: there are none.
                Raises Malformed where one says what the wire does not know.
        """
        self._parts = parts
        self._read_long = read_long
        self._read_headers = read_headers
        self._relay_parts = RelayParts(parts.meter, parts.checkpointer, parts.tasks, parts.metrics)
        self._limit_names = LimitNames(parts.routes)
        self._wire = wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        parts = self._parts
        exchange = exchange_of(scope)
        exchange.route = self._wire.path
        with Slot(parts.slots) as slot:
            call, headers = await self._admit(scope, receive, send, exchange, slot)
            # From here on a settlement is owed.
            tally, outlet = call.tally, call.outlet
            parts.checkpointer.watch(tally)
            parts.pacer.watch(call)
            try:
                try:
                    # From the first deployment that gives one.
                    opened = await parts.attempts.open(call)
                    answer: StreamRelay | Whole
                    if isinstance(opened, OpenAnswer):
                        answer = opened.passage.open_relay(call, opened, self._relay_parts)
                        call.asked.let_go(KEPT_PROMPT_BYTES)
                        await answer.run()
                    elif len(opened.body) <= intake.INLINE_BYTES:
                        answer = opened.passage.read_whole(call, opened, self._relay_parts)
                    else:
                        answer = await asyncio.to_thread(opened.passage.read_whole, call, opened, self._relay_parts)
                    call.is_ending = True
                    if tally.attempts[-1].reported is None:
                        await parts.counter.fill(tally, call.asked)
                except (GatewayError, ClientGone) as error:
                    await self._fail(call, error)
                    raise
                finally:
                    parts.checkpointer.forget(tally)
                    position = parts.settler.settle(tally)
                try:
                    await parts.journal.barrier(position)
                except JournalDown as error:
                    # The provider was paid for this answer: an SDK's retry would pay it again.
                    error.should_retry = False
                    raise
                parts.meter.send_settled()  # whoever is answered may ask another worker
                if (release := _release(answer, call, headers)) is not None:
                    await release
                    if outlet.is_gone and not exchange.status:
                        raise ClientGone
            except GatewayError as error:
                parts.meter.send_settled()
                exchange.error = error
                if not outlet.is_started and (outlet.is_gone or not outlet.unsent):
                    raise
                await outlet.fail(error)
            finally:
                parts.pacer.forget(call)

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, slot: Slot
    ) -> tuple[Call, Headers]:
        """Verify, read, resolve, reserve; returns the call, and the headers that its answer begins with.

        Raises:
            GatewayError: It is refused, and holds nothing.
            ClientGone: The client left while it sent.
        """
        parts, wire = self._parts, self._wire
        credential = credential_of(scope)
        # One moment decides of the key and of the route, unless something was waited for in between.
        now_ms = parts.clock.now_ms()
        principal = parts.keyring.recall(credential, exchange.address, now_ms)
        if principal is None:
            principal = await parts.keyring.verify(credential, exchange.address)
            now_ms = parts.clock.now_ms()
        exchange.principal = principal
        if principal.origins is not None:
            check_origin(principal, header(scope, b"origin"))
        slot.assign(principal.organization_id)
        # Only what a form is written in depends on its type.
        content_type = "" if wire.most_values else header(scope, b"content-type") or ""
        default_model = partial(_default_model, parts, principal)
        body = intake.take_short_body(exchange.cycle, receive, wire.most_values)
        if body is not None:
            asked = wire.read(body, content_type, default_model)
        else:
            read = partial(wire.read, content_type=content_type, default_model=default_model)
            asked = await intake.take_body(scope, receive, read, wire.most_values, self._read_long)
            now_ms = parts.clock.now_ms()
        if self._read_headers is not None:
            asked.headers = self._read_headers(scope)
        exchange.model = asked.model
        # One snapshot for the whole request: it is charged by a price that it was held by.
        snapshot = parts.routes.snapshot
        route = snapshot.resolve(asked.model, now_ms)
        if not principal.may_use_all:
            permit(principal, asked.model, route)
        if wire.passage is None or not route.writes:
            route = self._serving(asked, route)
        size = with_rendered_tools(asked, route) if route.renders_tools else asked.size
        demand = self._demand(exchange, asked, size, route, snapshot.pricing.around(route, now_ms))
        asked_ns = time.monotonic_ns()
        tally = self._hold(exchange, demand, size, await parts.meter.reserve(demand), asked_ns)
        reservation = tally.reservation
        # What it costs was decided by the meter's clock, not by ours.
        if not route.from_ms <= reservation.admitted_at_ms < route.until_ms:
            route = snapshot.pricing.reprice(route, reservation.admitted_at_ms)
        # The times in the states are the meter's, and so is the moment at which it gave them.
        headers = rate_limit_headers(reservation.states, reservation.admitted_at_ms)
        allowance = reservation.allowance_tokens
        if allowance is not None and (asked.output_tokens is None or allowance < demand.output_tokens):
            headers.append((b"x-meterhouse-max-tokens", str(allowance).encode()))
        is_ledger_late = parts.shipper.is_late
        if is_ledger_late or reservation.is_degraded:
            headers.append((b"x-meterhouse-degraded", _DEGRADED[reservation.is_degraded, is_ledger_late]))
        reservation.states = ()  # the headers say it, and nobody else asks
        outlet = Outlet(exchange, send, headers, wire.envelope.event)
        cycle = exchange.cycle
        # Asked for, the running task costs a system call.
        guard = Guard(asyncio.current_task() if cycle is None else cycle.task)
        return Call(wire, asked, route, tally, outlet, guard, scope), headers

    def _demand(
        self, exchange: Exchange, asked: Asked, size: InputSize, route: Route, prices: PossiblePrices
    ) -> Demand:
        """Return what a request may use, of the size that it is or grows to; raises NotPriced."""
        principal = exchange.principal
        assert principal is not None
        demand = build_demand(exchange.request_id, principal, asked, size, prices, route.bounds)
        if principal.has_model_limit:
            demand = structs.replace(demand, limits=self._limit_names.translate(principal.limits))
        return demand

    def _hold(
        self, exchange: Exchange, demand: Demand, size: InputSize, reserved: Reservation | Refusal, asked_ns: int
    ) -> Tally:
        """Return the tally of a request that the meter has admitted, which owes a settlement.

        Raises:
            LimitError: The meter has refused it.
        """
        parts, principal = self._parts, exchange.principal
        assert principal is not None
        if isinstance(reserved, Refusal):
            parts.metrics.observe_refusal(reserved)
            raise refused(reserved, exchange.model, parts.clock.now_ms())
        exchange.tally = tally = Tally(
            exchange.request_id,
            principal,
            demand.model,
            self._wire.operation,
            demand.is_streamed,
            reserved,
            input_tokens_estimate=demand.rate_input_tokens,
            held_input_tokens=demand.held_input_tokens,
            is_input_countable=not (size.images or size.unbounded_parts),
            trace_id=exchange.trace.trace_id,
            is_traced=exchange.trace.is_sampled,
            started_ns=exchange.started_ns,
            asked_ns=asked_ns,
            admitted_ns=time.monotonic_ns(),
        )
        return tally

    def _serving(self, asked: Asked, route: Route) -> Route:
        """Return the deployments that can be asked this at all; what is held is by those.

        Raises:
            Malformed: There is none.
        """
        wire = self._wire
        usable: tuple[Deployment, ...] = ()
        for row in route.deployments:
            # A model of embeddings writes nothing, and is no model of a chat.
            writes = row.model.max_output_tokens or asked.output_tokens == 0
            if writes and wire.find_passage(asked, row.provider) is not None:
                usable += (row,)
        if len(usable) == len(route.deployments):
            return route
        if usable:
            return Route(route.model, usable)
        raise asked.chat_refusal or Malformed(
            f"The model '{asked.model}' cannot be used at {wire.path}: its provider has nothing of the kind.",
            param="model",
            code="unsupported_endpoint",
        )

    async def _fail(self, call: Call, error: Exception) -> None:
        """Note how an answer failed, and count what came of it."""
        call.is_ending = True
        _note_failure(call.tally, error)
        await self._parts.counter.fill(call.tally, call.asked)


def _default_model(parts: InferenceParts, principal: Principal) -> str:
    """Return who answers when no model is named: the operator's choice, or the first listed one that the key may use.

    Raises:
        Malformed: There is none.
    """
    if parts.default_model is not None:
        return parts.default_model
    for listed in parts.routes.list_models():
        if principal.may_use(listed.name):
            return listed.name
    raise Malformed("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")


def permit(principal: Principal, model: str, route: Route) -> None:
    """Refuse what the key may not do.

    Raises:
        NotPermitted: Its own models or its project's lack this one.
    """
    if not principal.may_use(model, route.model):
        raise NotPermitted(
            f"This key may not use the model '{model}'. GET /v1/models lists what it may use.",
            param="model",
            code="model_not_allowed",
        )


def _release(answer: StreamRelay | Whole, call: Call, headers: Headers) -> Awaitable[None] | None:
    """Send a whole answer, or the end of a streamed one, whose record is durable.

    Returns what is left to be awaited, so that most answers need no coroutine for it; None: nothing.
    """
    usage, outlet = call.tally.records[-1].usage, call.outlet
    if isinstance(answer, StreamRelay):
        return outlet.end(answer.end(usage))
    body, content_type = answer.body(usage), answer.content_type
    if outlet.answer_at_once(headers, body, content_type):
        return None
    return outlet.write_whole(headers, body, content_type)


def _note_failure(tally: Tally, error: Exception) -> None:
    """Write down how the running attempt ended, unless it was written down where it failed."""
    if not tally.attempts or tally.attempt.outcome not in {None, Outcome.COMPLETED}:
        return
    attempt = tally.attempt  # of a whole answer what it used is noted before all of it is read
    attempt.ended_ns = attempt.ended_ns or time.monotonic_ns()
    if isinstance(error, ClientGone):
        attempt.outcome = Outcome.CLIENT_GONE
        return
    if isinstance(error, UpstreamRefused):
        attempt.outcome = Outcome.REFUSED
    elif isinstance(error, UpstreamError):
        attempt.outcome = Outcome.UPSTREAM_FAILED
        if not tally.is_streamed:
            attempt.first_event_ns = None  # nobody was told anything of a whole answer that is none
    elif isinstance(error, StreamCut):
        attempt.outcome = Outcome.CUT
    else:
        attempt.outcome = Outcome.NOT_SENT
    attempt.error = error if isinstance(error, GatewayError) else None
