"""Answers, streamed and whole, over chat completions and passed through; what is metered of them."""

import json
from typing import Any

import pytest

from api.asking import Tenant
from api.responses.post import PATH, Post, marked
from failure.raw_client import Client as RawClient
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome, UsageRecord

TOOL = {"type": "function", "name": "tool_0", "parameters": {"type": "object", "properties": {}}}


def check_record(post: Post, up: FakeUpstream, marker: str, headers: dict[str, str]) -> UsageRecord:
    """Return the one record of a request, which says what the provider says that it sent."""
    (record,) = post.gateway.records(headers["x-request-id"])
    (attempt,) = up.truth.by_marker(marker)
    assert (record.outcome, record.exactness, record.operation) == (Outcome.COMPLETED, Exactness.REPORTED, "chat")
    assert (record.usage.input_tokens, record.usage.output_tokens) == (attempt.prompt_tokens, attempt.tokens)
    return record


def test_a_whole_answer(post: Post, provider: str, up: FakeUpstream) -> None:
    marker, said = marked()
    headers, response = post.whole(f"{provider}/normal?tokens=6", input=said)
    assert response.output_text == answer_text(marker, 6)
    assert (response.status, response.model) == ("completed", f"{provider}/normal?tokens=6")
    record = check_record(post, up, marker, headers)
    assert response.usage.output_tokens == record.usage.output_tokens == 6
    assert response.usage.input_tokens == record.usage.input_tokens


def test_a_stream(post: Post, provider: str, up: FakeUpstream) -> None:
    marker, said = marked()
    headers, events = post.stream(f"{provider}/normal?tokens=6", input=said)
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer_text(marker, 6)
    assert len(deltas) == 6
    response = events[-1].response
    assert (events[-1].type, response.model) == ("response.completed", f"{provider}/normal?tokens=6")
    record = check_record(post, up, marker, headers)
    assert response.usage.output_tokens == record.usage.output_tokens


@pytest.mark.parametrize("is_streamed", [True, False])
def test_thoughts_are_an_item(post: Post, provider: str, is_streamed: bool, up: FakeUpstream) -> None:
    marker, said = marked()
    model = f"{provider}/reasoning?tokens=3"
    if is_streamed:
        headers, events = post.stream(model, input=said)
        response = events[-1].response
    else:
        headers, response = post.whole(model, input=said)
    kinds = {item.type: item for item in response.output}
    assert kinds["reasoning"].content[0].text == answer_text(marker, 8)
    assert response.output_text
    assert response.usage.output_tokens_details.reasoning_tokens == 8
    check_record(post, up, marker, headers)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_calls_of_tools(post: Post, provider: str, is_streamed: bool) -> None:
    marker, said = marked()
    fields: dict[str, Any] = {"input": said, "tools": [TOOL, {**TOOL, "name": "tool_1"}]}
    model = f"{provider}/tools-two?tokens=4"
    response = post.stream(model, **fields)[1][-1].response if is_streamed else post.whole(model, **fields)[1]
    assert [item.name for item in response.output] == ["tool_0", "tool_1"]
    assert len({item.call_id for item in response.output}) == 2
    assert json.loads(response.output[0].arguments) == {"text": answer_text(marker, 4)}


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_refusal(post: Post, provider: str, is_streamed: bool) -> None:
    marker, said = marked()
    model = f"{provider}/refusal?tokens=3"
    response = post.stream(model, input=said)[1][-1].response if is_streamed else post.whole(model, input=said)[1]
    assert response.output[0].content[0].refusal == answer_text(marker, 3)
    assert response.output_text == ""


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(
    ("script", "asked", "reason"),
    [("normal", {"max_output_tokens": 3}, "max_output_tokens"), ("content-filter", {}, "content_filter")],
)
def test_an_answer_that_ends_early_is_incomplete(
    post: Post, provider: str, script: str, asked: dict[str, int], reason: str, is_streamed: bool
) -> None:
    model = f"{provider}/{script}"
    response = post.stream(model, **asked)[1][-1].response if is_streamed else post.whole(model, **asked)[1]
    assert (response.status, response.incomplete_details.reason) == ("incomplete", reason)


def test_the_first_event_does_not_wait_for_the_last(post: Post, provider: str, up: FakeUpstream) -> None:
    _, said = marked()
    body = {"model": f"{provider}/gate?gate=5", "input": said, "stream": True}
    client = RawClient(post.gateway.url, post.gateway.key, body, path=PATH)
    client.read_until(lambda c: c.body.count(b"event: response.output_text.delta") >= 5)
    assert not client.is_whole
    up.release(name="gate")
    assert b"event: response.completed" in client.read_all().body


def test_each_is_metered_like_any_other_request(post: Post, provider: str) -> None:
    key = post.gateway.new_key("requests 5 total; tokens 100000 total")
    headers, _ = post.whole(f"{provider}/normal", key=key)
    (record,) = post.gateway.records(headers["x-request-id"])
    spent = {row["kind"]: row["spent"] for row in post.gateway.limits(key)}
    assert spent == {"requests": 1, "tokens": record.usage.total_tokens}


def test_a_usage_that_the_provider_does_not_report_is_counted(post: Post, provider: str) -> None:
    _, said = marked()
    headers, events = post.stream(f"{provider}/usage-missing?tokens=6", input=said)
    (record,) = post.gateway.records(headers["x-request-id"])
    assert (record.exactness, record.usage.output_tokens) == (Exactness.COUNTED, 6)
    assert events[-1].type == "response.completed"


def test_an_answer_is_bounded_by_what_a_quota_has_left(post: Post, provider: str) -> None:
    key = post.gateway.new_key("tokens 5000 total")
    headers, response = post.whole(f"{provider}/long", key=key)
    assert int(headers["x-meterhouse-max-tokens"]) < 5000
    assert response.status == "incomplete"
    assert response.usage.output_tokens == int(headers["x-meterhouse-max-tokens"])


def test_several_turns_with_a_tool(post: Post, provider: str) -> None:
    _, said = marked()
    history: list[Any] = [{"role": "user", "content": said}]
    _, response = post.whole(f"{provider}/tools?tokens=4&reasoning=2", input=history, tools=[TOOL])
    history += [item.to_dict() for item in response.output]
    (call,) = [item for item in response.output if item.type == "function_call"]
    marker = f"{said.split('marker=')[1]}x"
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": f"4 marker={marker}"})
    _, answer = post.whole(f"{provider}/normal?tokens=4", input=history, tools=[TOOL])
    assert answer.output_text == answer_text(marker, 4)


def test_what_was_asked_for_is_told_back(post: Post) -> None:
    asked = {"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "user": "u", "store": True}
    _, response = post.whole("fake/normal?tokens=1", **asked)
    told = response.to_dict()
    assert {name: told[name] for name in asked} == {**asked, "store": False}


def test_a_key_sees_its_receipt(post: Post, tenant: Tenant, provider: str) -> None:
    headers, _ = Post(post.gateway).whole(f"{provider}/normal", key=tenant.key)
    post.gateway.records(headers["x-request-id"])
    status, _, body = post.gateway.request("GET", f"/v1/receipts/{headers['x-request-id']}", key=tenant.key)
    assert status == 200, body


def test_of_two_ways_the_other_answers_when_one_fails(gateway: Gateway) -> None:
    """A failover may go from responses to chat completions, and back."""
    for first, second in (("native", "fake"), ("fake", "native")):
        deployments = [
            {"provider": first, "upstream_model": "error-500", "order": 0},
            {"provider": second, "upstream_model": "normal", "order": 1},
        ]
        name = f"either-{first}"
        status, _, body = gateway.request(
            "PUT", f"/admin/routes/{name}", {"deployments": deployments}, key=gateway.admin_key
        )
        assert status == 200, body
        marker, said = marked()
        _, events = Post(gateway).stream(name, input=said)
        assert events[-1].response.output_text == answer_text(marker, 20)
        assert events[-1].response.model == name
