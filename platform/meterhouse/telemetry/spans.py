"""The spans of a request, in OpenTelemetry's words, sent by OTLP over HTTP from a thread of its own.

A request's spans are made in one synchronous go, from timestamps. The queue is bounded and drops; a collector that is
away costs a request nothing. The attribute names are those of the GenAI and HTTP semantic conventions and occur in
this file only. What is not here: which requests have spans (``traces``).
"""

import socket
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from meterhouse.telemetry.redact import redact_text
from meterhouse.telemetry.traces import AttemptSpan, Interval, RequestSpans, SpanFigures, TraceContext
from meterhouse.usage import Outcome, Usage

MAX_QUEUED_SPANS = 4_096
EXPORT_EVERY_MS = 1_000
EXPORT_TIMEOUT_SECONDS = 5.0
MAX_ATTRIBUTE_CHARACTERS = 256

HTTP_REQUEST_METHOD = "http.request.method"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
HTTP_ROUTE = "http.route"
ERROR_TYPE = "error.type"
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens"
METERHOUSE_REQUEST_ID = "meterhouse.request.id"
METERHOUSE_ORGANIZATION_ID = "meterhouse.organization.id"
METERHOUSE_PROJECT_ID = "meterhouse.project.id"
METERHOUSE_KEY_ID = "meterhouse.key.id"
METERHOUSE_DEPLOYMENT = "meterhouse.deployment"
METERHOUSE_OUTCOME = "meterhouse.outcome"
METERHOUSE_DEGRADED = "meterhouse.degraded"
METERHOUSE_CHARGE_NANOS = "meterhouse.charge.nanos"

_GOOD_OUTCOMES = frozenset({Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.CUT})
_NANOSECONDS_PER_SECOND = 1_000_000_000

AttributeValue = str | int | float | bool | tuple[str, ...]


class OtlpSpanWriter:
    """Implements ``traces.SpanWriter`` on the SDK's batch processor and OTLP/HTTP exporter."""

    def __init__(self, *, endpoint: str, headers: Mapping[str, str], service_name: str) -> None:
        self._ids = _PrimedIds()
        self._made = 0
        self._exporter = _CountingExporter(
            OTLPSpanExporter(endpoint=endpoint, headers=dict(headers), timeout=EXPORT_TIMEOUT_SECONDS)
        )
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=MAX_QUEUED_SPANS, schedule_delay_millis=EXPORT_EVERY_MS
        )
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource(
                {
                    "service.name": service_name,
                    "service.version": version("meterhouse"),
                    "service.instance.id": socket.gethostname(),
                }
            ),
            id_generator=self._ids,
            span_limits=SpanLimits(max_attribute_length=MAX_ATTRIBUTE_CHARACTERS),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("meterhouse", version("meterhouse"))

    @property
    def figures(self) -> SpanFigures:
        """How many spans were made and sent, since the start."""
        return SpanFigures(self._made, self._exporter.sent, self._exporter.failed)

    def write(self, context: TraceContext, request: RequestSpans) -> None:
        """Make the server span with its children and queue them; about 0.2 ms, no I/O."""
        self._ids.trace_id = int(context.trace_id, 16)
        self._made += 1 + len(request.attempts) + (request.reserve is not None) + (request.settle is not None)
        server = self._tracer.start_span(
            f"{request.method} {request.route}",
            context=_remote_parent(context),
            kind=SpanKind.SERVER,
            attributes=_server_attributes(request),
            start_time=request.interval.start_ns,
        )
        inside = trace.set_span_in_context(server, Context())
        if request.reserve is not None:
            self._internal("quota.reserve", request.reserve, inside, {METERHOUSE_DEGRADED: request.is_degraded})
        for attempt in request.attempts:
            self._attempt(attempt, inside)
        if request.settle is not None:
            self._internal("ledger.settle", request.settle, inside, {METERHOUSE_CHARGE_NANOS: request.charge_nanos})
        if request.is_failed:
            server.set_status(Status(StatusCode.ERROR))
        server.end(end_time=request.interval.end_ns)

    def close(self, timeout_seconds: float) -> None:
        """Send what is queued. A collector that does not answer is given up after the time stated."""
        # The SDK waits 30 s for its own thread; a thread between us and it lets us stop waiting earlier.
        closing = threading.Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        closing.start()
        closing.join(timeout_seconds)
        if closing.is_alive():
            self._exporter.shutdown()

    def _internal(
        self, name: str, interval: Interval, inside: Context, attributes: Mapping[str, AttributeValue]
    ) -> None:
        span = self._tracer.start_span(
            name, context=inside, kind=SpanKind.INTERNAL, attributes=attributes, start_time=interval.start_ns
        )
        span.end(end_time=interval.end_ns)

    def _attempt(self, attempt: AttemptSpan, inside: Context) -> None:
        self._ids.span_id = int(attempt.span_id, 16) if attempt.span_id else 0
        span = self._tracer.start_span(
            redact_text(f"{attempt.operation} {attempt.upstream_model}")[:MAX_ATTRIBUTE_CHARACTERS],
            context=inside,
            kind=SpanKind.CLIENT,
            attributes=_attempt_attributes(attempt),
            start_time=attempt.interval.start_ns,
        )
        if attempt.outcome not in _GOOD_OUTCOMES:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=attempt.interval.end_ns)


class _PrimedIds(RandomIdGenerator):
    """Gives a trace and a span the ids that they have had all along; set just before they are made."""

    def __init__(self) -> None:
        self.trace_id = 0
        self.span_id = 0
        """Of the next span; 0: any."""

    def generate_span_id(self) -> int:
        given, self.span_id = self.span_id, 0
        return given or super().generate_span_id()

    def generate_trace_id(self) -> int:
        return self.trace_id


class _CountingExporter(SpanExporter):
    """Counts what became of the spans that another exporter sends."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.sent = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
        else:
            self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _remote_parent(context: TraceContext) -> Context:
    if context.parent_span_id is None:
        return Context()
    parent = SpanContext(
        trace_id=int(context.trace_id, 16),
        span_id=int(context.parent_span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())


def _server_attributes(request: RequestSpans) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        HTTP_REQUEST_METHOD: request.method,
        HTTP_ROUTE: request.route,
        HTTP_RESPONSE_STATUS_CODE: request.status,
        METERHOUSE_REQUEST_ID: request.request_id,
    }
    optional = {
        METERHOUSE_ORGANIZATION_ID: request.organization_id,
        METERHOUSE_PROJECT_ID: request.project_id,
        METERHOUSE_KEY_ID: request.key_id,
        ERROR_TYPE: request.error_type,
    }
    attributes.update({name: redact_text(value) for name, value in optional.items() if value})
    return attributes


def _attempt_attributes(attempt: AttemptSpan) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        GEN_AI_OPERATION_NAME: attempt.operation,
        GEN_AI_PROVIDER_NAME: attempt.provider,
        GEN_AI_REQUEST_MODEL: redact_text(attempt.upstream_model),
        GEN_AI_REQUEST_STREAM: attempt.is_streamed,
        METERHOUSE_DEPLOYMENT: redact_text(attempt.deployment),
        METERHOUSE_OUTCOME: attempt.outcome.value,
    }
    if attempt.served_model:
        attributes[GEN_AI_RESPONSE_MODEL] = redact_text(attempt.served_model)
    if attempt.finish_reasons:
        attributes[GEN_AI_RESPONSE_FINISH_REASONS] = tuple(redact_text(reason) for reason in attempt.finish_reasons)
    if attempt.error_type:
        attributes[ERROR_TYPE] = redact_text(attempt.error_type)
    if attempt.first_token_ns is not None:
        waited_ns = attempt.first_token_ns - attempt.interval.start_ns
        attributes[GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] = waited_ns / _NANOSECONDS_PER_SECOND
    if attempt.usage is not None:
        attributes.update(_usage_attributes(attempt.usage))
    return attributes


def _usage_attributes(usage: Usage) -> dict[str, int]:
    attributes = {
        GEN_AI_USAGE_INPUT_TOKENS: usage.input_tokens,
        GEN_AI_USAGE_OUTPUT_TOKENS: usage.output_tokens,
    }
    parts = {
        GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: usage.cached_input_tokens,
        GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS: usage.cache_write_tokens,
        GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: usage.reasoning_tokens,
    }
    attributes.update({name: count for name, count in parts.items() if count})
    return attributes
