"""What is wrong with a legacy completion, before its stream and inside of it, and clients that leave."""

import json
from typing import Any

import pytest

from api.asking import Tenant, error_of
from failure.raw_client import Client
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.usage import Exactness, Outcome

PROVIDERS = ["fake", "deepseek"]


def ask(gateway: Gateway, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    return gateway.request("POST", "/v1/completions", {"model": "fake/normal", "prompt": "Hello", **fields})


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_type"),
        ({"prompt": ["a"] * 129}, "prompt", "invalid_value"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"best_of": 21}, "best_of", "invalid_value"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"best_of": 3, "stream": True}, "best_of", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ],
)
def test_what_cannot_be_is_refused(both: Gateway, fields: dict[str, Any], param: str, code: str) -> None:
    status, _, body = ask(both, **fields)
    error = error_of(body)
    assert (status, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"suffix": "!"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_a_chat_cannot_say_is_refused_only_where_it_is_a_chat(
    both: Gateway, fields: dict[str, Any], param: str
) -> None:
    assert ask(both, **fields)[0] == 200
    status, _, body = ask(both, model="deepseek/normal", **fields)
    assert (status, error_of(body)["param"]) == (400, param)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", [{"role": "user", "content": "Hello"}]),
        ("max_completion_tokens", 90_000),
        ("tools", [{"type": "web_search"}]),
        ("web_search_options", {}),
        ("audio", {"voice": {"id": "voice_1"}}),
    ],
)
def test_what_only_a_chat_has_is_refused_whoever_answers(both: Gateway, provider: str, name: str, value: Any) -> None:
    status, _, body = ask(both, model=f"{provider}/normal", **{name: value})
    error = error_of(body)
    assert (status, error["param"], error["code"]) == (400, name, "unsupported_parameter")
    assert ask(both, model=f"{provider}/normal", **{name: None})[0] == 200


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_tier_without_a_price_is_refused_for_a_budget(both: Gateway, provider: str) -> None:
    both.set_price(provider, "normal?tokens=9", "1", "4")
    body = {"model": f"{provider}/normal?tokens=9", "prompt": "Hello", "service_tier": "performance"}
    tenant = Tenant(both, limits="spend 1 USD total")
    status, _, answer = both.request("POST", "/v1/completions", body, key=tenant.key)
    assert (status, error_of(answer)["param"]) == (402, "service_tier")
    body["service_tier"] = "default"
    assert both.request("POST", "/v1/completions", body, key=tenant.key)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("script", "status"), [("error-500", 502), ("error-400", 400), ("error-first", 502)])
def test_a_failure_before_the_first_event_has_its_status(
    both: Gateway, provider: str, script: str, status: int, stream: bool
) -> None:
    if script == "error-first" and not stream:
        return
    answered, headers, body = ask(both, model=f"{provider}/{script}", stream=stream)
    assert answered == status, error_of(body)
    (record,) = both.records(headers["x-request-id"])
    assert record.charge_nanos == record.usage.output_tokens == 0


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("script", ["error-mid", "eof-early", "eof-early-done", "stall", "finish-missing"])
def test_a_failure_in_the_stream_is_its_last_event(both: Gateway, hasty: Gateway, provider: str, script: str) -> None:
    asked = hasty if script == "stall" else both
    status, headers, body = ask(asked, model=f"{provider}/{script}", stream=True)
    *_, last = body.removesuffix(b"\n\n").split(b"\n\n")
    assert status == 200
    assert b"[DONE]" not in body
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "upstream_error"
    (record,) = asked.records(headers["x-request-id"])
    # What the provider reported counts, although the answer had no end.
    exactness = Exactness.REPORTED if script == "finish-missing" else Exactness.COUNTED
    assert (record.outcome, record.exactness) == (Outcome.UPSTREAM_FAILED, exactness)
    assert record.usage.output_tokens == (16 if script == "finish-missing" else 5)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_client_that_leaves_pays_for_what_came(both: Gateway, up: FakeUpstream, provider: str) -> None:
    marker = f"leaves-{provider}"
    body = {
        "model": f"{provider}/infinite?pace_ms=5",
        "prompt": f"Go marker={marker}",
        "max_tokens": 100_000,
        "stream": True,
    }
    client = Client(both.url, both.key, body, path="/v1/completions")
    client.read_until(lambda c: c.body.count(b"data: ") >= 5)
    client.reset()
    up.wait_for(lambda truth: truth.by_marker(marker)[0].ended_by == "client_gone")
    (record,) = both.records(client.headers["x-request-id"])
    sent = up.truth.by_marker(marker)[0].tokens
    assert record.outcome is Outcome.CLIENT_GONE
    assert 5 <= record.usage.output_tokens <= sent
