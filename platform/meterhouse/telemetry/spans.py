"""The spans of a request as messages of OTLP, in OpenTelemetry's words.

The messages are those of ``opentelemetry-proto``, made in place from what is known of a finished request: a tracer,
which makes and checks each span for itself, costs several times as much (``infra/benchmark``). The attribute names are
those of the GenAI and HTTP semantic conventions and occur in this file only. What is not here: which requests have
spans (``traces``), and how they are sent (``otlp``).
"""

import os
from collections.abc import Callable
from functools import lru_cache

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, SpanFlags, Status

from meterhouse.telemetry.redact import redact_text
from meterhouse.telemetry.traces import AttemptSpan, Interval, RequestSpans, TraceContext
from meterhouse.usage import Outcome, Usage

MAX_ATTRIBUTE_CHARACTERS = 256
MAX_REMEMBERED = 2_048
"""Attributes that are kept as they were written: names of models, ids of keys. The least recently used one goes."""

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
_FAILED = Status(code=Status.STATUS_CODE_ERROR)
_SPAN_ID_BYTES = 8
_NANOSECONDS_PER_SECOND = 1_000_000_000


class SpanMaker:
    """Makes the messages of requests, and remembers those parts that most requests have in common."""

    def __init__(self) -> None:
        self._text: Callable[[str, str], KeyValue] = lru_cache(MAX_REMEMBERED)(_text)
        self._texts: Callable[[str, tuple[str, ...]], KeyValue] = lru_cache(MAX_REMEMBERED)(_texts)
        self._clean: Callable[[str], str] = lru_cache(MAX_REMEMBERED)(_clean)

    def add(self, scope: ScopeSpans, context: TraceContext, request: RequestSpans) -> None:
        """Add the server's span and its children."""
        trace_id, span_id = bytes.fromhex(context.trace_id), os.urandom(_SPAN_ID_BYTES)
        is_remote = SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if context.parent_span_id is not None else 0
        scope.spans.add(
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=bytes.fromhex(context.parent_span_id or ""),
            name=self._clean(f"{request.method} {request.route}"),
            kind=Span.SPAN_KIND_SERVER,
            start_time_unix_nano=request.interval.start_ns,
            end_time_unix_nano=request.interval.end_ns,
            attributes=self._server_attributes(request),
            status=_FAILED if request.is_failed else None,
            flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | is_remote,
        )
        if request.reserve is not None:
            degraded = KeyValue(key=METERHOUSE_DEGRADED, value=AnyValue(bool_value=request.is_degraded))
            _add_internal(scope, trace_id, span_id, "quota.reserve", request.reserve, degraded)
        for attempt in request.attempts:
            self._add_attempt(scope, trace_id, span_id, attempt)
        if request.settle is not None:
            charge = _integer(METERHOUSE_CHARGE_NANOS, request.charge_nanos)
            _add_internal(scope, trace_id, span_id, "ledger.settle", request.settle, charge)

    def _add_attempt(self, scope: ScopeSpans, trace_id: bytes, parent_span_id: bytes, attempt: AttemptSpan) -> None:
        scope.spans.add(
            trace_id=trace_id,
            span_id=bytes.fromhex(attempt.span_id) if attempt.span_id else os.urandom(_SPAN_ID_BYTES),
            parent_span_id=parent_span_id,
            name=self._clean(f"{attempt.operation} {attempt.upstream_model}"),
            kind=Span.SPAN_KIND_CLIENT,
            start_time_unix_nano=attempt.interval.start_ns,
            end_time_unix_nano=attempt.interval.end_ns,
            attributes=self._attempt_attributes(attempt),
            status=None if attempt.outcome in _GOOD_OUTCOMES else _FAILED,
            flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK,
        )

    def _server_attributes(self, request: RequestSpans) -> list[KeyValue]:
        text = self._text
        attributes = [
            text(HTTP_REQUEST_METHOD, request.method),
            text(HTTP_ROUTE, request.route),
            _integer(HTTP_RESPONSE_STATUS_CODE, request.status),
            KeyValue(key=METERHOUSE_REQUEST_ID, value=AnyValue(string_value=request.request_id)),
        ]
        if request.organization_id:
            attributes.append(text(METERHOUSE_ORGANIZATION_ID, request.organization_id))
        if request.project_id:
            attributes.append(text(METERHOUSE_PROJECT_ID, request.project_id))
        if request.key_id:
            attributes.append(text(METERHOUSE_KEY_ID, request.key_id))
        if request.error_type:
            attributes.append(text(ERROR_TYPE, request.error_type))
        return attributes

    def _attempt_attributes(self, attempt: AttemptSpan) -> list[KeyValue]:
        text = self._text
        attributes = [
            text(GEN_AI_OPERATION_NAME, attempt.operation),
            text(GEN_AI_PROVIDER_NAME, attempt.provider),
            text(GEN_AI_REQUEST_MODEL, attempt.upstream_model),
            KeyValue(key=GEN_AI_REQUEST_STREAM, value=AnyValue(bool_value=attempt.is_streamed)),
            text(METERHOUSE_DEPLOYMENT, attempt.deployment),
            text(METERHOUSE_OUTCOME, attempt.outcome.value),
        ]
        if attempt.served_model:
            attributes.append(text(GEN_AI_RESPONSE_MODEL, attempt.served_model))
        if attempt.finish_reasons:
            attributes.append(self._texts(GEN_AI_RESPONSE_FINISH_REASONS, attempt.finish_reasons))
        if attempt.error_type:
            attributes.append(text(ERROR_TYPE, attempt.error_type))
        if attempt.first_token_ns is not None:
            waited = (attempt.first_token_ns - attempt.interval.start_ns) / _NANOSECONDS_PER_SECOND
            attributes.append(KeyValue(key=GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, value=AnyValue(double_value=waited)))
        if attempt.usage is not None:
            attributes += _usage_attributes(attempt.usage)
        return attributes


def _add_internal(
    scope: ScopeSpans, trace_id: bytes, parent_span_id: bytes, name: str, interval: Interval, attribute: KeyValue
) -> None:
    scope.spans.add(
        trace_id=trace_id,
        span_id=os.urandom(_SPAN_ID_BYTES),
        parent_span_id=parent_span_id,
        name=name,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=interval.start_ns,
        end_time_unix_nano=interval.end_ns,
        attributes=[attribute],
        flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK,
    )


def _usage_attributes(usage: Usage) -> list[KeyValue]:
    attributes = [
        _integer(GEN_AI_USAGE_INPUT_TOKENS, usage.input_tokens),
        _integer(GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens),
    ]
    parts = (
        (GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached_input_tokens),
        (GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, usage.cache_write_tokens),
        (GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_tokens),
    )
    attributes += [_integer(name, count) for name, count in parts if count]
    return attributes


def _clean(text: str) -> str:
    return redact_text(text)[:MAX_ATTRIBUTE_CHARACTERS]


def _text(name: str, text: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=_clean(text)))


def _texts(name: str, texts: tuple[str, ...]) -> KeyValue:
    values = [AnyValue(string_value=_clean(text)) for text in texts]
    return KeyValue(key=name, value=AnyValue(array_value=ArrayValue(values=values)))


def _integer(name: str, number: int) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(int_value=number))
