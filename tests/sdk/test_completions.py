"""The official SDK, unmodified: whole answers, streams, helpers, tools."""

import json

import openai
import pytest
from openai.types.chat import ChatCompletionToolParam
from pydantic import BaseModel

from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.http.health import TESTED_OPENAI_SDK

TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}},
                "required": ["text"],
                "additionalProperties": False,
            },
        },
    }
    for number in range(2)
]


def ask(marker: str) -> list:
    return [{"role": "user", "content": f"Hello marker={marker}"}]


class Answer(BaseModel):
    city: str
    inhabitants: int


def test_the_sdk_that_health_names_is_the_one_that_is_tested() -> None:
    assert openai.__version__ == TESTED_OPENAI_SDK


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake/normal?tokens=6", messages=ask("whole"))
    assert answer.object == "chat.completion"
    assert answer.model == "fake/normal?tokens=6"
    assert answer.choices[0].message.content == answer_text("whole", 6)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


async def test_a_whole_answer_asynchronously(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        answer = await client.chat.completions.create(model="fake/normal?tokens=6", messages=ask("async"))
    assert answer.choices[0].message.content == answer_text("async", 6)


def test_a_stream_without_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="fake/normal?tokens=6", messages=ask("s"), stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer_text("s", 6)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_without_usage_asynchronously(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        stream = await client.chat.completions.create(model="fake/normal?tokens=6", messages=ask("as"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer_text("as", 6)


@pytest.mark.parametrize("place", ["choices", "finish", "kimi", "groq", "running", "none"])
def test_a_stream_with_usage_wherever_the_provider_puts_it(client: openai.OpenAI, place: str) -> None:
    stream = client.chat.completions.create(
        model=f"fake/normal?tokens=6&usage={place}",
        messages=ask("usage"),
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks), "clients add up what they see"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 6


@pytest.mark.parametrize("place", ["finish", "running", "running-only", "duplicated"])
def test_a_usage_that_was_not_asked_for_is_left_out(client: openai.OpenAI, place: str) -> None:
    stream = client.chat.completions.create(
        model=f"fake/normal?tokens=6&usage={place}", messages=ask("unasked"), stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer_text("unasked", 6)
    assert all(chunk.usage is None for chunk in chunks)


def test_the_streaming_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="fake/normal?tokens=6", messages=ask("helper"), stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "".join(event.delta for event in events if event.type == "content.delta") == answer_text("helper", 6)
    assert [event.content for event in events if event.type == "content.done"] == [answer_text("helper", 6)]
    assert final.choices[0].message.content == answer_text("helper", 6)
    assert final.usage is not None
    assert final.usage.completion_tokens == 6


async def test_the_streaming_helper_asynchronously(gateway: Gateway) -> None:
    async with (
        gateway.async_client() as client,
        client.chat.completions.stream(model="fake/normal?tokens=6", messages=ask("ahelper")) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == answer_text("ahelper", 6)


def test_parsing_into_a_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="simulator-instant", messages=ask("parse"), response_format=Answer)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Answer)
    assert isinstance(parsed.inhabitants, int)


def test_parsing_a_stream_into_a_model(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="simulator-instant", messages=ask("parse"), response_format=Answer
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Answer)


def test_parsing_an_answer_that_was_cut_is_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="fake/normal?tokens=50", messages=ask("cut"), response_format=Answer, max_tokens=3
        )


@pytest.mark.parametrize("script", ["tools", "tools-two"])
def test_tool_calls(client: openai.OpenAI, script: str) -> None:
    answer = client.chat.completions.create(
        model=f"fake/{script}?tokens=4", messages=ask("tools"), tools=TOOLS, parallel_tool_calls=script == "tools-two"
    )
    choice = answer.choices[0]
    calls = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert len(calls) == (2 if script == "tools-two" else 1)
    for number, call in enumerate(calls):
        assert call.type == "function"
        assert call.id
        assert call.function.name == f"tool_{number}"
        assert json.loads(call.function.arguments) == {"text": answer_text("tools", 4)}


@pytest.mark.parametrize("script", ["tools", "tools-empty-ids"])
def test_a_tool_call_through_the_streaming_helper(client: openai.OpenAI, script: str) -> None:
    with client.chat.completions.stream(model=f"fake/{script}?tokens=4", messages=ask("stools"), tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(call.function.arguments) == {"text": answer_text("stools", 4)}
    assert call.function.parsed_arguments == {"text": answer_text("stools", 4)}


def test_parallel_tool_calls_whose_pieces_are_mixed(client: openai.OpenAI) -> None:
    arguments = ["", ""]
    for chunk in client.chat.completions.create(
        model="fake/tools-two?tokens=4", messages=ask("mixed"), tools=TOOLS, stream=True
    ):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            arguments[call.index] += call.function.arguments or ""
    assert [json.loads(text) for text in arguments] == [{"text": answer_text("mixed", 4)}] * 2


def test_a_tools_answer_is_sent_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="fake/tools", messages=ask("back"), tools=TOOLS).choices[0].message
    calls = first.tool_calls or []
    messages = [
        *ask("back"),
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": calls[0].id, "content": "42 marker=back2"},
    ]
    second = client.chat.completions.create(model="fake/normal?tokens=3", messages=messages, tools=TOOLS)
    assert second.choices[0].message.content == answer_text("back2", 3)


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake/normal?tokens=5", messages=ask("n"), n=2)
    assert [choice.message.content for choice in answer.choices] == [answer_text("n", 5, index) for index in range(2)]
    with client.chat.completions.stream(model="fake/normal?tokens=5", messages=ask("n"), n=2) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [answer_text("n", 5, index) for index in range(2)]


def test_a_refusal(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake/refusal?tokens=5", messages=ask("no"))
    assert answer.choices[0].message.refusal == answer_text("no", 5)


def test_reasoning_and_unknown_fields_are_there_as_extras(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake/reasoning?tokens=2", messages=ask("think"), extra_body={"top_k": 5, "thinking": {"type": "on"}}
    )
    assert answer.choices[0].message.reasoning_content == answer_text("think", 8)  # type: ignore[attr-defined]


def test_the_raw_response_has_the_headers(gateway: Gateway) -> None:
    key = gateway.new_key("requests 50/minute; tokens 100000/hour")
    with gateway.client(key) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="fake/normal?tokens=3", messages=ask("raw"), max_tokens=10
        )
    answer = raw.parse()
    assert answer.choices[0].message.content == answer_text("raw", 3)
    assert raw.request_id == answer._request_id == raw.headers["x-request-id"]
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert (raw.headers["x-ratelimit-limit-requests"], raw.headers["x-ratelimit-remaining-requests"]) == ("50", "49")
    assert raw.headers["x-ratelimit-limit-tokens"] == "100000"
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    (record,) = gateway.records(raw.headers["x-request-id"])
    assert record.usage.output_tokens == 3


def test_the_models(client: openai.OpenAI, gateway: Gateway, up: FakeUpstream) -> None:
    listed = [model.id for model in client.models.list()]
    assert "simulator" in listed
    for name in ("simulator", "fake/normal", "fake/some/deep:name"):
        found = client.models.retrieve(name)
        assert (found.id, found.object) == (name, "model")
        assert isinstance(found.created, int)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_a_client_that_is_set_up_by_the_environment(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", gateway.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", gateway.key)
    with openai.OpenAI() as client:
        answer = client.chat.completions.create(model="simulator-instant", messages=ask("env"))
    assert answer.choices[0].message.content
