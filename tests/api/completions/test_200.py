"""Legacy completions, whole and streamed, from a provider that has them and from one that has chat only."""

import json
from typing import Any

import pytest

from api.asking import Tenant, events_of
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome

PROVIDERS = ["fake", "deepseek"]


def complete(gateway: Gateway, provider: str, marker: str, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    script = fields.pop("script", "normal?tokens=5")
    body = {"model": f"{provider}/{script}", "prompt": f"Say marker={marker}", **fields}
    return gateway.request("POST", "/v1/completions", body, key=fields.pop("key", None))


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    *chunks, done = events_of(body)
    assert done == b"[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(row["text"] for chunk in chunks for row in chunk["choices"] if row["index"] == index)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_whole_answer(both: Gateway, up: FakeUpstream, provider: str) -> None:
    marker = f"cw-{provider}"
    status, headers, body = complete(both, provider, marker, n=2, user="u1")
    answer = json.loads(body)
    assert (status, answer["object"], answer["model"]) == (200, "text_completion", f"{provider}/normal?tokens=5")
    assert answer["id"].startswith("cmpl-")
    assert [row["text"] for row in answer["choices"]] == [answer_text(marker, 5, index) for index in (0, 1)]
    assert [(row["index"], row["finish_reason"], row["logprobs"]) for row in answer["choices"]] == [
        (0, "stop", None),
        (1, "stop", None),
    ]
    (attempt,) = up.truth.by_marker(marker)
    assert attempt.request["path"] == ("/v1/completions" if provider == "fake" else "/v1/chat/completions")
    assert attempt.request["limits"] == {"max_tokens": 16}
    assert attempt.request["user"].startswith("mh-")
    (record,) = both.records(headers["x-request-id"])
    assert (record.operation, record.outcome, record.exactness) == (
        "text_completion",
        Outcome.COMPLETED,
        Exactness.REPORTED,
    )
    assert record.usage.output_tokens == attempt.tokens == 10
    assert answer["usage"]["prompt_tokens"] == record.usage.input_tokens == attempt.prompt_tokens


@pytest.mark.parametrize("wants_usage", [False, True])
@pytest.mark.parametrize("script", ["normal?tokens=5", "normal?tokens=5&usage=running", "normal?tokens=5&usage=none"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_stream(both: Gateway, up: FakeUpstream, provider: str, script: str, wants_usage: bool) -> None:
    marker = f"cs-{provider}-{len(script)}-{wants_usage}"
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    status, headers, body = complete(both, provider, marker, script=script, stream=True, **options)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    chunks = chunks_of(body)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert {chunk["model"] for chunk in chunks} == {f"{provider}/{script}"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert text_of(chunks) == answer_text(marker, 5)
    reasons = [row["finish_reason"] for chunk in chunks for row in chunk["choices"] if row["finish_reason"]]
    assert reasons == ["stop"]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(usages) == wants_usage
    assert all(usage["completion_tokens"] == 5 for usage in usages)
    (record,) = both.records(headers["x-request-id"])
    assert (record.usage.output_tokens, record.is_streamed) == (5, True)
    assert record.exactness is (Exactness.COUNTED if "none" in script else Exactness.REPORTED)


def test_several_prompts_are_several_choices(both: Gateway) -> None:
    status, headers, body = both.request(
        "POST",
        "/v1/completions",
        {"model": "fake/normal?tokens=3", "prompt": ["a b", "c marker=several"], "n": 2, "stream": True},
    )
    chunks = chunks_of(body)
    assert status == 200
    assert [text_of(chunks, index) for index in range(4)] == [answer_text("several", 3, index) for index in range(4)]
    (record,) = both.records(headers["x-request-id"])
    assert record.usage.output_tokens == 12


def test_tokens_as_a_prompt_are_passed_through(both: Gateway) -> None:
    body = {"model": "fake/normal?tokens=3", "prompt": [[1, 2, 3], [4]]}
    status, headers, answer = both.request("POST", "/v1/completions", body)
    assert status == 200
    assert len(json.loads(answer)["choices"]) == 2
    (record,) = both.records(headers["x-request-id"])
    assert record.usage.output_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_echoes_the_prompt_too(both: Gateway, stream: bool) -> None:
    prompt = f"Say marker=echo-{stream}"
    status, headers, body = complete(both, "deepseek", f"echo-{stream}", echo=True, stream=stream)
    text = text_of(chunks_of(body)) if stream else json.loads(body)["choices"][0]["text"]
    assert (status, text) == (200, prompt + answer_text(f"echo-{stream}", 5))
    (record,) = both.records(headers["x-request-id"])
    assert record.usage.output_tokens == 5


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_within_its_budget(both: Gateway, provider: str, stream: bool) -> None:
    script = f"normal?tokens=3000&batch={50 + stream}"
    both.set_price(provider, script, "1", "4")
    tenant = Tenant(both, limits="spend 0.03 USD total")
    status, headers, body = both.request(
        "POST",
        "/v1/completions",
        {"model": f"{provider}/{script}", "prompt": "Tell marker=long", "max_tokens": 5_000, "stream": stream},
        key=tenant.key,
    )
    assert status == 200
    assert int(headers["x-meterhouse-max-tokens"]) < 3_000
    reasons = (
        [row["finish_reason"] for chunk in chunks_of(body) for row in chunk["choices"] if row["finish_reason"]]
        if stream
        else [row["finish_reason"] for row in json.loads(body)["choices"]]
    )
    assert reasons == ["length"]
    (record,) = both.records(headers["x-request-id"])
    assert record.usage.output_tokens == int(headers["x-meterhouse-max-tokens"])
    (limit,) = both.limits(tenant.key)
    assert (limit["spent"], limit["reserved"]) == (record.charge_nanos, 0)


def test_the_simulator_completes(both: Gateway) -> None:
    body = {"model": "simulator-instant", "prompt": "Hello", "max_tokens": 9}
    status, _, answer = both.request("POST", "/v1/completions", body)
    (choice,) = json.loads(answer)["choices"]
    assert (status, choice["finish_reason"]) == (200, "length")
    assert choice["text"].startswith("This is the Meterhouse simulator")


def test_a_bound_that_is_null_is_the_wires_own(both: Gateway, up: FakeUpstream) -> None:
    for provider in PROVIDERS:
        marker = f"null-{provider}"
        assert complete(both, provider, marker, max_tokens=None)[0] == 200
        (attempt,) = up.truth.by_marker(marker)
        assert attempt.request["limits"] == {"max_tokens": 16}


def test_a_prompt_that_comes_back_is_not_counted_as_output(both: Gateway, up: FakeUpstream) -> None:
    prompts = ["one two three", "four five six seven"]
    texts = [f"{prompt} eight" for prompt in [prompts[0], prompts[0], prompts[1], prompts[1]]]
    choices = [{"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(texts)]
    answer = json.dumps({"id": "cmpl-1", "model": "echoes", "choices": choices}).encode()
    up.script("echoes", lambda exchange: exchange.whole(200, "application/json", answer))
    body = {"model": "fake/echoes", "prompt": prompts, "n": 2, "echo": True}
    status, headers, _ = both.request("POST", "/v1/completions", body)
    assert status == 200
    (record,) = both.records(headers["x-request-id"])
    assert (record.exactness, record.usage.input_tokens, record.usage.output_tokens) == (Exactness.COUNTED, 7, 4)
