"""What an open stream keeps, and what is done for it while nothing is due: little, because there are thousands."""

import gc
import json
import threading
import time
from collections.abc import Iterator

import pytest

from api.asking import Tenant, chunks_of, marked, text_of
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.http.call import Call
from meterhouse.http.relay import StreamRelay
from meterhouse.ids import public_request_id

PATIENCE_SECONDS = 60
SECOND_NS = 1_000_000_000


@pytest.fixture
def call(gateway: Gateway, up: FakeUpstream) -> Iterator[Call]:
    """A stream that has begun and stands, half of its answer sent."""
    marker, messages = marked()
    tenant = Tenant(gateway, limits="requests 1000/minute; concurrent 5")
    asking = threading.Thread(
        target=lambda: gateway.chat("fake/normal?gate=3&tokens=6", key=tenant.key, messages=messages, stream=True)
    )
    asking.start()
    up.wait_for(lambda truth: any(attempt.is_held for attempt in truth.by_marker(marker)))
    calls = gateway.call(lambda: gateway.parts.inference.pacer.calls)
    (found,) = [call for call in calls if call.tally.principal.key_id == tenant.key_id]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not gateway.call(lambda: found.has_let_go):
        assert time.monotonic() < deadline
    yield found
    up.release(name="normal")
    asking.join(PATIENCE_SECONDS)


def test_what_only_the_beginning_needed_is_let_go(gateway: Gateway, call: Call) -> None:
    assert call.is_watched
    assert call.scope["headers"] == []
    assert call.tally.reservation.states == ()
    assert call.asked.messages == []
    assert call.asked.packed is not None  # to be counted, should no usage come
    assert gateway.call(lambda: len(call.tally.attempt.text)) > 0  # to be counted, should no usage come


def test_the_head_is_not_kept_once_it_is_sent(gateway: Gateway, call: Call) -> None:
    mine = (b"x-request-id", public_request_id(call.tally.request_id).encode())
    dictionaries = [thing for thing in gateway.call(gc.get_objects) if isinstance(thing, dict)]
    assert not [one for one in dictionaries if one.get("type") == "http.response.start" and mine in one["headers"]]


def test_text_that_comes_alone_is_passed_on_and_counted_while_the_task_sleeps(
    gateway: Gateway, up: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is woken costs more than all else that is done with a token."""
    words = ["one", " two", " three", " four", " five"]
    genuine, woken_for = StreamRelay._take, list[bytes]()
    tenant = Tenant(gateway, limits="tokens 1000000 total")

    def take(relay: StreamRelay, payloads: list[bytes]) -> list[bytes]:
        woken_for.extend(payloads)
        return genuine(relay, payloads)

    async def run(x: Exchange) -> None:
        await x.head(200, {"content-type": "text/event-stream"})
        for word in words:
            await x.emit(b"data: " + json.dumps({"id": "c", "choices": [choice({"content": word})]}).encode() + b"\n\n")
            await x.hold("a word")
        await x.emit(b"data: " + json.dumps({"id": "c", "choices": [choice({}, "stop")]}).encode() + b"\n\n")
        await x.emit(b"data: [DONE]\n\n")
        await x.end()

    up.script("word-by-word", run)
    monkeypatch.setattr(StreamRelay, "_take", take)
    heard = b""
    answer = gateway.client(tenant.key).chat.completions.with_streaming_response.create(
        model="fake/word-by-word", messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    with answer as response:
        for line in response.iter_lines():
            heard += line.encode() + b"\n"
            if line.startswith("data: {") and '"stop"' not in line:
                up.wait_for(lambda truth: truth.attempts[-1].is_held)
                up.release(name="word-by-word")
    assert text_of(chunks_of(heard)) == "".join(words)
    assert not [payload for payload in woken_for for word in words[1:] if f'"{word}"'.encode() in payload]
    (record,) = gateway.records(response.headers["x-request-id"])
    assert record.usage.output_tokens == len(words)


def choice(delta: dict[str, str], reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def test_it_is_looked_at_when_something_can_be_due(gateway: Gateway, call: Call) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    pace = gateway.parts.inference.pacer.pace
    while (ahead_ns := gateway.call(lambda: call.look_at_ns - call.outlet.wrote_at_ns)) <= 0:
        assert time.monotonic() < deadline
    least = min(pace.keep_alive, call.timeouts.idle_seconds, call.timeouts.total_seconds)
    assert ahead_ns <= least * SECOND_NS + SECOND_NS
