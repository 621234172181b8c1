"""How spans are sent: by OTLP over HTTP, from a thread of its own.

The event loop queues what is known of a request and makes nothing of it; the thread of the SDK's batch processor makes
the messages (``spans``) and sends them. The queue is bounded and drops, and a collector that is away costs a request
nothing.
"""

import socket
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.spans import SpanMaker, request_of, scope_spans
from meterhouse.telemetry.traces import RequestSpans, SpanFigures, TraceContext

MAX_QUEUED_REQUESTS = 1_024
MAX_BATCH_REQUESTS = 256
EXPORT_EVERY_MS = 1_000
EXPORT_TIMEOUT_SECONDS = 5.0
RETRIES = 2
"""After an answer that asks for it, at once and a second later; a connection that fails is tried once more at once."""
RETRIED_STATUSES = frozenset({429, 502, 503, 504})

_SUCCESS = range(200, 300)
_RESOURCE_SPANS = ExportTraceServiceRequest(resource_spans=[ResourceSpans()]).SerializeToString()[:-1]


class OtlpSpanWriter:
    """Implements ``traces.SpanWriter`` on the SDK's batch processor."""

    def __init__(self, *, endpoint: str, headers: Mapping[str, str], service_name: str) -> None:
        self._made = 0
        resource = Resource(
            {
                "service.name": service_name,
                "service.version": version("meterhouse"),
                "service.instance.id": socket.gethostname(),
            }
        )
        self._exporter = _Exporter(endpoint, headers, resource)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_QUEUED_REQUESTS,
            max_export_batch_size=MAX_BATCH_REQUESTS,
            schedule_delay_millis=EXPORT_EVERY_MS,
        )

    @property
    def figures(self) -> SpanFigures:
        """How many spans were made and sent, since the start."""
        return SpanFigures(self._made, self._exporter.sent, self._exporter.failed)

    def write(self, context: TraceContext, request: RequestSpans) -> None:
        """Queue what the spans are made of: no I/O, about 5 us."""
        self._made += 1 + len(request.attempts) + (request.reserve is not None) + (request.settle is not None)
        self._processor.on_end(_Finished(context, request))

    def close(self, timeout_seconds: float) -> None:
        """Send what is queued. A collector that does not answer is given up after the time stated."""
        # The SDK waits 30 s for its own thread; a thread between us and it lets us stop waiting earlier.
        closing = threading.Thread(target=self._processor.shutdown, name="spans-close", daemon=True)
        closing.start()
        closing.join(timeout_seconds)


class _Finished(ReadableSpan):
    """A request as the SDK queues it, with all that the messages of its spans say.

    Of a span the SDK asks here only whether it is sampled; what else it would be made of, nobody reads.
    """

    _context = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    def __init__(self, trace: TraceContext, request: RequestSpans) -> None:  # the SDK's own is left out on purpose
        self.trace = trace
        self.request = request


class _Exporter(SpanExporter):
    """Makes the messages of a batch, sends them, and counts what became of them."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], resource: Resource) -> None:
        self._endpoint = endpoint
        self._session = _open_session(headers)
        self._maker = SpanMaker()
        resource_message = resource_pb2.Resource(
            attributes=[
                common_pb2.KeyValue(key=name, value=common_pb2.AnyValue(string_value=str(value)))
                for name, value in resource.attributes.items()
            ]
        )
        self._resource_spans = ResourceSpans(resource=resource_message)
        scope = common_pb2.InstrumentationScope(name="meterhouse", version=version("meterhouse"))
        self._scope_spans = ScopeSpans(scope=scope)
        self._is_failing = False
        self.sent = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        messages: list[bytes] = []
        for finished in spans:
            assert isinstance(finished, _Finished)
            messages += self._maker.make(finished.trace, finished.request)
        scope = scope_spans(self._scope_spans, messages)
        failure = self._send(request_of(self._resource_spans, _RESOURCE_SPANS, scope))
        if failure is None:
            self.sent += len(messages)
        else:
            self.failed += len(messages)
            if not self._is_failing:
                # Once, not for each batch: the metric says how many.
                get_logger().warning(Event.SPANS_UNSENT, detail=failure)
        self._is_failing = failure is not None
        return SpanExportResult.SUCCESS if failure is None else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._session.close()

    def _send(self, body: bytes) -> str | None:
        """Send a batch; return why it could not be, if so."""
        try:
            try:
                answer = self._post(body)
            except requests.ConnectionError:
                # A connection that was kept may have been closed by the other side meanwhile.
                answer = self._post(body)
        except requests.RequestException as error:
            return type(error).__name__
        return None if answer.status_code in _SUCCESS else f"status {answer.status_code}"

    def _post(self, body: bytes) -> requests.Response:
        return self._session.post(self._endpoint, data=body, timeout=EXPORT_TIMEOUT_SECONDS, allow_redirects=False)


def _open_session(headers: Mapping[str, str]) -> requests.Session:
    retry = Retry(
        total=RETRIES,
        connect=0,
        read=False,  # no connection's failure: a collector that is merely slow has got the batch
        backoff_factor=0.5,
        status_forcelist=RETRIED_STATUSES,
        allowed_methods={"POST"},
        # A collector may not hold the thread for as long as it likes.
        respect_retry_after_header=False,
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers.update({"Content-Type": "application/x-protobuf"})
    session.headers.update(headers)
    return session
