"""What is refused before any call, and how an answer fails before and after it began."""

import json
from typing import Any

import pytest

from api.responses.post import PATH, Post, marked
from failure.raw_client import Client as RawClient
from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome

USER = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"input": [USER, {"type": "item_reference", "id": "msg_1"}]}, "input[1]", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools[0].type", "unsupported_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]},
            "input[0].content[0].text",
            "invalid_type",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"model": ""}, "model", "invalid_value"),
        ({"model": None}, "model", "invalid_type"),
        ({"messages": [USER]}, "messages", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_is_refused_before_the_call(
    post: Post, provider: str, fields: dict[str, Any], param: str, code: str, up: FakeUpstream
) -> None:
    asked = len(up.truth.attempts)
    status, error = post.refused(**{"model": f"{provider}/normal", **fields})
    assert (status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)
    assert len(up.truth.attempts) == asked


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"model":"fake/normal","input":"\xff"}', b"[" * 5000])
def test_a_body_that_is_none_is_refused(gateway: Gateway, body: bytes) -> None:
    client = RawClient(gateway.url, gateway.key, body, path=PATH).read_all()
    assert client.status == 400
    assert b'"invalid_json"' in client.body or b'"invalid_type"' in client.body


def test_what_only_a_provider_with_responses_can_do_is_refused_elsewhere(post: Post) -> None:
    grammar = {"type": "grammar", "syntax": "regex", "definition": "a+"}
    tools = [{"type": "custom", "name": "x", "format": grammar}]
    assert post.refused("fake/normal", tools=tools)[1]["param"] == "tools[0].format"
    assert post.whole("native/normal?tokens=1", tools=tools)[1].status == "completed"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items"),
        ("POST", "/v1/responses/compact"),
    ],
)
def test_there_are_no_stored_responses(gateway: Gateway, method: str, path: str) -> None:
    status, _, body = gateway.request(method, path, {} if method == "POST" else None)
    assert status == 404
    assert b"not stored" in body


@pytest.mark.parametrize(
    ("script", "status"), [("error-500", 502), ("error-429", 503), ("error-422", 422), ("error-401", 502)]
)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_failure_before_the_answer_keeps_its_status(
    post: Post, provider: str, script: str, status: int, is_streamed: bool
) -> None:
    assert post.refused(f"{provider}/{script}?tokens={1 + is_streamed}", stream=is_streamed)[0] == status


@pytest.mark.parametrize("script", ["error-mid", "error-mid-event", "reset", "eof-early", "garbage-not-json"])
def test_a_failure_in_the_stream_is_an_error_event(post: Post, provider: str, script: str) -> None:
    headers, events = post.stream(f"{provider}/{script}?at=5")
    failed, error = events[-2:]
    assert (failed.type, failed.response.status, failed.response.error.code) == (
        "response.failed",
        "failed",
        "server_error",
    )
    assert error.type == "error"
    assert error.code.startswith("upstream_")
    assert error.message == failed.response.error.message
    (record,) = post.gateway.records(headers["x-request-id"])
    assert (record.outcome, record.exactness) == (Outcome.UPSTREAM_FAILED, Exactness.COUNTED)
    assert record.usage.output_tokens == 5


def test_what_a_failed_response_reports_is_charged(post: Post, up: FakeUpstream) -> None:
    """The provider says one token, whatever it sent."""

    async def run(exchange: Exchange) -> None:
        wire = scripts.open_wire(exchange)
        await exchange.head(200, {"content-type": "text/event-stream"})
        for event in (*wire.open(), wire.token(0, {"content": "one two three"}, None)):
            await exchange.emit(event)
        await exchange.emit(wire.error("the fake model failed", shape="failed"))
        await exchange.end()

    up.script("fails", run)
    headers, events = post.stream("native/fails")
    assert events[-1].type == "error"
    (record,) = post.gateway.records(headers["x-request-id"])
    assert (record.outcome, record.exactness) == (Outcome.UPSTREAM_FAILED, Exactness.REPORTED)
    assert record.usage.output_tokens == 1


def test_no_credential_is_told(post: Post, provider: str) -> None:
    for script in ("error-401", "error-422", "error-500"):
        assert "canary" not in str(post.refused(f"{provider}/{script}?tokens=7"))


@pytest.mark.parametrize("way", ["leave", "reset"])
def test_a_client_that_leaves_pays_for_what_it_was_sent(post: Post, provider: str, way: str, up: FakeUpstream) -> None:
    marker, said = marked()
    key = post.gateway.new_key("concurrent 5")
    body = {"model": f"{provider}/normal?tokens=40&gate=20", "input": said, "stream": True}
    client = RawClient(post.gateway.url, key, body, path=PATH)
    client.read_until(lambda c: c.body.count(b"event: response.output_text.delta") >= 20)
    getattr(client, way)()
    up.wait_for(lambda truth: truth.by_marker(marker)[0].ended_by == "client_gone")
    (record,) = post.gateway.records(client.headers["x-request-id"])
    assert (record.outcome, record.exactness) == (Outcome.CLIENT_GONE, Exactness.COUNTED)
    assert record.usage.output_tokens == 20
    assert post.gateway.limits(key)[0]["reserved"] == 0


def test_limits_refuse_as_everywhere(post: Post, provider: str) -> None:
    key = post.gateway.new_key("requests 1/hour")
    post.whole(f"{provider}/normal?tokens=1", key=key)
    status, error = post.refused(f"{provider}/normal?tokens=1", key=key)
    assert (status, error["code"]) == (429, "rate_limit_exceeded")


def test_a_key_is_needed(post: Post) -> None:
    assert post.refused("fake/normal", key="sk-wrong")[0] == 401


@pytest.mark.parametrize("usage", [{"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}, None])
def test_what_a_failed_response_reports_is_charged_though_it_is_not_streamed(
    post: Post, up: FakeUpstream, usage: dict[str, int] | None
) -> None:
    error = {"code": "server_error", "message": "The fake model failed."}
    response = {"id": "resp_1", "model": "failing-whole", "status": "failed", "error": error, "output": []}
    answer = json.dumps({**response, "usage": usage}).encode()
    up.script("failing-whole", lambda exchange: exchange.whole(200, "application/json", answer))
    status, headers, _ = post.gateway.request("POST", PATH, {"model": "native/failing-whole", "input": "Hello"})
    assert status == 502
    (record,) = post.gateway.records(headers["x-request-id"])
    assert (record.outcome, record.error_code) == (Outcome.UPSTREAM_FAILED, "upstream_unavailable")
    expected = (Exactness.REPORTED, 7, 5) if usage else (Exactness.COUNTED, 0, 0)
    assert (record.exactness, record.usage.input_tokens, record.usage.output_tokens) == expected


@pytest.mark.parametrize("kind", ["response.failed", "error"])
def test_a_stream_that_begins_with_a_failure_is_answered_by_another_deployment(
    post: Post, up: FakeUpstream, kind: str
) -> None:
    async def run(exchange: Exchange) -> None:
        error = {"code": "server_error", "message": "no"}
        response = {"id": "resp_1", "model": "failing", "status": "failed", "error": error, "usage": None}
        event = {"type": kind, "sequence_number": 0, **({"response": response} if kind != "error" else error)}
        await exchange.head(200, {"content-type": "text/event-stream"})
        await exchange.emit(f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode())
        await exchange.end()

    up.script("failing", run)
    deployments = [
        {"provider": "native", "upstream_model": "failing", "order": 0},
        {"provider": "native", "upstream_model": "normal", "order": 1},
    ]
    gateway, name = post.gateway, f"begins-with-{kind}"
    put = gateway.request("PUT", f"/admin/routes/{name}", {"deployments": deployments}, key=gateway.admin_key)
    assert put[0] == 200, put
    marker, said = marked()
    headers, events = post.stream(name, input=said)
    assert events[-1].response.output_text == answer_text(marker, 20)
    records = gateway.records(headers["x-request-id"])
    assert [record.outcome for record in records] == [Outcome.UPSTREAM_FAILED, Outcome.COMPLETED]
    assert records[0].usage.total_tokens == 0
