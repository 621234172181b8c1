"""A fault of ours is a 500 that tells the caller nothing of it, and the log everything."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.asking import Tenant, error_of, events_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import word
from meterhouse.http.alike import AlikeChunks
from meterhouse.http.guard import Guard
from meterhouse.http.relay import StreamRelay
from meterhouse.providers.routes import Snapshot

SECRET_TEXT = "internal-detail-canary"


class BrokenSnapshot:
    """A part of the gateway that fails in a way that nobody foresaw."""

    def __getattr__(self, name: str) -> object:
        raise ZeroDivisionError(SECRET_TEXT)


@contextmanager
def broken_routes(gateway: Gateway) -> Iterator[None]:
    routes = gateway.parts.supply.routes
    good: Snapshot = routes.snapshot
    gateway.call(lambda: routes.replace(BrokenSnapshot()))  # type: ignore[arg-type]
    try:
        yield
    finally:
        gateway.call(lambda: routes.replace(good))


def assert_hides_the_cause(status: int, headers: dict[str, str], body: bytes) -> None:
    error = error_of(body)
    assert (status, error["type"]) == (500, "server_error")
    assert SECRET_TEXT not in f"{headers}{body!r}"
    assert "ZeroDivision" not in f"{headers}{body!r}"
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("stream", [False, True])
def test_an_unforeseen_fault_is_a_500_in_the_envelope(gateway: Gateway, stream: bool) -> None:
    with broken_routes(gateway):
        answer = gateway.chat("fake/normal", stream=stream)
    assert_hides_the_cause(*answer)
    assert gateway.chat("fake/normal", stream=stream)[0] == 200


def test_an_unforeseen_fault_of_an_ordinary_page_is_a_500_in_the_envelope(gateway: Gateway) -> None:
    with broken_routes(gateway):
        answer = gateway.request("GET", "/v1/models")
    assert_hides_the_cause(*answer)


def test_the_log_says_what_happened(tmp_path: Path) -> None:
    # A gateway of its own: where a process logs to is settled by the one that was opened last.
    with Gateway(tmp_path / "data") as gateway:
        with broken_routes(gateway):
            _, headers, _ = gateway.chat("simulator-instant")
        deadline = time.monotonic() + 60
        names: set[str] = set()
        while names != {"request.failed", "request.finished"}:
            assert time.monotonic() < deadline, names
            lines = [line for line in gateway.log_lines() if line.get("request_id") == headers["x-request-id"]]
            names = {str(line["event"]) for line in lines}
    assert any(SECRET_TEXT in json.dumps(line) for line in lines)


def test_a_fault_after_the_head_ends_the_stream_with_an_error_event_and_one_record(
    gateway: Gateway, up: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, messages = marked()
    tenant = Tenant(gateway, limits="concurrent 5")
    genuine_take, genuine_begin = StreamRelay._take, Guard.begin
    seen: list[bytes] = []

    def take(relay: StreamRelay, payloads: list[bytes]) -> list[bytes]:
        seen.extend(payloads)
        return genuine_take(relay, payloads)

    def fail_later(guard: Guard) -> None:
        if word(marker, 0).encode() in b"".join(seen):
            raise ZeroDivisionError(SECRET_TEXT)
        genuine_begin(guard)

    monkeypatch.setattr(AlikeChunks, "learn", lambda *_: None)  # so that each chunk is seen
    monkeypatch.setattr(StreamRelay, "_take", take)
    monkeypatch.setattr(Guard, "begin", fail_later)
    # The provider stands at its gate until it is hung up on, however busy the machine is.
    model = "fake/normal?tokens=40&gate=20"
    status, headers, body = gateway.chat(model, key=tenant.key, messages=messages, stream=True)
    assert status == 200
    *chunks, last = events_of(body)
    assert chunks
    assert error_of(last)["type"] == "server_error"
    assert SECRET_TEXT.encode() not in body
    (record,) = gateway.records(headers["x-request-id"])
    assert record.usage.output_tokens >= 1
    assert [limit["reserved"] for limit in gateway.limits(tenant.key)] == [0]
    up.wait_for(lambda truth: truth.by_marker(marker)[0].ended_by == "client_gone")
