"""A collector that is away, hangs, is slow or fails costs a request nothing and the process little."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from meterhouse.telemetry import otlp
from meterhouse.telemetry.otlp import MAX_QUEUED_REQUESTS
from meterhouse.telemetry.traces import Interval, RequestSpans, Tracing

REQUESTS = 20
WAIT_SECONDS = 30.0
"""Nothing takes as long on a busy machine; whoever waited for the collector would take twice as long."""


@contextmanager
def answering(status: int, after_seconds: float, heard: list[bytes] | None = None) -> Iterator[int]:
    """Answer every export late, or with an error."""
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if heard is not None:
                heard.append(body)
            is_over.wait(after_seconds)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent() -> Iterator[int]:
    """Take connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def refusing() -> Iterator[int]:
    """Listen nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield port


KINDS = {
    "hangs": silent,
    "is away": refusing,
    "is slow and fails": lambda: answering(503, 0.5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_answered_as_if_it_were_there(
    kind: str, up: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracing, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(otlp, "EXPORT_TIMEOUT_SECONDS", 2 * WAIT_SECONDS)
    with ExitStack() as stack:
        port = stack.enter_context(KINDS[kind]())
        settings = {"METERHOUSE_OTLP_ENDPOINT": f"http://127.0.0.1:{port}/v1/traces", "METERHOUSE_TRACE_RATIO": "1"}
        gateway = Gateway(tmp_path / "data", provider_environment("fake", up.base_url, **settings))
        with gateway:
            slowest = 0.0
            for number in range(REQUESTS):
                began = time.monotonic()
                assert gateway.chat("fake/normal", stream=bool(number % 2))[0] == 200
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < WAIT_SECONDS
            give_up_at = time.monotonic() + WAIT_SECONDS
            while gateway.parts.tracing.figures.made < 4 * REQUESTS and time.monotonic() < give_up_at:
                time.sleep(0.005)  # the last ones are told of a moment after their answers
            assert gateway.parts.tracing.figures.made >= 4 * REQUESTS
            stopping = time.monotonic()
        assert time.monotonic() - stopping < WAIT_SECONDS


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    with silent() as port:
        tracing = Tracing(endpoint=f"http://127.0.0.1:{port}/v1/traces", ratio=1.0)
        request = RequestSpans(
            request_id="req_1", method="GET", route="/", status=200, interval=Interval(start_ns=1, end_ns=2)
        )
        for _ in range(2 * MAX_QUEUED_REQUESTS):
            tracing.finish(tracing.new_trace(None), request)
        assert len(tracing._writer._processor._batch_processor._queue) <= MAX_QUEUED_REQUESTS
        tracing.CLOSE_SECONDS = 0.1  # type: ignore[misc]
        tracing.close()


def test_a_batch_that_is_answered_too_late_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "EXPORT_TIMEOUT_SECONDS", 0.5)
    heard: list[bytes] = []
    with answering(200, WAIT_SECONDS, heard) as port:
        tracing = Tracing(endpoint=f"http://127.0.0.1:{port}/v1/traces", ratio=1.0)
        request = RequestSpans(
            request_id="req_1", method="GET", route="/", status=200, interval=Interval(start_ns=1, end_ns=2)
        )
        tracing.finish(tracing.new_trace(None), request)
        tracing.CLOSE_SECONDS = WAIT_SECONDS  # type: ignore[misc]
        tracing.close()
        assert tracing.figures.failed == 1
    assert len(heard) == 1
