"""Anthropic as an upstream of chat completions: OpenAI's SDK gets what it knows, and the ledger what it used."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from api.messages.asking import TOKENS, Wires, marked
from fakes.anthropic_wire import SIGNATURE
from fakes.gateway import Gateway
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome

TOOL: Any = {"type": "function", "function": {"name": "tool_0", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def chat(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.client() as made:
        yield made


def test_an_answer(chat: openai.OpenAI, wires: Wires) -> None:
    marker, messages = marked()
    raw = chat.chat.completions.with_raw_response.create(model="anthropic/normal", messages=messages)  # type: ignore[arg-type]
    answer = raw.parse()
    assert answer.choices[0].message.content == answer_text(marker, TOKENS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "anthropic/normal"
    attempt, record = wires.attempt(marker), wires.record(raw.headers["x-request-id"])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (attempt.prompt_tokens, TOKENS)
    assert (record.provider, record.exactness) == ("anthropic", Exactness.REPORTED)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (attempt.prompt_tokens, TOKENS)


@pytest.mark.parametrize("script", ["normal", "half-chunks", "crlf", "batched", "unframed", "done-missing"])
def test_a_stream(chat: openai.OpenAI, wires: Wires, script: str) -> None:
    marker, messages = marked()
    asked: Any = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(chat.chat.completions.create(model=f"anthropic/{script}", **asked))
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == answer_text(marker, TOKENS)
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == wires.attempt(marker).prompt_tokens + TOKENS


@pytest.mark.parametrize("is_streamed", [True, False])
def test_calls_of_tools(chat: openai.OpenAI, is_streamed: bool) -> None:
    marker, messages = marked()
    message = ask(chat, "anthropic/tools-two", messages, is_streamed, tools=[TOOL]).choices[0].message
    assert [call.function.name for call in message.tool_calls or () if call.type == "function"] == ["tool_0", "tool_1"]
    arguments = [call.function.arguments for call in message.tool_calls or () if call.type == "function"]
    assert [json.loads(text) for text in arguments] == [{"text": answer_text(marker, TOKENS)}] * 2


@pytest.mark.parametrize("is_streamed", [True, False])
def test_thoughts_and_their_way_back(chat: openai.OpenAI, wires: Wires, is_streamed: bool) -> None:
    marker, messages = marked()
    answer = ask(chat, "anthropic/reasoning", messages, is_streamed)
    message = answer.choices[0].message
    thought = message.model_extra["reasoning_content"]  # type: ignore[index]
    blocks = message.model_extra["thinking_blocks"]  # type: ignore[index]
    assert thought == answer_text(marker, 8)
    assert [(block["thinking"], block["signature"]) for block in blocks] == [(thought, SIGNATURE)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 8
    marker, following = marked("And?")
    said = {"role": "assistant", "content": message.content, "thinking_blocks": blocks}
    ask(chat, "anthropic/capture", [*messages, said, *following], is_streamed)
    body, headers = wires.sent(marker)
    assert body["messages"][1]["content"][0] == {"type": "thinking", "thinking": thought, "signature": SIGNATURE}
    assert headers["anthropic-version"] == "2023-06-01"


def ask(chat: openai.OpenAI, model: str, messages: Any, is_streamed: bool, **more: Any) -> ChatCompletion:
    asked: Any = {"model": model, "messages": messages, **more}
    if not is_streamed:
        answer: ChatCompletion = chat.chat.completions.create(**asked)
        return answer
    with chat.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        return stream.get_final_completion()


def test_pictures_the_user_and_the_bound(chat: openai.OpenAI, wires: Wires) -> None:
    marker, messages = marked()
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content: Any = [{"type": "text", "text": messages[0]["content"]}, picture]
    chat.chat.completions.create(
        model="anthropic/capture", messages=[{"role": "user", "content": content}], user="ann", max_completion_tokens=9
    )
    body, _ = wires.sent(marker)
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    assert body["messages"][0]["content"][1] == {"type": "image", "source": source}
    assert body["max_tokens"] == 9
    assert body["metadata"]["user_id"].startswith("mh-")


@pytest.mark.parametrize("is_streamed", [True, False])
def test_what_a_cache_had_to_do_with_is_charged_at_its_own_price(
    chat: openai.OpenAI, gateway: Gateway, wires: Wires, is_streamed: bool
) -> None:
    price = {
        "provider": "anthropic",
        "model": "usage-cached",
        "input_usd": "10",
        "output_usd": "50",
        "cached_input_usd": "1",
        "cache_write_usd": "12.5",
    }
    status, _, answer = gateway.request("POST", "/admin/prices", price, key=gateway.admin_key)
    assert status == 201, answer
    marker, messages = marked()
    answer = ask(chat, "anthropic/usage-cached", messages, is_streamed)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    prompt_tokens = wires.attempt(marker).prompt_tokens
    assert answer.usage.prompt_tokens == prompt_tokens
    (row,) = [
        row
        for row in gateway.all_records()
        if row["upstream_model"] == "usage-cached" and row["is_streamed"] == is_streamed and row["charge_nanos"]
    ]
    assert row["charge_nanos"] == ((prompt_tokens - 5) * 10_000 + 3 * 1_000 + 2 * 12_500 + TOKENS * 50_000)


def test_an_answer_that_breaks_is_counted_on_what_its_beginning_said(gateway: Gateway, wires: Wires) -> None:
    marker, messages = marked()
    status, headers, body = gateway.chat("anthropic/usage-cached?fault=eof&at=5", messages=messages, stream=True)
    assert status == 200
    assert b"upstream_stream_ended" in body
    record = wires.record(headers["x-request-id"])
    assert (record.outcome, record.exactness) == (Outcome.UPSTREAM_FAILED, Exactness.COUNTED)
    assert record.usage.input_tokens == wires.attempt(marker).prompt_tokens
    assert record.usage.output_tokens == 6


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("error-529", 503, "upstream_busy"),
        ("error-429", 503, "upstream_busy"),
        ("error-401", 502, "upstream_account"),
        ("error-500", 502, "upstream_unavailable"),
        ("garbage-first", 502, "upstream_protocol_error"),
        ("eof-after-head", 502, "upstream_protocol_error"),
        ("error-first", 502, "upstream_unavailable"),
    ],
)
def test_failures(gateway: Gateway, script: str, status: int, code: str) -> None:
    found, _, body = gateway.chat(f"anthropic/{script}?shape=anthropic", stream=True)
    assert (found, json.loads(body)["error"]["code"]) == (status, code)


@pytest.mark.parametrize("script", ["garbage-not-json", "error-mid", "reset"])
def test_a_body_that_breaks(gateway: Gateway, script: str) -> None:
    status, _, body = gateway.chat(f"anthropic/{script}")
    assert status == 502, body
