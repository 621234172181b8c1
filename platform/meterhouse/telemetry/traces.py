"""Traces: which requests have one, and what is known of a request when its spans are made.

Spans are made after the request, from timestamps, and only of a sampled or failed request, so that every other
request pays for a random number (speed.md). Without an endpoint nothing is made, but a trace id is still given, for
the log and the ledger. No field here can hold a prompt. What is not here: the spans themselves (``spans``) and their
sending (``otlp``), which are imported only when there is somewhere to send them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from meterhouse.ids import IdSource
from meterhouse.usage import Outcome, Usage

MAX_FAILED_PER_SECOND = 100
"""How many failed requests that were not sampled are kept in a second; more of them would say nothing new."""
MAX_SLOW_PER_SECOND = 20
"""The same for those that were slow."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_FIRST_VERSION = "00"
_FORBIDDEN_VERSION = "ff"
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED_FLAG = 0x01
_HALF_BITS = 64
_ID_LENGTH = 32
_PREPARED = 64
"""Traces that are begun in one go."""
_ABOVE_ALL = "g"
"""After every hexadecimal digit."""
_SERVER_ERROR = 500
_FAILED_OUTCOMES = frozenset({Outcome.UPSTREAM_FAILED, Outcome.WORKER_LOST})
_NANOSECONDS_PER_SECOND = 1_000_000_000


def format_traceparent(trace_id: str, span_id: str, *, is_sampled: bool) -> str:
    """Write a W3C ``traceparent``."""
    return f"{_FIRST_VERSION}-{trace_id}-{span_id}-{int(is_sampled):02x}"


class TraceContext(msgspec.Struct, frozen=True):
    """The trace that a request belongs to; hexadecimal ids of W3C Trace Context."""

    trace_id: str
    parent_span_id: str | None
    is_sampled: bool


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """From when to when, in nanoseconds of the Unix epoch."""

    start_ns: int
    end_ns: int


class AttemptSpan(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: the GenAI client span."""

    provider: str
    deployment: str
    upstream_model: str
    served_model: str | None
    interval: Interval
    outcome: Outcome
    usage: Usage | None = None
    finish_reasons: tuple[str, ...] = ()
    error_type: str | None = None
    first_token_ns: int | None = None
    """When the first data event came, in nanoseconds of the Unix epoch."""
    operation: str = "chat"
    is_streamed: bool = False
    span_id: str = ""
    """Where it was told to the provider; else one is made."""


class RequestSpans(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the spans of one request say."""

    request_id: str
    method: str
    route: str
    """The template of the address, not what the caller typed."""
    status: int
    interval: Interval
    organization_id: str = ""
    project_id: str = ""
    key_id: str = ""
    error_type: str | None = None
    is_degraded: bool = False
    """Whether it was admitted without the meter."""
    charge_nanos: int = 0
    waited_ns: int = 0
    """How long the client waited while nothing streamed."""
    reserve: Interval | None = None
    attempts: tuple[AttemptSpan, ...] = ()
    settle: Interval | None = None

    @property
    def is_failed(self) -> bool:
        """Whether the trace says so, and is kept although it was not sampled."""
        return self.status >= _SERVER_ERROR or any(attempt.outcome in _FAILED_OUTCOMES for attempt in self.attempts)


@dataclass(frozen=True, slots=True)
class SpanFigures:
    """What became of spans; what is neither sent nor failed waits, or found the queue full."""

    made: int = 0
    sent: int = 0
    failed: int = 0


class SpanWriter(Protocol):
    """Makes the spans of a request and sends them, without waiting and without raising."""

    @property
    def figures(self) -> SpanFigures:
        """How many spans were made and sent, since the start."""
        ...

    def write(self, context: TraceContext, request: RequestSpans) -> None:
        """Make and queue the spans."""
        ...

    def close(self, timeout_seconds: float) -> None:
        """Send what is queued, for at most this long."""
        ...


class Tracing:
    """Decides what is traced. Bounded: the exporter's queue drops, and failed requests are kept up to a rate.

    Args:
        endpoint: the full OTLP/HTTP address of traces, for example ``http://collector:4318/v1/traces``; None: off.
        ratio: the part of requests to sample, from 0 to 1, when the caller has not decided.
        slow_seconds: a request whose client waited for so long is kept although it was not sampled.
        headers: sent with each export, for a collector that wants a credential.
        service_name: the resource's ``service.name``.
    """

    CLOSE_SECONDS = 3.0

    def __init__(
        self,
        *,
        endpoint: str | None,
        ratio: float,
        slow_seconds: float = 10.0,
        headers: Mapping[str, str] | None = None,
        service_name: str = "meterhouse",
    ) -> None:
        self._writer = None if endpoint is None else _make_writer(endpoint, headers or {}, service_name)
        self._is_on = self._writer is not None
        self._ids = IdSource()
        self._prepared: list[TraceContext] = []
        # Digits, compared with the trace id's lower half as OpenTelemetry's own TraceIdRatioBased sampler does.
        bound = int(ratio * (1 << _HALF_BITS))
        self._bound = f"{bound:016x}" if bound < 1 << _HALF_BITS else _ABOVE_ALL
        self._slow_ns = int(slow_seconds * _NANOSECONDS_PER_SECOND)
        self._failed = _Rate(MAX_FAILED_PER_SECOND)
        self._slow = _Rate(MAX_SLOW_PER_SECOND)

    @property
    def figures(self) -> SpanFigures:
        """How many spans were made and sent, since the start."""
        return SpanFigures() if self._writer is None else self._writer.figures

    def new_trace(self, traceparent: str | None) -> TraceContext:
        """Continue the caller's trace and its decision, or begin one and decide by its random id."""
        if traceparent is not None:
            context = self._continue(traceparent)
            if context is not None:
                return context
        prepared = self._prepared
        if not prepared:
            prepared += self._begin_many()
        return prepared.pop()

    def wants(self, context: TraceContext, *, is_failed: bool, duration_ns: int = 0) -> bool:
        """Say whether ``finish`` could keep this request, so that its facts are only gathered when it could."""
        return self._is_on and (context.is_sampled or is_failed or duration_ns >= self._slow_ns)

    def finish(self, context: TraceContext, request: RequestSpans) -> None:
        """Make the spans of a finished request if it was sampled, failed or slow. Never waits."""
        if self._writer is None:
            return
        end_ns = request.interval.end_ns
        if (
            context.is_sampled
            or (request.is_failed and self._failed.admits(end_ns))
            or (request.waited_ns >= self._slow_ns and self._slow.admits(end_ns))
        ):
            self._writer.write(context, request)

    def close(self) -> None:
        """Send what is queued; a collector that does not answer is waited for ``CLOSE_SECONDS`` at most."""
        if self._writer is not None:
            self._writer.close(self.CLOSE_SECONDS)

    def _begin_many(self) -> list[TraceContext]:
        chance, bound = self._ids.random_hex(_PREPARED * _ID_LENGTH), self._bound if self._is_on else ""
        return [
            TraceContext(chance[at : at + _ID_LENGTH], None, chance[at + _ID_LENGTH // 2 : at + _ID_LENGTH] < bound)
            for at in range(0, len(chance), _ID_LENGTH)
        ]

    def _continue(self, traceparent: str) -> TraceContext | None:
        """Read a W3C ``traceparent``; None when it is not one (then a new trace begins, as the standard says)."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        is_known = version != _FORBIDDEN_VERSION and not (version == _FIRST_VERSION and rest)
        if not is_known or trace_id == _NO_TRACE or span_id == _NO_SPAN:
            return None
        return TraceContext(trace_id, span_id, self._is_on and bool(int(flags, 16) & _SAMPLED_FLAG))


class _Rate:
    """So many in a second of the clock, and no more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = 0
        self._count = 0

    def admits(self, at_ns: int) -> bool:
        second = at_ns // _NANOSECONDS_PER_SECOND
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= self._most


def _make_writer(endpoint: str, headers: Mapping[str, str], service_name: str) -> SpanWriter:
    from meterhouse.telemetry.otlp import OtlpSpanWriter  # noqa: PLC0415 - 0.3 s of imports that most starts do not need

    return OtlpSpanWriter(endpoint=endpoint, headers=headers, service_name=service_name)
