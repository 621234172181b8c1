"""``POST /v1/chat/completions``, and the simple chat endpoints: from the key to the released end of the answer.

It reads top to bottom in ``_serve``: verify, parse, resolve, reserve, answer, settle, barrier, release. Nothing after
``reserve`` can skip ``settle``: it is synchronous, in one ``finally``, in one place. The end of an answer leaves only
when its record is durable. A simple endpoint differs at the two ends only: how a body is read, how the outlet writes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from starlette.types import Receive, Scope, Send

from meterhouse.errors import (
    GatewayError,
    JournalDown,
    Malformed,
    NotPermitted,
    StreamCut,
    UpstreamError,
    UpstreamRefused,
)
from meterhouse.http.attempts import Attempts
from meterhouse.http.body import ParsedBody, parse_chat
from meterhouse.http.call import Call, Pacer
from meterhouse.http.exchange import Exchange, exchange_of
from meterhouse.http.guard import ClientGone, Guard
from meterhouse.http.intake import take_body
from meterhouse.http.middleware import header
from meterhouse.http.naming import LimitNames
from meterhouse.http.outlet import Outlet
from meterhouse.http.relay import StreamRelay
from meterhouse.http.respond import Headers, rate_limit_headers, refused
from meterhouse.http.rewriting import RewritingRelay, find_rewriting, rewrite_whole
from meterhouse.http.shedding import Slot, Slots
from meterhouse.http.tasks import Tasks
from meterhouse.http.tokens import TokenCounter
from meterhouse.http.tool_text import with_rendered_tools
from meterhouse.http.whole import WholeAnswer
from meterhouse.identity import Principal
from meterhouse.keys.keyring import Keyring
from meterhouse.ledger.checkpointer import Checkpointer
from meterhouse.ledger.journal import Journal
from meterhouse.ledger.settler import Settler, charged_usage
from meterhouse.limits.demand import ModelBounds, build_demand
from meterhouse.metering import Clock, Demand, Meter, Refusal, Reservation
from meterhouse.providers.provider import Route
from meterhouse.providers.routes import Routes
from meterhouse.request import InputSize, Tally, measure
from meterhouse.telemetry.metrics import Metrics
from meterhouse.translate.simple_chat import SimpleChat
from meterhouse.usage import Outcome

CHAT_COMPLETIONS = "/v1/chat/completions"
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
    degraded: Callable[[Reservation], bytes]
    """Names what a request was served without, for the header ``x-meterhouse-degraded``; empty when all is well."""
    default_model: str | None = None
    """Who answers a simple endpoint when no model is named; None: the first listed one that the key may use."""


class ChatCompletions:
    """The endpoint; with a simple chat wire, that one's."""

    def __init__(self, parts: InferenceParts, simple: SimpleChat | None = None) -> None:
        self._parts = parts
        self._limit_names = LimitNames(parts.routes)
        self._simple = simple
        self._path = simple.path if simple is not None else CHAT_COMPLETIONS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = exchange_of(scope)
        exchange.route = self._path
        with self._parts.slots.take() as slot:
            await self._serve(exchange, slot, (scope, receive, send))

    async def _serve(self, exchange: Exchange, slot: Slot, connection: tuple[Scope, Receive, Send]) -> None:
        parts = self._parts
        scope, receive, send = connection
        principal = await parts.keyring.verify(header(scope, b"authorization"), exchange.address)
        exchange.principal = principal
        slot.assign(principal.organization_id)
        parsed = await take_body(receive, partial(self._parse, principal=principal))
        exchange.model = parsed.request.model
        route = parts.routes.resolve(parsed.request.model, parts.clock.now_ms())
        _permit(principal, parsed.request.model, route)
        size = with_rendered_tools(measure(parsed.request, parsed.fields), parsed, route)
        demand = _demand(exchange, principal, parsed, size, route)
        limits = self._limit_names.translate(principal.limits)
        if limits is not principal.limits:
            demand = replace(demand, limits=limits)
        asked_ns = time.monotonic_ns()
        reservation = await parts.meter.reserve(demand)
        if isinstance(reservation, Refusal):
            parts.metrics.observe_refusal(reservation)
            raise refused(reservation, parsed.request.model, parts.clock.now_ms())
        # From here on a settlement is owed.
        tally = _tally(exchange, demand, size, reservation, asked_ns)
        exchange.tally = tally
        headers = _headers(parsed, demand, reservation, parts.clock.now_ms())
        if degraded := parts.degraded(reservation):
            headers.append((b"x-meterhouse-degraded", degraded))
        call = Call(parsed, route, tally, Outlet(send, lambda: headers, self._simple), Guard(), receive)
        parts.checkpointer.watch(tally)
        parts.pacer.watch(call)
        try:
            await self._answer_and_settle(call, exchange, headers)
        except GatewayError as error:
            exchange.error = error
            if not call.outlet.is_started and not call.outlet.unsent:
                raise
            await call.outlet.fail(error)
        finally:
            call.occupy(None)
            parts.pacer.forget(call)

    def _parse(self, body: bytes, principal: Principal) -> ParsedBody:
        """Check the body; one of a simple wire becomes OpenAI's first."""
        if self._simple is None:
            return parse_chat(body)
        asked = self._simple.read(body, lambda: _default_model(self._parts, principal))
        parsed = parse_chat(asked.body)
        parsed.defaulted = asked.defaulted
        return parsed

    async def _answer_and_settle(self, call: Call, exchange: Exchange, headers: Headers) -> None:
        parts, tally = self._parts, call.tally
        try:
            answer = await self._answer(call)
            call.is_ending = True
            await parts.counter.fill(tally, call.parsed.request.messages)
        except (GatewayError, ClientGone) as error:
            call.is_ending = True
            _note_failure(tally, error)
            await parts.counter.fill(tally, call.parsed.request.messages)
            raise
        finally:
            parts.checkpointer.forget(tally)
            position = parts.settler.settle(tally)
        usage, _ = charged_usage(tally, tally.attempt)
        try:
            await parts.journal.barrier(position)
        except JournalDown as error:
            # The provider was paid for this answer: an SDK's retry would pay it again.
            error.should_retry = False
            raise
        if isinstance(answer, StreamRelay):
            await call.outlet.write(answer.end(usage), is_last=True)
        else:
            await call.outlet.write_whole(headers, answer.body(usage))
        if call.outlet.is_gone and not exchange.status:
            raise ClientGone

    async def _answer(self, call: Call) -> StreamRelay | WholeAnswer:
        """Get the answer up to its end from the first deployment that gives one."""
        parts, tally = self._parts, call.tally
        if not tally.is_streamed:
            return _read_whole(call, await parts.attempts.fetch_whole(call), parts.metrics)
        opened = await parts.attempts.open_stream(call)
        rewriting = find_rewriting(call)
        if rewriting is None:
            relay = StreamRelay(call, opened, parts.meter, parts.checkpointer, parts.tasks)
        else:
            changing = RewritingRelay(call, opened, parts.meter, parts.checkpointer, parts.tasks)
            relay = changing.rewrite(rewriting, parts.metrics)
        call.parsed.let_go(KEPT_PROMPT_BYTES)
        await relay.run()
        return relay


def _default_model(parts: InferenceParts, principal: Principal) -> str:
    """Return who answers when no model is named: the operator's choice, or the first listed one that the key may use.

    Raises:
        Malformed: There is none.
    """
    if parts.default_model is not None:
        return parts.default_model
    for listed in parts.routes.list_models():
        if principal.models is None or listed.name in principal.models:
            return listed.name
    raise Malformed("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")


def _read_whole(call: Call, body: bytes, metrics: Metrics) -> WholeAnswer:
    answer = WholeAnswer(call, body)
    answer.rewrite(lambda whole: rewrite_whole(call, whole, metrics))
    return answer


def _permit(principal: Principal, model: str, route: Route) -> None:
    """Refuse what the key may not do.

    Raises:
        NotPermitted: Its list of models lacks this one.
    """
    if principal.models is not None and principal.models.isdisjoint({model, route.model}):
        raise NotPermitted(
            f"This key may not use the model '{model}'. GET /v1/models lists what it may use.",
            param="model",
            code="model_not_allowed",
        )


def _demand(exchange: Exchange, principal: Principal, parsed: ParsedBody, size: InputSize, route: Route) -> Demand:
    """Build the demand over every deployment that may serve, so that a failover never exceeds its hold."""
    models = [deployment.model for deployment in route.deployments]
    defaults = [deployment.provider.default_max_tokens for deployment in route.deployments]
    image_bounds = [model.image_tokens_bound for model in models]
    bounds = ModelBounds(
        max_output_tokens=max(
            default or model.max_output_tokens for default, model in zip(defaults, models, strict=True)
        ),
        image_tokens=None if None in image_bounds else max(bound or 0 for bound in image_bounds),
        thinks_hidden=any(model.thinks_hidden for model in models),
        model=route.model,
    )
    prices = tuple(deployment.price for deployment in route.deployments)
    return build_demand(exchange.request_id, principal, parsed.request, size, prices, bounds)


def _tally(exchange: Exchange, demand: Demand, size: InputSize, reservation: Reservation, asked_ns: int) -> Tally:
    assert exchange.principal is not None
    return Tally(
        request_id=exchange.request_id,
        principal=exchange.principal,
        model=demand.model,
        operation="chat",
        is_streamed=demand.is_streamed,
        reservation=reservation,
        input_tokens_estimate=demand.rate_input_tokens,
        held_input_tokens=demand.held_input_tokens,
        is_input_countable=not (size.images or size.unbounded_parts),
        trace_id=exchange.trace.trace_id,
        started_ns=exchange.started_ns,
        asked_ns=asked_ns,
        admitted_ns=time.monotonic_ns(),
    )


def _headers(parsed: ParsedBody, demand: Demand, reservation: Reservation, now_ms: int) -> Headers:
    headers = rate_limit_headers(reservation.states, now_ms)
    allowance = reservation.allowance_tokens
    if allowance is not None and (parsed.request.asked_output_tokens is None or allowance < demand.output_tokens):
        headers.append((b"x-meterhouse-max-tokens", str(allowance).encode()))
    return headers


def _note_failure(tally: Tally, error: Exception) -> None:
    """Write down how the running attempt ended, unless it was written down where it failed."""
    if not tally.attempts or tally.attempt.outcome is not None:
        return
    attempt = tally.attempt
    attempt.ended_ns = attempt.ended_ns or time.monotonic_ns()
    if isinstance(error, ClientGone):
        attempt.outcome = Outcome.CLIENT_GONE
        return
    if isinstance(error, UpstreamRefused):
        attempt.outcome = Outcome.REFUSED
    elif isinstance(error, UpstreamError):
        attempt.outcome = Outcome.UPSTREAM_FAILED
    elif isinstance(error, StreamCut):
        attempt.outcome = Outcome.CUT
    else:
        attempt.outcome = Outcome.NOT_SENT
    attempt.error = error if isinstance(error, GatewayError) else None
