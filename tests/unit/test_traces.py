"""The spans that a collector receives, and what happens when there is no collector."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes

from meterhouse.telemetry import otlp, spans, traces
from meterhouse.telemetry.traces import AttemptSpan, Interval, RequestSpans, TraceContext, Tracing
from meterhouse.usage import Outcome, Usage

NOW_NS = 1_760_000_000_000_000_000
INCOMING = "4bf92f3577b34da6a3ce929d0e0e4736"
INCOMING_PARENT = "00f067aa0ba902b7"
SECRET = "sk-mh-live-8Jd2kXw0-" + "Zx81" * 8


class Collector(http.server.ThreadingHTTPServer):
    """An OTLP/HTTP collector on a free port that keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.exports: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        """What the next exports are answered with; 200 afterwards."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            self.server.exports.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def tracing_to(collector: Collector, ratio: float = 1.0) -> Iterator[Tracing]:
    """Give a tracing, and send everything before the block ends."""
    tracing = Tracing(endpoint=collector.endpoint, ratio=ratio, headers={"x-collector-key": "c"})
    yield tracing
    tracing.close()


def at(start_ms: int, end_ms: int) -> Interval:
    return Interval(start_ns=NOW_NS + start_ms * 1_000_000, end_ns=NOW_NS + end_ms * 1_000_000)


def an_attempt(**changes: object) -> AttemptSpan:
    values = {
        "provider": "openai",
        "deployment": "openai/default",
        "upstream_model": "gpt-4o-mini",
        "served_model": "gpt-4o-mini-2024-07-18",
        "interval": at(3, 90),
        "outcome": Outcome.COMPLETED,
        "usage": Usage(input_tokens=120, cached_input_tokens=100, output_tokens=34, reasoning_tokens=20),
        "finish_reasons": ("stop",),
        "first_token_ns": NOW_NS + 43_000_000,
        "is_streamed": True,
    }
    return AttemptSpan(**(values | changes))


def a_request(**changes: object) -> RequestSpans:
    values = {
        "request_id": "req_1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "interval": at(0, 100),
        "organization_id": "org_1",
        "project_id": "proj_1",
        "key_id": "key_1",
        "reserve": at(1, 2),
        "attempts": (an_attempt(),),
        "settle": at(95, 96),
    }
    return RequestSpans(**(values | changes))


def attributes_of(span: Span) -> dict[str, object]:
    found: dict[str, object] = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        found[attribute.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16_383, 16_384, 4 * 10**15, 2**63 - 1, -1])
def test_a_number_of_any_size_is_read_as_it_was(number: int) -> None:
    """Its bytes are put behind what the library wrote, so the library must read them."""
    maker, usage = spans.SpanMaker(), Usage(input_tokens=abs(number), output_tokens=7)
    request = a_request(charge_nanos=number, attempts=(an_attempt(usage=usage, finish_reasons=("x" * 300,)),))
    for _ in range(2):  # the second time from what is kept
        made = maker.make(TraceContext("ab" * 16, "cd" * 8, is_sampled=True), request)
        read = {span.name: span for span in ScopeSpans.FromString(b"".join(made)).spans}
        assert attributes_of(read["ledger.settle"])[spans.METERHOUSE_CHARGE_NANOS] == number
        attributes = attributes_of(read["chat gpt-4o-mini"])
        assert attributes[spans.GEN_AI_USAGE_INPUT_TOKENS] == abs(number)
        assert attributes[spans.GEN_AI_USAGE_OUTPUT_TOKENS] == 7
        assert read["POST /v1/chat/completions"].parent_span_id == bytes.fromhex("cd" * 8)


def test_a_request_is_a_tree_of_four_spans_with_its_times(collector: Collector) -> None:
    with tracing_to(collector) as tracing:
        context = tracing.new_trace(None)
        tracing.finish(context, a_request())
    by_name = {span.name: span for span in collector.spans}
    assert set(by_name) == {"POST /v1/chat/completions", "quota.reserve", "chat gpt-4o-mini", "ledger.settle"}
    server = by_name["POST /v1/chat/completions"]
    assert server.parent_span_id == b""
    assert server.kind == Span.SPAN_KIND_SERVER
    assert by_name["chat gpt-4o-mini"].kind == Span.SPAN_KIND_CLIENT
    assert {span.trace_id.hex() for span in by_name.values()} == {context.trace_id}
    assert {span.parent_span_id for name, span in by_name.items() if span is not server} == {server.span_id}
    assert len({span.span_id for span in by_name.values()}) == 4
    times = {
        name: ((span.start_time_unix_nano - NOW_NS) // 10**6, (span.end_time_unix_nano - NOW_NS) // 10**6)
        for name, span in by_name.items()
    }
    assert times == {
        "POST /v1/chat/completions": (0, 100),
        "quota.reserve": (1, 2),
        "chat gpt-4o-mini": (3, 90),
        "ledger.settle": (95, 96),
    }
    assert {span.status.code for span in by_name.values()} == {Status.STATUS_CODE_UNSET}
    (resource,) = [export.resource_spans[0].resource for export in collector.exports]
    assert {a.key: a.value.string_value for a in resource.attributes}["service.name"] == "meterhouse"
    assert collector.headers[0]["x-collector-key"] == "c"


def test_the_attributes_are_those_of_the_conventions(collector: Collector) -> None:
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request())
    by_name = {span.name: attributes_of(span) for span in collector.spans}
    assert by_name["chat gpt-4o-mini"] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.04,
        "gen_ai.usage.input_tokens": 120,
        "gen_ai.usage.output_tokens": 34,
        "gen_ai.usage.cache_read.input_tokens": 100,
        "gen_ai.usage.reasoning.output_tokens": 20,
        "meterhouse.deployment": "openai/default",
        "meterhouse.outcome": "completed",
    }
    assert by_name["POST /v1/chat/completions"] == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "meterhouse.request.id": "req_1",
        "meterhouse.organization.id": "org_1",
        "meterhouse.project.id": "proj_1",
        "meterhouse.key.id": "key_1",
    }


def test_our_names_are_the_installed_conventions_names() -> None:
    conventions = vars(gen_ai_attributes) | vars(http_attributes) | vars(error_attributes)
    ours = {name: value for name, value in vars(spans).items() if name.startswith(("GEN_AI_", "HTTP_", "ERROR_"))}
    assert len(ours) > 12
    assert ours == {name: conventions.get(name) for name in ours}


def test_each_attempt_has_a_span_and_a_failed_one_says_why(collector: Collector) -> None:
    failed = an_attempt(
        outcome=Outcome.UPSTREAM_FAILED,
        usage=None,
        error_type="upstream_timeout",
        served_model=None,
        first_token_ns=None,
    )
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request(attempts=(failed, an_attempt(provider="groq"))))
    attempts = [span for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]
    first, second = sorted(attempts, key=lambda span: attributes_of(span)["gen_ai.provider.name"] == "groq")
    assert attributes_of(first)["error.type"] == "upstream_timeout"
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert "gen_ai.usage.input_tokens" not in attributes_of(first)
    assert second.status.code == Status.STATUS_CODE_UNSET


def test_the_callers_trace_is_continued(collector: Collector) -> None:
    with tracing_to(collector, ratio=0.0) as tracing:
        context = tracing.new_trace(f"00-{INCOMING}-{INCOMING_PARENT}-01")
        tracing.finish(context, a_request())
    assert context == TraceContext(INCOMING, INCOMING_PARENT, True)
    (server,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert server.trace_id.hex() == INCOMING
    assert server.parent_span_id.hex() == INCOMING_PARENT


def test_a_caller_that_does_not_sample_is_not_sampled(collector: Collector) -> None:
    with tracing_to(collector, ratio=1.0) as tracing:
        context = tracing.new_trace(f"00-{INCOMING}-{INCOMING_PARENT}-00")
        tracing.finish(context, a_request())
    assert (context.trace_id, context.is_sampled) == (INCOMING, False)
    assert collector.spans == []


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "garbage",
        f"ff-{INCOMING}-{INCOMING_PARENT}-01",
        f"00-{INCOMING}-{INCOMING_PARENT}-01-more",
        f"00-{INCOMING.upper()}-{INCOMING_PARENT}-01",
        f"00-{'0' * 32}-{INCOMING_PARENT}-01",
        f"00-{INCOMING}-{'0' * 16}-01",
        f"00-{INCOMING}-{INCOMING_PARENT}-01\n",
        f"00-{INCOMING}-{INCOMING_PARENT}",
        "0" * 100_000,
    ],
)
def test_a_traceparent_that_is_none_begins_a_new_trace(traceparent: str) -> None:
    context = Tracing(endpoint=None, ratio=1.0).new_trace(traceparent)
    assert context.trace_id != INCOMING
    assert len(context.trace_id) == 32
    assert context.parent_span_id is None


def test_a_later_version_of_traceparent_is_read() -> None:
    context = Tracing(endpoint=None, ratio=1.0).new_trace(f"01-{INCOMING}-{INCOMING_PARENT}-03-future")
    assert (context.trace_id, context.parent_span_id) == (INCOMING, INCOMING_PARENT)


def test_about_the_stated_part_of_new_traces_is_sampled(collector: Collector) -> None:
    with tracing_to(collector, ratio=0.1) as tracing:
        contexts = [tracing.new_trace(None) for _ in range(5_000)]
    assert 350 < sum(context.is_sampled for context in contexts) < 650
    assert len({context.trace_id for context in contexts}) == 5_000


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 502},
        {"status": 500, "attempts": ()},
        {"attempts": (an_attempt(outcome=Outcome.UPSTREAM_FAILED),)},
        {"attempts": (an_attempt(outcome=Outcome.WORKER_LOST),)},
    ],
)
def test_a_failed_request_is_kept_although_it_was_not_sampled(collector: Collector, failure: dict[str, object]) -> None:
    with tracing_to(collector, ratio=0.0) as tracing:
        context = tracing.new_trace(None)
        assert tracing.wants(context, is_failed=True)
        assert not tracing.wants(context, is_failed=False)
        tracing.finish(context, a_request(status=429))
        tracing.finish(context, a_request(**failure))
    servers = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [span.trace_id.hex() for span in servers] == [context.trace_id]
    assert servers[0].status.code == Status.STATUS_CODE_ERROR


def test_a_slow_request_is_kept_up_to_a_rate_although_it_was_not_sampled(collector: Collector) -> None:
    with tracing_to(collector, ratio=0.0) as tracing:
        context = tracing.new_trace(None)
        assert tracing.wants(context, is_failed=False, duration_ns=10_000_000_000)
        assert not tracing.wants(context, is_failed=False, duration_ns=9_999_000_000)
        tracing.finish(context, a_request(waited_ns=9_999_000_000))
        for _ in range(traces.MAX_SLOW_PER_SECOND + 5):
            tracing.finish(context, a_request(attempts=(), reserve=None, settle=None, waited_ns=10_000_000_000))
    assert len(collector.spans) == traces.MAX_SLOW_PER_SECOND
    assert {span.status.code for span in collector.spans} == {Status.STATUS_CODE_UNSET}


def test_an_attempt_has_the_span_id_that_its_provider_was_told(collector: Collector) -> None:
    attempts = (an_attempt(span_id="00f067aa0ba902b7"), an_attempt())
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request(attempts=attempts))
    ids = [span.span_id.hex() for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert "00f067aa0ba902b7" in ids
    assert len({span.span_id for span in collector.spans}) == 5


def test_what_became_of_spans_is_counted(collector: Collector) -> None:
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request())
        assert tracing.figures.made == 4
    assert (tracing.figures.sent, tracing.figures.failed) == (4, 0)


@pytest.mark.parametrize("status", sorted(otlp.RETRIED_STATUSES))
def test_an_export_is_sent_again_when_the_collector_asks_for_it(collector: Collector, status: int) -> None:
    collector.statuses = [status]
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request())
    assert len(collector.spans) == tracing.figures.sent == 4


@pytest.mark.parametrize("status", [302, 400, 500])
def test_spans_that_the_collector_does_not_take_are_counted_as_failed(collector: Collector, status: int) -> None:
    collector.statuses = [status]
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request())
    assert collector.spans == []
    assert (tracing.figures.sent, tracing.figures.failed) == (0, 4)


def test_what_is_remembered_of_one_request_is_not_said_of_another(collector: Collector) -> None:
    other = an_attempt(upstream_model="mistral-small", served_model="mistral-small", finish_reasons=("length", "stop"))
    with tracing_to(collector) as tracing:
        for request in (a_request(), a_request(key_id="key_2", request_id="req_2", attempts=(other,)), a_request()):
            tracing.finish(tracing.new_trace(None), request)
    servers = [attributes_of(span) for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    attempts = [attributes_of(span) for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert [span["meterhouse.key.id"] for span in servers] == ["key_1", "key_2", "key_1"]
    assert [span["gen_ai.request.model"] for span in attempts] == ["gpt-4o-mini", "mistral-small", "gpt-4o-mini"]
    assert [span["gen_ai.response.finish_reasons"] for span in attempts] == [["stop"], ["length", "stop"], ["stop"]]


def test_failed_requests_that_were_not_sampled_are_kept_up_to_a_rate(collector: Collector) -> None:
    with tracing_to(collector, ratio=0.0) as tracing:
        for second in (0, 1):
            for _ in range(traces.MAX_FAILED_PER_SECOND + 20):
                request = a_request(status=502, attempts=(), reserve=None, settle=None, interval=at(0, second * 1_000))
                tracing.finish(tracing.new_trace(None), request)
    assert len(collector.spans) == 2 * traces.MAX_FAILED_PER_SECOND


def test_no_secret_in_a_model_name_or_an_error_leaves(collector: Collector) -> None:
    attempt = an_attempt(upstream_model=SECRET, served_model=SECRET, error_type=SECRET, finish_reasons=(SECRET,))
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request(attempts=(attempt,), error_type=SECRET))
    assert len(collector.spans) == 4
    assert not [export for export in collector.exports if b"Zx81" in export.SerializeToString()]


def test_a_long_name_is_cut(collector: Collector) -> None:
    with tracing_to(collector) as tracing:
        tracing.finish(tracing.new_trace(None), a_request(attempts=(an_attempt(upstream_model="m" * 100_000),)))
    assert max(len(export.SerializeToString()) for export in collector.exports) < 4_000


def test_without_an_endpoint_nothing_is_made_but_ids_are() -> None:
    tracing = Tracing(endpoint=None, ratio=1.0)
    context = tracing.new_trace(None)
    assert not context.is_sampled
    assert len(context.trace_id) == 32
    assert not tracing.wants(context, is_failed=True)
    tracing.finish(context, a_request(status=500))
    tracing.close()


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_a_dead_collector_never_blocks_a_request(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracing, "CLOSE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if kind == "refusing":
            listener.close()
        tracing = Tracing(endpoint=f"http://127.0.0.1:{port}/v1/traces", ratio=1.0)
        slowest = 0.0
        for _ in range(1_500):
            began = time.monotonic()
            tracing.finish(tracing.new_trace(None), a_request())
            finished = time.monotonic()
            slowest = max(slowest, finished - began)
        tracing.close()
        closed = time.monotonic()
    # One export waits for EXPORT_TIMEOUT_SECONDS (5) before it gives up, and 6,000 spans are 11 exports.
    assert slowest < 3.0
    assert closed - finished < 3.0
