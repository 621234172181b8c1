"""What is passed through to Anthropic and back: every byte but the model's name, and what keeps tenants apart."""

import asyncio
import http.client
import json
import threading
from typing import Any

import anthropic
import pytest

from api.messages.asking import Wires, events_of, marked
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from meterhouse.usage import Outcome

STREAM = """event: message_start
data: {"type":"message_start", "message":{"id":"msg_1","type":"message","role":"assistant","content":[],\
"model":"claude-new-20261101","usage":{"input_tokens":7,"output_tokens":1,"unheard_of":{"a":[1]}}}}

event: ping
data: {"type": "ping"}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":"","citations":null}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"H\\u00e9 \\n"}}

event: something_new
data: {"type":"something_new","what":"ever"}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"END"},"usage":{"output_tokens":3}}

event: message_stop
data: {"type":"message_stop"   }

"""
WHOLE = """{"model": "claude-new-20261101", "id":"msg_1","type":"message","role":"assistant", "content":[
 {"type":"text","text":"H\\u00e9","citations":[]}],"stop_reason":"pause_turn","stop_sequence":null,
 "usage":{"input_tokens":7,"output_tokens":3,"cache_read_input_tokens":null},"unheard_of":1.50}"""


async def play(exchange: Exchange) -> None:
    if not exchange.request.is_streamed:
        await exchange.whole(200, "application/json", WHOLE.encode())
        return
    await exchange.head(200, {"content-type": "text/event-stream"})
    await exchange.emit(STREAM.encode())
    await exchange.flush()
    await exchange.end()


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("asked", ["claude-new-20261101", "claude-new"])
def test_an_answer_comes_back_byte_for_byte(gateway: Gateway, wires: Wires, is_streamed: bool, asked: str) -> None:
    wires._up.script(asked, play)
    body = {"model": f"anthropic/{asked}", "max_tokens": 9, "messages": marked()[1], "stream": is_streamed}
    status, headers, answer = gateway.request("POST", "/v1/messages", body)
    assert status == 200
    expected = STREAM if is_streamed else WHOLE
    assert answer.decode() == expected.replace('"claude-new-20261101"', f'"anthropic/{asked}"')
    record = wires.record(headers["request-id"])
    assert (record.usage.input_tokens, record.usage.output_tokens) == (7, 3)
    assert record.served_model == "claude-new-20261101"


def test_a_request_goes_as_it_came_but_for_names(gateway: Gateway, wires: Wires) -> None:
    marker, messages = marked()
    thought = {"type": "thinking", "thinking": "Hm", "signature": "c2ln"}
    sent: dict[str, Any] = {
        "model": "anthropic/capture",
        "max_tokens": 50,
        "messages": [messages[0], {"role": "assistant", "content": [thought]}, messages[0]],
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "user-5"},
        "temperature": 0.5,
        "top_k": 3,
        "stop_sequences": ["a", "b", "c", "d", "e"],
        "thinking": {"type": "adaptive", "display": "summarized"},
        "service_tier": "standard_only",
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "container": None,
    }
    headers = {
        "anthropic-version": "2026-10-21",
        "anthropic-beta": "interleaved-thinking-2025-05-14, files-api-2025-04-14,mcp-client-2026-09-15",
        "anthropic-user-profile-id": "profile",
    }
    status, _, answer = gateway.request("POST", "/v1/messages", sent, headers=headers)
    assert status == 200, answer
    body, got = wires.sent(marker)
    user = body.pop("metadata")["user_id"]
    assert user.startswith("mh-")
    assert user.endswith("-user-5")
    del sent["metadata"], sent["container"]
    assert body == {**sent, "model": "capture"}
    assert got["anthropic-version"] == "2026-10-21"
    assert got["anthropic-beta"] == "interleaved-thinking-2025-05-14"
    assert "anthropic-user-profile-id" not in got
    assert got["x-api-key"] == "sk-upstream-credential-canary"
    assert "authorization" not in got


def test_versions_go_to_nobody_else(gateway: Gateway, wires: Wires) -> None:
    marker, messages = marked()
    body = {"model": "fake/capture", "max_tokens": 50, "messages": messages}
    assert gateway.request("POST", "/v1/messages", body, headers={"anthropic-version": "2026-10-21"})[0] == 200
    assert not [name for name in wires.sent(marker)[1] if name.startswith("anthropic")]


def test_two_tenants_have_two_names_for_one_user(gateway: Gateway, wires: Wires) -> None:
    names = set()
    for key in (gateway.key, gateway.new_key()):
        marker, messages = marked()
        body = {"model": "anthropic/capture", "max_tokens": 5, "messages": messages, "metadata": {"user_id": "u" * 60}}
        assert gateway.request("POST", "/v1/messages", body, key=key)[0] == 200
        names.add(wires.sent(marker)[0]["metadata"]["user_id"])
    assert len(names) == 2


def test_thoughts_of_another_provider_stay_behind(client: anthropic.Anthropic, wires: Wires) -> None:
    marker, messages = marked()
    thought = {"type": "thinking", "thinking": "Hm", "signature": ""}
    said: Any = {"role": "assistant", "content": [thought, {"type": "text", "text": "Yes"}]}
    client.messages.create(
        model="anthropic/capture",
        max_tokens=5,
        messages=[messages[0], said, messages[0]],  # type: ignore[list-item]
    )
    assert wires.sent(marker)[0]["messages"][1]["content"] == [{"type": "text", "text": "Yes"}]


def test_a_slow_stream_is_kept_open_by_comments(gateway: Gateway, row: str) -> None:
    body = {"model": f"{row}/normal?tokens=2&pace_ms=700", "max_tokens": 50, "messages": marked()[1], "stream": True}
    _, _, answer = gateway.request("POST", "/v1/messages", body)
    assert b"\n\n: keep-alive\n\n" in answer
    assert events_of(answer)[-1]["type"] == "message_stop"


def test_tokens_are_counted_by_who_serves_the_wire(client: anthropic.Anthropic, wires: Wires) -> None:
    async def count(exchange: Exchange) -> None:
        heard.append((exchange.request.path, exchange.request.body))
        await exchange.whole(200, "application/json", b'{"input_tokens": 1234}')

    heard: list[tuple[str, dict[str, Any]]] = []
    wires._up.script("counted", count)
    wires.set_price("counted", input_usd="3", output_usd="15", request_usd="0.01")
    answer = client.messages.with_raw_response.count_tokens(
        model="anthropic/counted", system="Be brief.", messages=[{"role": "user", "content": "Hi"}]
    )
    assert answer.parse().input_tokens == 1_234
    ((path, body),) = heard
    assert path == "/v1/messages/count_tokens"
    assert body == {
        "model": "counted",
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hi"}],
    }
    record = wires.record(answer.headers["request-id"])
    assert (record.operation, record.charge_nanos, record.usage.total_tokens) == ("count_tokens", 0, 0)


def test_a_count_that_is_left_or_broken_costs_nothing_and_holds_nothing(gateway: Gateway, wires: Wires) -> None:
    async def count(exchange: Exchange) -> None:
        begun.set()
        await asyncio.to_thread(left.wait, 30)
        await exchange.whole(200, "application/json", b'{"input_tok')

    begun, left = threading.Event(), threading.Event()
    wires._up.script("left", count)
    wires.set_price("left", input_usd="1000", output_usd="1000")
    key = gateway.new_key("spend 0.001 USD/month")
    body = {"model": "anthropic/left", "messages": [{"role": "user", "content": "word " * 1_000}]}
    connection = http.client.HTTPConnection(gateway.base_url.split("/")[2])
    connection.request("POST", "/v1/messages/count_tokens", json.dumps(body), {"authorization": f"Bearer {key}"})
    assert begun.wait(30)
    connection.close()
    gateway.settle()  # nobody waits for it any more
    left.set()
    assert gateway.request("POST", "/v1/messages/count_tokens", body, key=key)[0] == 502
    gateway.settle()
    records = [record for record in gateway.all_records() if record["upstream_model"] == "left"]
    assert {record["outcome"] for record in records} >= {"client_gone", "upstream_failed"}
    assert {record["operation"] for record in records} == {"count_tokens"}
    assert [record["charge_nanos"] + record["input_tokens"] for record in records] == [0] * len(records)


def test_tokens_are_counted_here_for_others(client: anthropic.Anthropic, gateway: Gateway) -> None:
    tool: Any = {"name": "f", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    asked: Any = {"model": "fake/normal", "messages": [{"role": "user", "content": "Hello there, how are you?"}]}
    plain = client.messages.count_tokens(**asked).input_tokens
    assert 8 < plain < 20
    assert client.messages.count_tokens(**asked, tools=[tool]).input_tokens > plain + 10
    asked["messages"] = [{"role": "user", "content": "word " * 10_000}]
    assert 10_000 < client.messages.count_tokens(**asked).input_tokens < 20_000
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nobody/nothing", messages=asked["messages"])
    status, headers, body = gateway.request("POST", "/v1/messages/count_tokens", {"model": "fake/normal"}, key="x")
    assert (status, json.loads(body)["error"]["type"]) == (401, "authentication_error")
    assert headers["request-id"].startswith("req_")
    with pytest.raises(anthropic.BadRequestError):
        client.messages.count_tokens(**asked, tools=[{"type": "bash_20250124", "name": "bash"}])


def test_a_count_made_here_is_one_request_under_the_limits_and_in_the_ledger(gateway: Gateway, wires: Wires) -> None:
    key = gateway.new_key("requests 2/hour; tokens 50/hour; spend 0.01 USD total")
    body = {"model": "fake/normal", "messages": [{"role": "user", "content": "Hello there " * 50}]}
    for _ in range(2):
        status, headers, answer = gateway.request("POST", "/v1/messages/count_tokens", body, key=key)
        assert status == 200, answer
        record = wires.record(headers["request-id"])
        assert (record.operation, record.outcome, record.requests) == ("count_tokens", Outcome.COMPLETED, 1)
        assert (record.provider, record.charge_nanos, record.usage.total_tokens) == ("", 0, 0)
    status, _, answer = gateway.request("POST", "/v1/messages/count_tokens", body, key=key)
    assert (status, json.loads(answer)["error"]["details"]["error_code"]) == (429, "rate_limit_exceeded")
    assert [(limit["spent"], limit["reserved"]) for limit in gateway.limits(key)] == [(2, 0), (0, 0), (0, 0)]
