"""One HTTP request as the edge sees it, and what is said about it when it is over.

``Exchange`` travels in the ASGI scope. ``Observer`` turns it into the one log line, the metrics and the spans; no
prompt, no answer and no secret can get there, because none is in it.
"""

import time
from collections.abc import Iterable
from typing import Self

import msgspec
from starlette.types import Scope, Send

from meterhouse.errors import GatewayError
from meterhouse.http.cycle import Cycle
from meterhouse.http.refusals import Refusals
from meterhouse.http.respond import Headers
from meterhouse.identity import Principal
from meterhouse.request import Attempt, Tally
from meterhouse.telemetry.live import Live
from meterhouse.telemetry.logs import CallLater, RequestLog
from meterhouse.telemetry.metrics import Metrics
from meterhouse.telemetry.traces import AttemptSpan, Interval, RequestSpans, TraceContext, Tracing
from meterhouse.usage import Outcome, UsageRecord

SCOPE_NAME = "meterhouse.exchange"
UNKNOWN_ROUTE = "other"
OPENAI_VERSION = (b"openai-version", b"2020-10-01")
CLIENT_CLOSED_STATUS = 499
"""nginx's status for a client that left before it was answered; only in logs and metrics."""


class Exchange(msgspec.Struct):
    """What is known of an HTTP request at its edge. ``started_ns`` is monotonic, ``began_ns`` wall time."""

    request_id: str
    public_id: str
    """As clients see it."""
    trace: TraceContext
    method: str
    address: str | None
    started_ns: int
    began_ns: int
    ended_ns: int = 0
    """When its answer had left; monotonic."""
    route: str = UNKNOWN_ROUTE
    status: int = 0
    principal: Principal | None = None
    tally: Tally | None = None
    error: GatewayError | None = None
    model: str = ""
    other_id_header: bytes | None = None
    """Carries the request's id beside ``x-request-id``."""
    cycle: Cycle | None = None
    """What answers it past the layers; None for another server."""
    reply: Send | None = None
    """The edge's own ``send``, where nobody but the server is behind it: whoever is given it, and calls
    ``begin_answer``, may have ``cycle`` write the answer."""
    is_open_stream: bool = False
    """Whether the answer is a stream that has begun and not ended; who has ``cycle`` write it says so here."""

    @property
    def records(self) -> tuple[UsageRecord, ...]:
        """The ledger records of the request; empty where nothing was admitted."""
        return self.tally.records if self.tally is not None else ()

    def begin_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Note the status of the answer; returns its headers with those that every answer has."""
        self.status = status
        elapsed_ms = (time.monotonic_ns() - self.started_ns) // 1_000_000
        request_id = self.public_id.encode()
        head = [
            *headers,
            (b"x-request-id", request_id),
            (b"openai-processing-ms", b"%d" % elapsed_ms),
            OPENAI_VERSION,
        ]
        if self.other_id_header is not None:
            head.append((self.other_id_header, request_id))
        if self.principal is not None:
            head.append((b"openai-organization", self.principal.organization_id.encode()))
        return head

    def let_go(self) -> None:
        """Forget the way back to the client, and by which way its errors came, once nobody will ask.

        The frames that an error came through know the request, and the request its errors: what is not taken apart here
        waits for the garbage collector, which in a storm would stop everybody again and again.
        """
        self.cycle = self.reply = None
        if self.error is not None:
            _forget_way(self.error)
        if self.tally is not None:
            for attempt in self.tally.attempts:
                if attempt.error is not None:
                    _forget_way(attempt.error)


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request."""
    exchange: Exchange = scope[SCOPE_NAME]
    return exchange


def _forget_way(error: BaseException | None) -> None:
    while error is not None:
        before = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = before


class Observer:
    """Says once how a request went that has ended; a watcher hears of those that named a model.

    What went well waits a moment and is told of several requests in a row: for one request alone, between all that is
    done for others, the same costs half as much again. A crash may lose what waits, as it may lose what waits in
    the log.
    """

    MOST_WAITING = 32
    """Requests; one more, and all of them are told of."""
    WAIT_SECONDS = 0.02
    """How long the first of them waits."""

    def __init__(
        self,
        told: tuple[RequestLog, Metrics, Tracing],
        live: Live,
        refusals: Refusals,
        call_later: CallLater,
    ) -> None:
        """Take who is told; the metrics tell nobody anything before they have heard of what waits."""
        request_log, metrics, tracing = told
        metrics.before_reading(self.flush)
        self._waiting: list[Exchange] = []
        self._most_waiting = self.MOST_WAITING
        self._is_scheduled = False
        self._call_later = call_later
        self._request_log = request_log
        self._metrics = metrics
        self._tracing = tracing
        self._live = live
        self._refusals = refusals

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A request that is broken off now may end later than any timer rings.
        self._most_waiting = 0
        self.flush()

    def finish(self, exchange: Exchange) -> None:
        """Take a request that has ended."""
        exchange.ended_ns = time.monotonic_ns()
        waiting = self._waiting
        waiting.append(exchange)
        if exchange.error is not None or len(waiting) >= self._most_waiting:
            self.flush()
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._call_later(self.WAIT_SECONDS, self._flush_in_time)

    def flush(self) -> None:
        """Say of all that wait how they went, in the order in which they ended."""
        waiting, self._waiting = iter(self._waiting), []
        try:
            for exchange in waiting:
                self._tell(exchange)
        finally:
            # One that cannot be told of takes nothing from those after it.
            self._waiting[:0] = waiting
            if self._waiting:
                self.flush()

    def _flush_in_time(self) -> None:
        self._is_scheduled = False
        self.flush()

    def _tell(self, exchange: Exchange) -> None:
        """Write the log line, count the metrics, make the spans if the request is sampled, failed or slow."""
        duration_ns = exchange.ended_ns - exchange.started_ns
        duration_ms = duration_ns // 1_000_000
        error, tally = exchange.error, exchange.tally
        records = () if tally is None else tally.records
        self._metrics.observe_request(
            route=exchange.route,
            status=exchange.status,
            owner=error.owner if error else "",
            code=(error.code or "") if error else "",
            duration_ms=duration_ms,
            records=records,
        )
        if tally is not None:
            self._metrics.timings.observe(tally, duration_ns)
        elif error is not None and exchange.method == "POST" and exchange.principal is not None:
            self._refusals.note(exchange.principal, exchange.model, error)
        fields = _log_fields(exchange, records, duration_ms)
        # Of a request that went well only the model's name is in the client's words.
        others_words = exchange.model if error is None and records else None
        self._request_log.write(fields, exchange.began_ns + duration_ns, others_words)
        if self._live.is_on and exchange.model and exchange.principal is not None:
            self._live.note_finished(exchange.principal.root_key_id, fields)
        is_failed = exchange.status >= 500 or (error is not None and _has_failed_attempt(records))  # noqa: PLR2004 - server errors
        if self._tracing.wants(exchange.trace, is_failed=is_failed, duration_ns=duration_ns):
            self._tracing.finish(exchange.trace, _spans(exchange))


def _has_failed_attempt(records: tuple[UsageRecord, ...]) -> bool:
    return any(record.outcome is Outcome.UPSTREAM_FAILED for record in records)


def _log_fields(exchange: Exchange, records: tuple[UsageRecord, ...], duration_ms: int) -> dict[str, object]:
    fields: dict[str, object] = {
        "request_id": exchange.public_id,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "duration_ms": duration_ms,
    }
    if exchange.trace.is_sampled:
        fields["trace_id"] = exchange.trace.trace_id
    principal = exchange.principal
    if principal is not None:
        fields["organization_id"] = principal.organization_id
        fields["project_id"] = principal.project_id
        fields["key_id"] = principal.key_id
    if exchange.model:
        fields["model"] = exchange.model
    if records:
        last = records[-1]
        fields["provider"] = last.provider
        fields["attempts"] = last.attempt
        fields["outcome"] = last.outcome
        fields["exactness"] = last.exactness
        input_tokens = output_tokens = charge_nanos = 0
        for record in records:
            input_tokens += record.usage.input_tokens
            output_tokens += record.usage.output_tokens
            charge_nanos += record.charge_nanos
        fields["input_tokens"] = input_tokens
        fields["output_tokens"] = output_tokens
        fields["charge_nanos"] = charge_nanos
        fields["time_to_first_token_ms"] = last.time_to_first_token_ms
    if exchange.error is not None:
        fields["error_code"] = exchange.error.code
        fields["error_owner"] = exchange.error.owner
        if exchange.error.detail:
            fields["error_detail"] = exchange.error.detail
    return fields


def _spans(exchange: Exchange) -> RequestSpans:
    offset_ns = exchange.began_ns - exchange.started_ns
    end_ns = exchange.ended_ns
    tally = exchange.tally
    principal = exchange.principal
    reserve = settle = None
    attempts: tuple[AttemptSpan, ...] = ()
    if tally is not None:
        reserve = Interval(start_ns=tally.asked_ns + offset_ns, end_ns=tally.admitted_ns + offset_ns)
        if tally.settled_ns is not None:
            settle = Interval(start_ns=tally.settled_ns + offset_ns, end_ns=end_ns + offset_ns)
        attempts = tuple(
            _attempt_span(tally, attempt, record, offset_ns, end_ns)
            for attempt, record in zip(tally.attempts, exchange.records, strict=False)
        )
    return RequestSpans(
        request_id=exchange.public_id,
        method=exchange.method,
        route=exchange.route,
        status=exchange.status,
        interval=Interval(start_ns=exchange.began_ns, end_ns=end_ns + offset_ns),
        organization_id=principal.organization_id if principal else "",
        project_id=principal.project_id if principal else "",
        key_id=principal.key_id if principal else "",
        error_type=exchange.error.code if exchange.error else None,
        is_degraded=tally is not None and tally.reservation.is_degraded,
        charge_nanos=sum(record.charge_nanos for record in exchange.records),
        waited_ns=_waited_ns(exchange, end_ns),
        reserve=reserve,
        attempts=attempts,
        settle=settle,
    )


def _waited_ns(exchange: Exchange, end_ns: int) -> int:
    """Return for how long the client had nothing to read: not while an answer streamed, however long it was."""
    whole_ns = end_ns - exchange.started_ns
    tally = exchange.tally
    if tally is None or not tally.is_streamed or not tally.attempts:
        return whole_ns
    last = tally.attempt
    if last.first_event_ns is None or last.ended_ns is None:
        return whole_ns
    return whole_ns - (last.ended_ns - last.first_event_ns)


def _attempt_span(tally: Tally, attempt: Attempt, record: UsageRecord, offset_ns: int, end_ns: int) -> AttemptSpan:
    first_ns = attempt.first_event_ns
    return AttemptSpan(
        provider=attempt.provider,
        deployment=attempt.deployment,
        upstream_model=attempt.upstream_model,
        served_model=attempt.served_model or None,
        interval=Interval(start_ns=attempt.started_ns + offset_ns, end_ns=(attempt.ended_ns or end_ns) + offset_ns),
        outcome=record.outcome,
        usage=record.usage,
        finish_reasons=tuple(attempt.finish_reasons),
        error_type=attempt.error.code if attempt.error else None,
        first_token_ns=None if first_ns is None else first_ns + offset_ns,
        operation=tally.operation,
        is_streamed=tally.is_streamed,
        span_id=attempt.span_id,
    )
