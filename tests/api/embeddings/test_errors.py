"""What is wrong with a request for embeddings, or with its answer, is said in OpenAI's words."""

import json
from typing import Any

import pytest

from api.asking import Tenant, error_of
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from meterhouse.usage import Outcome


def refused(gateway: Gateway, key: str | None = None, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": "fake/normal", "input": "Hello", **fields}
    status, _, answer = gateway.request("POST", "/v1/embeddings", body, key=key)
    return status, error_of(answer)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_type"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a", 1]}, "input", "invalid_type"),
        ({"input": [1.5]}, "input", "invalid_type"),
        ({"input": [-1]}, "input", "invalid_type"),
        ({"input": {"a": 1}}, "input", "invalid_type"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": ["a"] * 2_049}, "input", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "invalid_value"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"stream": True}, "stream", "unsupported_parameter"),
        ({"model": ""}, "model", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages", "unsupported_parameter"),
    ],
)
def test_what_no_provider_would_understand_is_refused(
    gateway: Gateway, fields: dict[str, Any], param: str, code: str
) -> None:
    status, error = refused(gateway, **fields)
    assert (status, error["param"], error["code"]) == (400, param, code)


def test_what_is_missing_is_named(gateway: Gateway) -> None:
    status, _, answer = gateway.request("POST", "/v1/embeddings", {"model": "fake/normal"})
    error = error_of(answer)
    assert (status, error["param"], error["code"]) == (400, "input", "missing_required_parameter")


def test_a_model_of_another_kind_is_refused_before_anything_is_held(gateway: Gateway, up: FakeUpstream) -> None:
    tenant = Tenant(gateway, limits="requests 1/minute; requests 5 total")
    for path, model, rest in (
        ("/v1/embeddings", "openai/text-embedding-3-small", {"input": "a"}),
        ("/v1/chat/completions", "openai/gpt-4o", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        status, _, answer = gateway.request("POST", path, {"model": model, **rest}, key=tenant.key)
        assert (status, error_of(answer)["code"]) == (404, "model_not_found")
    assert all(limit["reserved"] == limit["spent"] == 0 for limit in gateway.limits(tenant.key))


def test_a_key_without_this_model_is_refused(gateway: Gateway) -> None:
    tenant = Tenant(gateway, models=["simulator"])
    status, error = refused(gateway, tenant.key)
    assert (status, error["code"]) == (403, "model_not_allowed")
    assert refused(gateway, "sk-mh-test-nothing")[0] == 401


def test_a_model_without_a_price_is_refused_for_a_budget(gateway: Gateway) -> None:
    tenant = Tenant(gateway, limits="spend 1 USD total")
    assert refused(gateway, tenant.key, model="fake/normal?tokens=7&first_ms=3")[0] == 402


def test_a_rate_of_tokens_counts_the_input(gateway: Gateway) -> None:
    tenant = Tenant(gateway, limits="tokens 10/minute")
    assert (
        gateway.request("POST", "/v1/embeddings", {"model": "fake/normal", "input": [1] * 9}, key=tenant.key)[0] == 200
    )
    status, error = refused(gateway, tenant.key, input=[1, 2])
    assert (status, error["code"], error["type"]) == (429, "rate_limit_exceeded", "tokens")


def test_what_nobody_here_knows_counts_as_if_it_were_read(gateway: Gateway) -> None:
    tenant = Tenant(gateway, limits="tokens 1000/minute")
    status, error = refused(gateway, tenant.key, instruction="long " * 1_000)
    assert (status, error["type"]) == (429, "tokens")
    body = {"model": "fake/normal", "input": "Hello", "instruction": "short"}
    assert gateway.request("POST", "/v1/embeddings", body, key=tenant.key)[0] == 200


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("error-500", 502, "upstream_unavailable"),
        ("error-429", 503, "upstream_busy"),
        ("error-400", 400, None),
        ("error-401", 502, "upstream_account"),
        ("html-200", 502, "upstream_protocol_error"),
        ("reset-before-head", 502, "upstream_unavailable"),
        ("never-answers", 504, "upstream_timeout"),
    ],
)
def test_a_failing_provider_has_its_status_and_one_record_that_charges_nothing(
    gateway: Gateway, hasty: Gateway, model: str, status: int, code: str | None
) -> None:
    asked = hasty if code == "upstream_timeout" else gateway
    # A deployment of its own: five failures in a row would open the breaker of one that other tests use.
    body = {"model": f"fake/{model}?tokens=31", "input": "Hello"}
    answered, headers, answer = asked.request("POST", "/v1/embeddings", body)
    error = error_of(answer)
    assert answered == status
    assert code is None or error["code"] == code
    (record,) = asked.records(headers["x-request-id"])
    assert record.outcome in {Outcome.UPSTREAM_FAILED, Outcome.REFUSED}
    assert (record.charge_nanos, record.usage.total_tokens, record.operation) == (0, 0, "embeddings")


@pytest.mark.parametrize("answer", [{"object": "list"}, {"data": 5}, {"data": [{"embedding": "not base64"}]}, []])
def test_something_that_is_no_embedding_is_the_providers_fault(gateway: Gateway, up: FakeUpstream, answer: Any) -> None:
    async def run(exchange: Any) -> None:
        await exchange.whole(200, "application/json", json.dumps(answer).encode())

    up.script("odd-embedding", run)
    status, headers, body = gateway.request("POST", "/v1/embeddings", {"model": "fake/odd-embedding", "input": "Hello"})
    assert (status, error_of(body)["code"]) == (502, "upstream_protocol_error")
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.outcome, record.error_code) == (Outcome.UPSTREAM_FAILED, "upstream_protocol_error")
    assert (record.usage.total_tokens, record.charge_nanos) == (0, 0)


def test_a_provider_whose_row_takes_few_inputs_or_no_tokens_says_so(up: FakeUpstream, tmp_path: Any) -> None:
    environment = {
        **provider_environment("dashscope", up.base_url),
        **provider_environment("ollama", up.ollama_url),
        **provider_environment("deepseek", up.base_url),
    }
    with Gateway(tmp_path / "data", environment) as own:
        status, error = refused(own, model="dashscope/normal", input=["a"] * 11)
        assert (status, error["param"]) == (400, "input")
        assert "at most 10" in error["message"]
        status, error = refused(own, model="ollama/normal", input=[1, 2])
        assert (status, error["param"], error["code"]) == (400, "input", "unsupported_value")
        status, error = refused(own, model="deepseek/normal")
        assert (status, error["param"], error["code"]) == (400, "model", "unsupported_endpoint")
        # Asked for base64, DashScope is asked for numbers, and Ollama's have no other form.
        for model, path in (("dashscope/normal", "/v1/embeddings"), ("ollama/normal", "/api/embed")):
            marker = f"row-{model.partition('/')[0]}"
            with own.client() as client:
                made = client.embeddings.create(model=model, input=f"one two marker={marker}")
            assert len(made.data[0].embedding) == 4
            assert (made.model, made.usage.prompt_tokens) == (model, 3)
            (attempt,) = up.truth.by_marker(marker)
            assert attempt.request["path"] == path
            assert "encoding_format" not in attempt.request["fields"] or path == "/v1/embeddings"
