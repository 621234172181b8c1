"""Busy for now, ours or a provider's: come back later."""

import json
import time
from pathlib import Path

import pytest

from api.asking import error_of, events_of, marked, text_of
from failure.raw_client import Client as RawClient
from failure.raw_client import ask
from fakes.exchange import Exchange
from fakes.files import FaultyFiles
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from fakes.words import answer_text


@pytest.mark.parametrize(("model", "seconds"), [("rate-limited", "1"), ("error-429?retry_after=7", "7")])
def test_a_busy_provider_says_when_to_come_back(gateway: Gateway, model: str, seconds: str) -> None:
    status, headers, body = gateway.chat(f"fake/{model}")
    assert (status, error_of(body)["code"]) == (503, "upstream_busy")
    assert headers["retry-after"] == seconds
    assert headers["retry-after-ms"] == f"{seconds}000"


def test_a_busy_provider_that_does_not_say_when_gets_a_default(gateway: Gateway) -> None:
    _, headers, _ = gateway.chat("fake/error-429")
    assert int(headers["retry-after"]) >= 1


def test_a_deployment_that_keeps_failing_is_left_alone_for_a_while(gateway: Gateway, up: FakeUpstream) -> None:
    marker, messages = marked()
    model = "fake/error-500?pace_ms=77"
    for _ in range(5):
        assert gateway.chat(model, messages=messages)[0] == 502
    status, headers, body = gateway.chat(model, messages=messages)
    assert (status, error_of(body)["code"]) == (502, "upstream_unavailable")
    assert 1 <= int(headers["retry-after"]) <= 5
    assert len(up.truth.by_marker(marker)) == 5
    assert gateway.chat("fake/normal", messages=messages)[0] == 200, "the others are not affected"


def test_a_body_whose_record_cannot_be_made_durable_is_not_sent_and_not_to_be_retried(
    up: FakeUpstream, tmp_path: Path
) -> None:
    files = FaultyFiles()
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url), files=files) as gateway:
        assert gateway.chat("fake/normal")[0] == 200
        files.fail_syncs()
        status, headers, body = gateway.chat("fake/normal")
        assert (status, error_of(body)["code"]) == (503, "ledger_unavailable")
        assert headers["x-should-retry"] == "false"
        files.heal()


def test_a_stream_whose_record_cannot_be_made_durable_has_its_text_and_an_error_for_its_end(
    up: FakeUpstream, tmp_path: Path
) -> None:
    files = FaultyFiles()
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url), files=files) as gateway:
        for model in ("fake/normal?tokens=3", "fake/one-write?tokens=3"):
            deadline = time.monotonic() + 60
            while gateway.chat("fake/normal")[0] != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            marker, messages = marked()
            files.fail_syncs()
            status, _, body = gateway.chat(model, messages=messages, stream=True)
            files.heal()
            assert status == 200
            *chunks, last = events_of(body)
            assert text_of([json.loads(chunk) for chunk in chunks]) == answer_text(marker, 3)
            assert error_of(last)["code"] == "ledger_unavailable"


async def give_all_at_once(x: Exchange) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    text = {"id": "c", "choices": [{"index": 0, "delta": {"content": "All."}}]}
    finish = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    await x.hold("the answer")
    await x.head(200, {"content-type": "text/event-stream"})
    await x.emit(f"data: {json.dumps(text)}\n\ndata: {json.dumps(finish)}\n\ndata: [DONE]\n\n".encode())
    await x.end()


def test_a_client_that_left_before_anything_was_sent_has_the_status_of_what_went_wrong(
    up: FakeUpstream, tmp_path: Path
) -> None:
    files = FaultyFiles()
    up.script("all-at-once", give_all_at_once)
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url), files=files) as gateway:
        pacer = gateway.parts.inference.pacer
        client = RawClient(gateway.url, gateway.key, ask("fake/all-at-once", stream=True))
        deadline = time.monotonic() + 60
        while not (calls := [call for call in gateway.call(lambda: pacer.calls) if call.is_watched]):
            assert time.monotonic() < deadline
        files.hold_syncs()
        up.wait_for(lambda truth: truth.attempts[-1].is_held)
        up.release(name="all-at-once")
        files.wait_until_held()
        client.leave()
        while not calls[0].outlet.is_gone:
            assert time.monotonic() < deadline
        files.fail_syncs()
        files.release_syncs()
        while not (lines := [line for line in gateway.log_lines() if line["event"] == "request.finished"]):
            assert time.monotonic() < deadline
        # A look of the pacer's may have come between, and sent the text.
        assert (lines[0]["error_code"], lines[0]["status"] in {200, 503}) == ("ledger_unavailable", True)
        files.heal()
