"""Providers and callers that would cheat the counting, or make one request everybody's trouble."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from failure.bench import Bench, new_marker
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.usage import Outcome

SETTINGS = {"METERHOUSE_TAIL_SECONDS": "1", "METERHOUSE_MAX_BODY_BYTES": "2000000"}


def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return (
        b"data: " + json.dumps({"id": "c1", "created": 1, "model": "m", "choices": choices, **more}).encode() + b"\n\n"
    )


def script(up: FakeUpstream, name: str, events: Sequence[bytes]) -> str:
    """Make the provider send these events and end; returns the model to ask for."""

    async def answer(x: Exchange) -> None:
        await x.head(200, {"content-type": "text/event-stream"})
        for piece in events:
            await x.emit(piece)
        await x.end()

    up.script(name, answer)
    return f"fake/{name}"


@pytest.mark.parametrize(
    "delta",
    [
        {
            "tool_calls": [
                {"index": 0, "id": "call_1", "type": "custom", "custom": {"name": "run", "input": "x" * 9_000}}
            ]
        },
        {"reasoning_details": [{"type": "reasoning.text", "text": "x" * 9_000}]},
    ],
    ids=["custom tool", "a field that nobody knows"],
)
def test_what_a_model_writes_counts_whatever_it_is_called(
    bench: Bench, gateway: Gateway, up: FakeUpstream, delta: dict[str, Any]
) -> None:
    name = f"unseen-{'tool' if 'tool_calls' in delta else 'other'}"
    model = script(up, name, [event(delta), event({}, "stop"), b"data: [DONE]\n\n"])
    bench.set_prices([name])
    client = bench.send(model, new_marker(), key=gateway.new_key("spend 1 USD/month")).read_all()
    (record,) = bench.records_of(client)
    assert record.outcome is Outcome.COMPLETED
    assert record.usage.output_tokens > 100


def test_an_empty_finish_reason_is_none(bench: Bench, up: FakeUpstream) -> None:
    words = [event({"content": f" {number}"}, "") for number in range(40)]
    model = script(up, "empty-finish", [*words, event({}, "stop"), b"data: [DONE]\n\n"])
    client = bench.send(model, new_marker()).read_all()
    assert client.has_done
    assert client.text == "".join(f" {number}" for number in range(40))


def test_a_provider_that_goes_on_after_its_end_is_hung_up_on(bench: Bench, up: FakeUpstream) -> None:
    flood = event({"content": "y" * 50_000})

    async def answer(x: Exchange) -> None:
        await x.head(200, {"content-type": "text/event-stream"})
        await x.emit(event({"content": "Hi"}))
        await x.emit(event({}, "stop"))
        for _ in range(400):
            await x.emit(flood)
        await x.end()

    up.script("flood", answer)
    marker = new_marker()
    client = bench.send("fake/flood", marker).read_all()
    assert client.has_done
    assert len(client.body) < 3_000_000
    assert bench.records_of(client)[0].outcome is Outcome.COMPLETED


def test_a_long_error_keeps_its_status_and_opens_no_breaker(bench: Bench, gateway: Gateway, up: FakeUpstream) -> None:
    async def answer(x: Exchange) -> None:
        body = json.dumps({"error": {"message": "z" * 200_000, "code": "too_long"}}).encode()
        await x.whole(400, "application/json", body)

    up.script("long-error", answer)
    assert {gateway.chat("fake/long-error")[0] for _ in range(8)} == {400}


def test_an_overlong_model_name_does_not_cost_the_record(bench: Bench, up: FakeUpstream) -> None:
    model = script(
        up, "long-name", [event({"content": "Hi"}, model="n" * 300_000), event({}, "stop"), b"data: [DONE]\n\n"]
    )
    client = bench.send(model, new_marker()).read_all()
    (record,) = bench.records_of(client)
    assert (record.outcome, len(record.served_model)) == (Outcome.COMPLETED, 256)


def test_text_without_blanks_is_counted_in_bounded_time(bench: Bench, up: FakeUpstream) -> None:
    model = script(up, "chinese", [event({"content": "好" * 1_000}) for _ in range(30)])
    began = time.monotonic()
    bench.send(model, new_marker()).read_all()
    other = bench.send("fake/normal?usage=missing&tokens=20", new_marker()).read_all()
    assert other.has_done
    assert time.monotonic() - began < 5


def test_zeros_before_the_text_are_no_usage(bench: Bench, up: FakeUpstream) -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    model = script(
        up, "zeros-first", [event({"role": "assistant"}, usage=zeros), event({"content": " word"}), event({}, "stop")]
    )
    (record,) = bench.records_of(bench.send(model, new_marker()).read_all())
    assert record.usage.input_tokens > 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools[0]"),
    ],
)
def test_objects_stored_upstream_cannot_be_named(
    gateway: Gateway, up: FakeUpstream, fields: dict[str, Any], param: str
) -> None:
    before = len(up.attempts)
    status, _, body = gateway.chat("fake/normal", **fields)
    error = json.loads(body)["error"]
    assert (status, error["param"], error["code"]) == (400, param, "unsupported_parameter")
    assert len(up.attempts) == before


def test_a_number_that_is_none_is_a_400(gateway: Gateway) -> None:
    body = (
        b'{"model": "fake/normal", "messages": [{"role": "user", "content": "Hi"}], "stream": true,'
        b' "stream_options": {"x": 1e999}}'
    )
    assert gateway.request("POST", "/v1/chat/completions", body)[0] == 400


def test_a_service_tier_without_a_price_is_refused_for_a_budget(bench: Bench, gateway: Gateway) -> None:
    bench.set_prices(["normal"])
    key = gateway.new_key("spend 1 USD/month")
    status, _, body = gateway.chat("fake/normal", key=key, service_tier="priority")
    assert (status, json.loads(body)["error"]["param"]) == (402, "service_tier")
    assert gateway.chat("fake/normal", key=key, service_tier="default")[0] == 200


@pytest.mark.parametrize("limits", ["spend 1 USD/month", "tokens 100000 total"])
def test_a_provider_that_ignores_max_tokens_is_cut_when_the_whole_allowance_is_used(
    bench: Bench, gateway: Gateway, up: FakeUpstream, limits: str
) -> None:
    name = "ignores-max-tokens"
    words = [event({"content": " another"}) for _ in range(3_000)]
    model = script(up, name, [*words, event({}, "stop"), b"data: [DONE]\n\n"])
    bench.set_prices([name])
    client = bench.send(model, new_marker(), key=gateway.new_key(limits), max_tokens=1_500).read_all()
    assert client.finish_reasons == ["length"]
    assert client.has_done
    (record,) = bench.records_of(client)
    assert record.outcome is Outcome.CUT
    assert record.usage.output_tokens <= 1_500
    assert 0 < client.text.count("another") <= 1_500
