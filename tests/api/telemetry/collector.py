"""A collector of traces: OTLP over HTTP on a real socket, decoded with OpenTelemetry's own messages."""

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from fakes.gateway import Gateway
from meterhouse.telemetry.otlp import OtlpSpanWriter


@dataclass(frozen=True)
class Received:
    """One span as it arrived; ids in hexadecimal, the parent empty where there is none."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    attributes: dict[str, Any]
    is_error: bool
    start_ns: int
    end_ns: int


class Collector:
    """Keeps every span that is exported to it, and the raw bytes."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.raw: list[bytes] = []
        self._changed = threading.Condition()
        self._flushes: list[Callable[[], object]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        """What ``METERHOUSE_OTLP_ENDPOINT`` takes."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def take(self, body: bytes) -> None:
        """Decode an export."""
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.raw.append(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans += [_received(span) for span in scope.spans]
            self._changed.notify_all()

    def flush_with(self, gateway: Gateway) -> None:
        """Let a gateway export at once whenever something is waited for, instead of once a second."""
        writer = gateway.parts.tracing._writer
        assert isinstance(writer, OtlpSpanWriter)
        self._flushes.append(writer._processor.force_flush)

    def wait_for(self, predicate: Callable[[list[Received]], Any], seconds: float = 60) -> Any:
        """Wait until something holds of the spans; returns what it gave."""
        deadline = time.monotonic() + seconds
        while True:
            with self._changed:
                if found := predicate(self.spans):
                    return found
            assert time.monotonic() < deadline, [(span.name, span.attributes) for span in self.spans]
            for flush in self._flushes:
                flush()
            with self._changed:
                self._changed.wait(0.02)

    def tree(self, request_id: str) -> tuple[Received, list[Received]]:
        """Wait for the server span of a request, and return it with its children."""

        def find(spans: list[Received]) -> Any:
            roots = [span for span in spans if span.attributes.get("meterhouse.request.id") == request_id]
            return roots and (roots, [span for span in spans if span.parent_id == roots[0].span_id])

        # The children are queued before their parent's end, so they never come later.
        roots, children = self.wait_for(find)
        assert len(roots) == 1
        return roots[0], children


def _received(span: Any) -> Received:
    attributes = {item.key: _value(item.value) for item in span.attributes}
    return Received(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        attributes=attributes,
        is_error=span.status.code == 2,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
