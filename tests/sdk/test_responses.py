"""The official SDK's Responses API, unmodified: whole answers, streams, its stream helper, parsing, tools, errors."""

import json
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseInputParam
from pydantic import BaseModel

from fakes.gateway import Gateway
from fakes.words import answer_text


class Answer(BaseModel):
    city: str
    inhabitants: int


class Weather(BaseModel):
    """Tell the weather."""

    text: str


TOOL = openai.pydantic_function_tool(Weather, name="tool_0")["function"]
TOOLS: Any = [{"type": "function", **TOOL}]


def ask(marker: str) -> str:
    return f"Hello marker={marker}"


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="fake/normal?tokens=6", input=ask("rw"), instructions="Be brief.")
    assert answer.output_text == answer_text("rw", 6)
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 6
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


async def test_a_whole_answer_asynchronously(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        answer = await client.responses.create(model="fake/normal?tokens=6", input=ask("raw"))
    assert answer.output_text == answer_text("raw", 6)


def test_a_stream(client: openai.OpenAI) -> None:
    with client.responses.create(model="fake/normal?tokens=6", input=ask("rs"), stream=True) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer_text("rs", 6)
    assert events[-1].type == "response.completed"


async def test_a_stream_asynchronously(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        stream = await client.responses.create(model="fake/normal?tokens=6", input=ask("ras"), stream=True)
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer_text("ras", 6)


def test_a_raw_stream_is_named_events(client: openai.OpenAI) -> None:
    with client.responses.with_streaming_response.create(
        model="fake/normal?tokens=2", input=ask("raw"), stream=True
    ) as raw:
        assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in raw.iter_lines() if line]
    names, data = lines[::2], lines[1::2]
    assert [name.removeprefix("event: ") for name in names] == [
        json.loads(line.removeprefix("data: "))["type"] for line in data
    ]


def test_the_streaming_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake/reasoning?tokens=6", input=ask("rh")) as stream:
        events = list(stream)
        final = stream.get_final_response()
    snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    assert snapshots[-1] == final.output_text
    assert [item.type for item in final.output] == ["reasoning", "message"]


async def test_the_streaming_helper_asynchronously(gateway: Gateway) -> None:
    async with (
        gateway.async_client() as client,
        client.responses.stream(model="fake/normal?tokens=6", input=ask("rah")) as stream,
    ):
        final = await stream.get_final_response()
    assert final.output_text == answer_text("rah", 6)


def test_parsing_into_a_model(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="simulator-instant", input=ask("rp"), text_format=Answer)
    assert isinstance(answer.output_parsed, Answer)


def test_parsing_a_stream_into_a_model(client: openai.OpenAI) -> None:
    with client.responses.stream(model="simulator-instant", input=ask("rps"), text_format=Answer) as stream:
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Answer)


def test_several_turns_with_a_tool(client: openai.OpenAI) -> None:
    history: ResponseInputParam = [{"role": "user", "content": ask("rt")}]
    first = client.responses.parse(model="fake/tools?tokens=4&reasoning=2", input=history, tools=TOOLS)
    history += [item.to_dict(exclude_unset=True) for item in first.output]  # type: ignore[misc]
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments)["text"]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": f"Sunny. {ask('rt2')}"})
    second = client.responses.create(model="fake/normal?tokens=4", input=history, tools=TOOLS)
    assert second.output_text == answer_text("rt2", 4)


def test_a_tool_call_through_the_streaming_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake/tools-two?tokens=4", input=ask("rst"), tools=TOOLS) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["tool_0", "tool_1"]
    assert calls[0].arguments in snapshots
    assert json.loads(calls[0].arguments) == {"text": answer_text("rst", 4)}


def test_an_answer_that_was_cut_is_incomplete(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake/normal", input=ask("rc"), max_output_tokens=3) as stream:
        last = list(stream)[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_what_is_not_supported_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake/normal", input="Hi", previous_response_id="resp_1")
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


@pytest.mark.parametrize("script", ["error-mid", "eof-early"])
def test_a_failure_in_the_stream_is_raised(client: openai.OpenAI, script: str) -> None:
    with (
        client.responses.create(model=f"fake/{script}", input=ask("rf"), stream=True) as stream,
        pytest.raises(openai.APIError) as caught,
    ):
        list(stream)
    assert str(caught.value.code).startswith("upstream_")


def test_a_failure_in_the_stream_is_raised_by_the_helper_too(client: openai.OpenAI) -> None:
    with (
        client.responses.stream(model="fake/error-mid", input=ask("rfh")) as stream,
        pytest.raises(openai.APIError),
    ):
        stream.get_final_response()
