"""Anthropic's SDK against both kinds of provider: what it gets, and what the ledger says of it."""

from typing import Any

import anthropic
import pytest
from anthropic.types import TextBlock, ThinkingBlock, ToolUseBlock

from api.messages.asking import TOKENS, Wires, marked
from fakes.anthropic_wire import SIGNATURE
from fakes.gateway import Gateway
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome

TOOL: Any = {"name": "tool_0", "description": "A tool.", "input_schema": {"type": "object", "properties": {}}}


def check_record(wires: Wires, marker: str, request_id: str | None, usage: Any) -> None:
    record, attempt = wires.record(request_id), wires.attempt(marker)
    assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.REPORTED)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (attempt.prompt_tokens, attempt.tokens)
    assert (usage.input_tokens, usage.output_tokens) == (attempt.prompt_tokens, attempt.tokens)


def test_a_message(client: anthropic.Anthropic, wires: Wires, row: str) -> None:
    marker, messages = marked()
    answer = client.messages.create(model=f"{row}/normal", max_tokens=100, messages=messages)
    (block,) = answer.content
    assert isinstance(block, TextBlock)
    assert block.text == answer_text(marker, TOKENS)
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert answer.model == f"{row}/normal"
    assert answer.id.startswith("msg_")
    assert answer._request_id is not None
    check_record(wires, marker, answer._request_id, answer.usage)


def test_the_helper_for_streams(client: anthropic.Anthropic, wires: Wires, row: str) -> None:
    marker, messages = marked()
    with client.messages.stream(model=f"{row}/normal?batch=3", max_tokens=100, messages=messages) as stream:
        said = "".join(stream.text_stream)
        answer = stream.get_final_message()
        request_id = stream.response.headers["request-id"]
    assert said == answer_text(marker, TOKENS)
    assert answer.stop_reason == "end_turn"
    assert answer.model == f"{row}/normal?batch=3"
    check_record(wires, marker, request_id, answer.usage)


def test_a_raw_stream(client: anthropic.Anthropic, wires: Wires, row: str) -> None:
    marker, messages = marked()
    with client.messages.create(model=f"{row}/normal", max_tokens=100, messages=messages, stream=True) as stream:
        events = list(stream)
        request_id = stream.response.headers["request-id"]
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert kinds.count("content_block_delta") == TOKENS
    (end,) = (event for event in events if event.type == "message_delta")
    check_record(wires, marker, request_id, end.usage)


async def test_the_asynchronous_client(gateway: Gateway, wires: Wires, row: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        marker, messages = marked()
        answer = await client.messages.create(model=f"{row}/normal", max_tokens=7, messages=messages)
        assert answer.stop_reason == "max_tokens"
        check_record(wires, marker, answer._request_id, answer.usage)
        marker, messages = marked()
        async with client.messages.stream(model=f"{row}/normal", max_tokens=100, messages=messages) as stream:
            said = "".join([piece async for piece in stream.text_stream])
        assert said == answer_text(marker, TOKENS)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_calls_of_tools(client: anthropic.Anthropic, wires: Wires, row: str, is_streamed: bool) -> None:
    marker, messages = marked()
    asked: Any = {"model": f"{row}/tools-two", "max_tokens": 100, "messages": messages, "tools": [TOOL]}
    answer = assembled(client, asked) if is_streamed else client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    calls = [block for block in answer.content if isinstance(block, ToolUseBlock)]
    assert [call.name for call in calls] == ["tool_0", "tool_1"]
    assert [call.input for call in calls] == [{"text": answer_text(marker, TOKENS)}] * 2
    assert wires.attempt(marker).tokens == answer.usage.output_tokens


@pytest.mark.parametrize("is_streamed", [True, False])
def test_thoughts(client: anthropic.Anthropic, row: str, is_streamed: bool) -> None:
    _, messages = marked()
    asked: Any = {"model": f"{row}/reasoning", "max_tokens": 2_000, "messages": messages}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1_024}
    answer = assembled(client, asked) if is_streamed else client.messages.create(**asked)
    thought, said = answer.content
    assert isinstance(thought, ThinkingBlock)
    assert isinstance(said, TextBlock)
    assert thought.signature == (SIGNATURE if row == "anthropic" else "")
    assert answer.usage.output_tokens == 28
    assert answer.usage.output_tokens_details is not None
    assert answer.usage.output_tokens_details.thinking_tokens == 8


def assembled(client: anthropic.Anthropic, asked: Any) -> anthropic.types.Message:
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message()


def test_what_a_cache_had_to_do_with_is_told_apart(client: anthropic.Anthropic, wires: Wires, row: str) -> None:
    marker, messages = marked()
    asked: Any = {"model": f"{row}/usage-cached", "max_tokens": 100, "messages": messages}
    for answer in (assembled(client, asked), client.messages.create(**asked)):
        assert (answer.usage.cache_read_input_tokens, answer.usage.cache_creation_input_tokens) == (3, 2)
        assert answer.usage.input_tokens == wires._up.truth.by_marker(marker)[0].prompt_tokens - 5
    usage = wires.record(answer._request_id).usage
    assert (usage.cached_input_tokens, usage.cache_write_tokens) == (3, 2)
    assert usage.input_tokens == wires._up.truth.by_marker(marker)[0].prompt_tokens


def test_a_conversation_with_a_call_and_its_result(client: anthropic.Anthropic, wires: Wires, row: str) -> None:
    _, messages = marked()
    asked: Any = {"model": f"{row}/tools", "max_tokens": 2_000, "tools": [TOOL]}
    first = client.messages.create(**asked, messages=messages)
    (call,) = (block for block in first.content if isinstance(block, ToolUseBlock))
    marker, following = marked("Go on")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    said = [result, {"type": "text", "text": following[0]["content"]}]
    asked["model"] = f"{row}/capture"
    client.messages.create(
        **asked,
        messages=[*messages, first.to_param(), {"role": "user", "content": said}],  # type: ignore[list-item]
    )
    body, _ = wires.sent(marker)
    if row == "anthropic":
        assert body["messages"][2] == {"role": "user", "content": said}
    else:
        assert [message["role"] for message in body["messages"]] == ["user", "assistant", "tool", "user"]
        assert body["messages"][2] == {"role": "tool", "tool_call_id": call.id, "content": "done"}


@pytest.mark.parametrize("name", ["org/model:8b", "org/deep/model:tag@1"])
def test_names_with_slashes_and_colons(
    client: anthropic.Anthropic, gateway: Gateway, wires: Wires, row: str, name: str
) -> None:
    from fakes import scripts  # noqa: PLC0415 - one use

    wires._up.script(name, scripts.answer)
    marker, messages = marked()
    answer = client.messages.create(model=f"{row}/{name}", max_tokens=100, messages=messages)
    assert answer.model == f"{row}/{name}"
    assert wires.attempt(marker).model == name
    with gateway.client() as other:
        chat = other.chat.completions.create(model=f"{row}/{name}", messages=messages)  # type: ignore[arg-type]
        assert chat.model == f"{row}/{name}"
        assert other.models.retrieve("simulator").id == "simulator"


def test_a_key_in_x_api_key(gateway: Gateway) -> None:
    _, messages = marked()
    body = {"model": "fake/normal", "max_tokens": 9, "messages": messages}
    status, headers, _ = gateway.request("POST", "/v1/messages", body, key="", headers={"x-api-key": gateway.key})
    assert status == 200
    assert headers["request-id"] == headers["x-request-id"]
