"""Refusals and failures as Anthropic's SDK meets them: its classes, its types, our codes."""

import json
from typing import Any

import anthropic
import pytest

from api.messages.asking import Wires, events_of, marked
from fakes.gateway import Gateway
from meterhouse.usage import Exactness, Outcome


def ask(client: anthropic.Anthropic, model: str, **fields: Any) -> anthropic.types.Message:
    _, messages = marked()
    return client.messages.create(**{"model": model, "max_tokens": 50, "messages": messages, **fields})


def caught(client: anthropic.Anthropic, model: str, **fields: Any) -> anthropic.APIStatusError:
    with pytest.raises(anthropic.APIStatusError) as found:
        ask(client, model, **fields)
    error = found.value
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert error.body["type"] == "error"  # type: ignore[index]
    assert error.body["request_id"] == error.request_id  # type: ignore[index]
    return error


def with_key(gateway: Gateway, key: str, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway.url, api_key=key, **{"max_retries": 0, **options})


def test_a_wrong_key(gateway: Gateway) -> None:
    with with_key(gateway, "sk-ant-wrong") as client:
        error = caught(client, "fake/normal")
    assert isinstance(error, anthropic.AuthenticationError)
    assert (error.type, error.error_code) == ("authentication_error", "invalid_api_key")


def test_two_keys_that_differ(gateway: Gateway) -> None:
    status, _, body = gateway.request("POST", "/v1/messages", {}, headers={"x-api-key": "sk-other"})
    assert (status, json.loads(body)["error"]["details"]["error_code"]) == (400, "ambiguous_credentials")


def test_a_model_that_the_key_may_not_use_and_one_that_nobody_has(gateway: Gateway) -> None:
    with with_key(gateway, gateway.new_key(models=frozenset({"simulator", "gone"}))) as client:
        error = caught(client, "fake/normal")
        assert isinstance(error, anthropic.PermissionDeniedError)
        assert (error.type, error.error_code) == ("permission_error", "model_not_allowed")
        error = caught(client, "gone")
        assert isinstance(error, anthropic.NotFoundError)
        assert (error.type, error.error_code) == ("not_found_error", "model_not_found")


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"container": "container_1"},
        {"speed": "fast"},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"extra_body": {"mcp_servers": [{"type": "url", "url": "https://example.com", "name": "x"}]}},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "file_1"}}]}
            ]
        },
        {"extra_headers": {"anthropic-version": "2030-01-01"}},
    ],
)
def test_what_is_refused_reaches_nobody(
    client: anthropic.Anthropic, wires: Wires, row: str, fields: dict[str, Any]
) -> None:
    before = len(wires._up.attempts)
    error = caught(client, f"{row}/normal", **fields)
    assert isinstance(error, anthropic.BadRequestError)
    assert error.type == "invalid_request_error"
    assert len(wires._up.attempts) == before


def test_what_only_anthropic_can_be_told(client: anthropic.Anthropic) -> None:
    tools: Any = [{"type": "bash_20250124", "name": "bash"}]
    assert ask(client, "anthropic/normal", tools=tools).stop_reason == "end_turn"
    error = caught(client, "fake/normal", tools=tools)
    assert (error.status_code, error.error_code) == (400, "unsupported_value")


def test_a_body_that_is_too_long(client: anthropic.Anthropic) -> None:
    error = caught(client, "fake/normal", messages=[{"role": "user", "content": "x" * 200_000}])
    assert (error.status_code, error.type) == (413, "request_too_large")


def test_a_body_that_is_none(gateway: Gateway) -> None:
    for body in (b"nothing", b"[]", b"{}"):
        status, headers, answer = gateway.request("POST", "/v1/messages", body)
        assert (status, headers["content-type"]) == (400, "application/json")
        assert json.loads(answer)["error"]["type"] == "invalid_request_error"
    status, _, answer = gateway.request("GET", "/v1/messages")
    assert status == 405


def test_limits(gateway: Gateway, row: str) -> None:
    with with_key(gateway, gateway.new_key("requests 1/hour")) as client:
        ask(client, f"{row}/normal")
        error = caught(client, f"{row}/normal")
    assert isinstance(error, anthropic.RateLimitError)
    assert (error.type, error.error_code) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(error.response.headers["retry-after"]) > 60
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    with with_key(gateway, gateway.new_key("tokens 80 total"), max_retries=3) as client:
        ask(client, f"{row}/normal?tokens=1", max_tokens=20)
        error = caught(client, f"{row}/normal", max_tokens=1_000)
    assert (error.status_code, error.error_code) == (429, "rate_limit_exceeded")
    assert error.response.headers["x-should-retry"] == "false"


def test_a_budget_without_a_price(gateway: Gateway) -> None:
    with with_key(gateway, gateway.new_key("spend 1 USD/month")) as client:
        error = caught(client, "fake/normal?tokens=2")
    assert isinstance(error, anthropic.PaymentRequiredError)
    assert (error.type, error.error_code) == ("billing_error", "not_priced")


FAILURES = {
    "error-400": (400, "invalid_request_error", None),
    "error-401": (502, "api_error", "upstream_account"),
    "error-429": (529, "overloaded_error", "upstream_busy"),
    "error-500": (502, "api_error", "upstream_unavailable"),
    "error-529": (529, "overloaded_error", "upstream_busy"),
}


@pytest.mark.parametrize("script", FAILURES)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_failures_of_the_provider(client: anthropic.Anthropic, row: str, script: str, is_streamed: bool) -> None:
    error = caught(client, f"{row}/{script}?shape=anthropic", stream=is_streamed)
    assert (error.status_code, error.type, error.error_code) == FAILURES[script]
    assert "sk-upstream" not in str(error.body)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("eof-early", "upstream_stream_ended"),
        ("error-mid", "upstream_unavailable"),
        ("error-mid-event", "upstream_busy"),
        ("reset", "upstream_unavailable"),
        ("garbage-not-json", "upstream_protocol_error"),
    ],
)
def test_a_stream_that_breaks_ends_with_an_error(
    gateway: Gateway, wires: Wires, row: str, script: str, code: str
) -> None:
    if row == "fake" and script == "error-mid-event":
        code = "upstream_unavailable"
    marker, messages = marked()
    body = {"model": f"{row}/{script}", "max_tokens": 50, "messages": messages, "stream": True}
    status, headers, answer = gateway.request("POST", "/v1/messages", body)
    assert status == 200
    *_, last = events_of(answer)
    assert last["type"] == "error"
    assert last["error"]["details"]["error_code"] == code
    assert last["request_id"] == headers["request-id"]
    assert "message_stop" not in answer.decode()
    record, attempt = wires.record(headers["request-id"]), wires.attempt(marker)
    assert (record.outcome, record.exactness) == (Outcome.UPSTREAM_FAILED, Exactness.COUNTED)
    # Anthropic counts a first token when it begins; what came is counted on top of that.
    assert record.usage.output_tokens == 5 + (row == "anthropic")
    if row == "anthropic":
        assert record.usage.input_tokens == attempt.prompt_tokens


def test_the_sdk_raises_what_a_stream_says(client: anthropic.Anthropic, row: str) -> None:
    _, messages = marked()
    with (
        pytest.raises(anthropic.APIStatusError) as found,
        client.messages.stream(model=f"{row}/error-mid", max_tokens=50, messages=messages) as stream,  # type: ignore[arg-type]
    ):
        stream.until_done()
    assert found.value.type == "api_error"
    assert found.value.error_code == "upstream_unavailable"


def test_the_sdk_waits_and_tries_again(gateway: Gateway, row: str) -> None:
    with with_key(gateway, gateway.key, max_retries=1) as client:
        _, messages = marked()
        answer = client.messages.create(
            model=f"{row}/error-503?times=1&retry_after=0.01",
            max_tokens=50,
            messages=messages,  # type: ignore[arg-type]
        )
    assert answer.stop_reason == "end_turn"
