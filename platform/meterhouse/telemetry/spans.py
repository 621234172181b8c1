"""The spans of a request as messages of OTLP, in OpenTelemetry's words.

What many spans have in common (names, models, ids of keys) is a message of ``opentelemetry-proto``, encoded once and
kept; ids, times and counts are put behind it, for two encoded messages in a row are one message with the fields of both
(protobuf, "Encoding"). Every field's beginning is taken from what the library writes, so that no number of a field is
known here. A message of the library for each span would cost ten times as much. The attribute names are those of the
GenAI and HTTP semantic conventions and occur in this file only. What is not here: which requests have spans
(``traces``), and how they are sent (``otlp``).
"""

from collections.abc import Callable
from functools import lru_cache
from struct import Struct

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status

from meterhouse.ids import IdSource
from meterhouse.telemetry.redact import redact_text
from meterhouse.telemetry.traces import AttemptSpan, Interval, RequestSpans, TraceContext
from meterhouse.usage import Outcome, Usage

MAX_ATTRIBUTE_CHARACTERS = 256
MAX_REMEMBERED = 2_048
"""Beginnings of each kind that are kept. The least recently used one goes."""

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
_NANOSECONDS_PER_SECOND = 1_000_000_000
_TRACE_ID_BYTES, _SPAN_ID_BYTES, _FIXED_BYTES = 16, 8, 8
_VARINT_BITS = 7
_MOST_IN_VARINT = 0x7F

_TRACE_ID = Span(trace_id=bytes(_TRACE_ID_BYTES)).SerializeToString()[:-_TRACE_ID_BYTES]
_SPAN_ID = Span(span_id=bytes(_SPAN_ID_BYTES)).SerializeToString()[:-_SPAN_ID_BYTES]
_PARENT_SPAN_ID = Span(parent_span_id=bytes(_SPAN_ID_BYTES)).SerializeToString()[:-_SPAN_ID_BYTES]
_START = Span(start_time_unix_nano=1).SerializeToString()[:-_FIXED_BYTES]
_END = Span(end_time_unix_nano=1).SerializeToString()[:-_FIXED_BYTES]
_SPAN = ScopeSpans(spans=[Span()]).SerializeToString()[:-1]
_SCOPE_SPANS = ResourceSpans(scope_spans=[ScopeSpans()]).SerializeToString()[:-1]
_fixed = Struct("<Q").pack
_double = Struct("<d").pack


class SpanMaker:
    """Makes the messages of requests, and remembers those parts that most requests have in common. For one thread."""

    def __init__(self) -> None:
        self._ids = IdSource()
        self._server: Callable[..., bytes] = lru_cache(MAX_REMEMBERED)(_server)
        self._attempt: Callable[..., bytes] = lru_cache(MAX_REMEMBERED)(_attempt)
        self._internal: Callable[[str, bool | None], bytes] = lru_cache(MAX_REMEMBERED)(_internal)
        self._before: Callable[[str, type, int], bytes] = lru_cache(MAX_REMEMBERED)(_before)

    def make(self, context: TraceContext, request: RequestSpans) -> list[bytes]:
        """Return the server's span and its children, each as a field of ``ScopeSpans``."""
        trace_id = _TRACE_ID + bytes.fromhex(context.trace_id)
        span_id = self._new_span_id()
        parent = b"" if context.parent_span_id is None else _PARENT_SPAN_ID + bytes.fromhex(context.parent_span_id)
        common = self._server(
            (request.method, request.route, request.status, request.error_type),
            (request.organization_id, request.project_id, request.key_id),
            is_failed=request.is_failed,
            is_remote=context.parent_span_id is not None,
        )
        fresh = self._text(METERHOUSE_REQUEST_ID, request.request_id)
        spans = [_span(trace_id, _SPAN_ID + span_id + parent, request.interval, common + fresh)]
        parent = _PARENT_SPAN_ID + span_id
        if request.reserve is not None:
            common = self._internal("quota.reserve", request.is_degraded)
            spans.append(_span(trace_id, _SPAN_ID + self._new_span_id() + parent, request.reserve, common))
        for attempt in request.attempts:
            own_id = bytes.fromhex(attempt.span_id) if attempt.span_id else self._new_span_id()
            spans.append(_span(trace_id, _SPAN_ID + own_id + parent, attempt.interval, self._attempt_fields(attempt)))
        if request.settle is not None:
            common = self._internal("ledger.settle", None) + self._integer(
                METERHOUSE_CHARGE_NANOS, request.charge_nanos
            )
            spans.append(_span(trace_id, _SPAN_ID + self._new_span_id() + parent, request.settle, common))
        return spans

    def _new_span_id(self) -> bytes:
        return bytes.fromhex(self._ids.random_hex(2 * _SPAN_ID_BYTES))

    def _attempt_fields(self, attempt: AttemptSpan) -> bytes:
        fields = [
            self._attempt(
                (attempt.operation, attempt.provider, attempt.upstream_model, attempt.deployment),
                (attempt.outcome, attempt.served_model, attempt.finish_reasons, attempt.error_type),
                is_streamed=attempt.is_streamed,
            )
        ]
        if attempt.first_token_ns is not None:
            waited = (attempt.first_token_ns - attempt.interval.start_ns) / _NANOSECONDS_PER_SECOND
            fields += (self._before(GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, float, _FIXED_BYTES), _double(waited))
        if attempt.usage is not None:
            fields += [self._integer(name, count) for name, count in _counts(attempt.usage)]
        return b"".join(fields)

    def _integer(self, name: str, number: int) -> bytes:
        if number < 0:  # it has ten bytes, and no charge or count is
            return _attributes(KeyValue(key=name, value=AnyValue(int_value=number)))
        digits = _varint(number)
        return self._before(name, int, len(digits)) + digits

    def _text(self, name: str, text: str) -> bytes:
        """Return an attribute that hardly occurs twice; its text is ours and needs no cleaning."""
        data = text.encode()
        return self._before(name, str, len(data)) + data


def scope_spans(begin: ScopeSpans, spans: list[bytes]) -> bytes:
    """Return the spans of a scope as a field of ``ResourceSpans``."""
    return _nested(_SCOPE_SPANS, begin.SerializeToString() + b"".join(spans))


def request_of(begin: ResourceSpans, tag: bytes, spans: bytes) -> bytes:
    """Return a resource with the spans of its scope as the field with this tag."""
    return _nested(tag, begin.SerializeToString() + spans)


def _span(trace_id: bytes, ids: bytes, interval: Interval, fields: bytes) -> bytes:
    start, end = _fixed(interval.start_ns), _fixed(interval.end_ns)
    return _nested(_SPAN, b"".join((trace_id, ids, _START, start, _END, end, fields)))


def _nested(tag: bytes, message: bytes) -> bytes:
    return tag + _varint(len(message)) + message


def _varint(number: int) -> bytes:
    """Write a number that is not negative as protobuf does: seven bits a byte, the least first."""
    if number <= _MOST_IN_VARINT:
        return bytes((number,))
    digits = bytearray()
    while number > _MOST_IN_VARINT:
        digits.append(number & _MOST_IN_VARINT | 1 << _VARINT_BITS)
        number >>= _VARINT_BITS
    digits.append(number)
    return bytes(digits)


def _before(name: str, kind: type, size: int) -> bytes:
    """Return what is written of an attribute before the last bytes of it, which are its value."""
    if kind is int:
        value = AnyValue(int_value=1 << _VARINT_BITS * (size - 1))
    else:
        value = AnyValue(string_value="x" * size) if kind is str else AnyValue(double_value=1.0)
    whole = _attributes(KeyValue(key=name, value=value))
    return whole[: len(whole) - size]


def _attributes(*attributes: KeyValue) -> bytes:
    encoded: bytes = Span(attributes=attributes).SerializeToString()
    return encoded


def _server(
    asked: tuple[str, str, int, str | None], owners: tuple[str, str, str], *, is_failed: bool, is_remote: bool
) -> bytes:
    method, route, status, error_type = asked
    organization_id, project_id, key_id = owners
    texts = (
        (HTTP_REQUEST_METHOD, method),
        (HTTP_ROUTE, route),
        (METERHOUSE_ORGANIZATION_ID, organization_id),
        (METERHOUSE_PROJECT_ID, project_id),
        (METERHOUSE_KEY_ID, key_id),
        (ERROR_TYPE, error_type),
    )
    encoded: bytes = Span(
        name=_clean(f"{method} {route}"),
        kind=Span.SPAN_KIND_SERVER,
        attributes=[
            KeyValue(key=HTTP_RESPONSE_STATUS_CODE, value=AnyValue(int_value=status)),
            *[_text(name, text) for name, text in texts if text],
        ],
        status=_FAILED if is_failed else None,
        flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
        | (SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if is_remote else 0),
    ).SerializeToString()
    return encoded


def _attempt(
    asked: tuple[str, str, str, str],
    came: tuple[Outcome, str | None, tuple[str, ...], str | None],
    *,
    is_streamed: bool,
) -> bytes:
    operation, provider, upstream_model, deployment = asked
    outcome, served_model, finish_reasons, error_type = came
    texts = (
        (GEN_AI_OPERATION_NAME, operation),
        (GEN_AI_PROVIDER_NAME, provider),
        (GEN_AI_REQUEST_MODEL, upstream_model),
        (METERHOUSE_DEPLOYMENT, deployment),
        (METERHOUSE_OUTCOME, outcome.value),
        (GEN_AI_RESPONSE_MODEL, served_model),
        (ERROR_TYPE, error_type),
    )
    attributes = [_text(name, text) for name, text in texts if text]
    attributes.append(KeyValue(key=GEN_AI_REQUEST_STREAM, value=AnyValue(bool_value=is_streamed)))
    if finish_reasons:
        reasons = ArrayValue(values=[AnyValue(string_value=_clean(reason)) for reason in finish_reasons])
        attributes.append(KeyValue(key=GEN_AI_RESPONSE_FINISH_REASONS, value=AnyValue(array_value=reasons)))
    encoded: bytes = Span(
        name=_clean(f"{operation} {upstream_model}"),
        kind=Span.SPAN_KIND_CLIENT,
        attributes=attributes,
        status=None if outcome in _GOOD_OUTCOMES else _FAILED,
        flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK,
    ).SerializeToString()
    return encoded


def _internal(name: str, is_degraded: bool | None) -> bytes:
    attributes: list[KeyValue] = []
    if is_degraded is not None:
        attributes.append(KeyValue(key=METERHOUSE_DEGRADED, value=AnyValue(bool_value=is_degraded)))
    encoded: bytes = Span(
        name=name,
        kind=Span.SPAN_KIND_INTERNAL,
        attributes=attributes,
        flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK,
    ).SerializeToString()
    return encoded


def _counts(usage: Usage) -> list[tuple[str, int]]:
    parts = (
        (GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached_input_tokens),
        (GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, usage.cache_write_tokens),
        (GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_tokens),
    )
    return [
        (GEN_AI_USAGE_INPUT_TOKENS, usage.input_tokens),
        (GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens),
        *[part for part in parts if part[1]],
    ]


def _clean(text: str) -> str:
    return redact_text(text)[:MAX_ATTRIBUTE_CHARACTERS]


def _text(name: str, text: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=_clean(text)))
