"""The simulator speaks OpenAI's shapes, honours bounds, and reports exactly what it emitted."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import UpstreamDown
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.provider import ActiveProvider
from meterhouse.providers.schema_example import smallest_value
from meterhouse.providers.simulator import Simulator

ENDPOINT = ActiveProvider(provider=PROVIDERS["simulator"], base_url="simulator:")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "days", "unit"],
        },
    },
}


def say(text: str, **fields: object) -> dict:
    return {"model": "simulator-instant", "messages": [{"role": "user", "content": text}], **fields}


async def send(body: object, *, is_streamed: bool = False, path: str = "/chat/completions", **options: float):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await Simulator(now_seconds=lambda: 1_795_132_800, **options).open(
        ENDPOINT, path, raw, is_streamed=is_streamed
    )


async def whole(body: object) -> dict:
    answer = await send(body)
    assert (answer.status, answer.content_type) == (200, "application/json")
    return json.loads(await answer.read_all(10_000_000))


async def stream(body: dict) -> list[dict]:
    answer = await send(body, is_streamed=True)
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    events = (await answer.read_all(100_000_000)).decode().removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def text_of(chunks: list[dict], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_it_says_what_it_is_and_repeats_a_little():
    answer = await whole(say("hello there"))
    message = answer["choices"][0]["message"]
    assert "simulator, not a language model" in message["content"]
    assert '"hello there"' in message["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_the_same_request_has_the_same_answer():
    assert await whole(say("hello")) == await whole(say("hello"))


async def test_a_stream_says_the_same_as_the_whole_and_each_content_chunk_is_a_token():
    body = say("hello there", stream_options={"include_usage": True})
    answer, chunks = await whole(body), await stream(body)
    assert text_of(chunks) == answer["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == answer["usage"]
    pieces = [c for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")]
    assert len(pieces) == answer["usage"]["completion_tokens"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_no_usage_is_streamed_unless_asked_for():
    assert all("usage" not in chunk for chunk in await stream(say("hello")))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_bound_on_tokens_is_kept(field):
    answer = await whole(say("hello", **{field: 3}))
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"
    chunks = await stream(say("hello", **{field: 3}))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_an_answer_can_be_asked_for_by_length():
    answer = await whole(say("Write 1000 words about the sea"))
    assert answer["usage"]["completion_tokens"] == 1000
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_every_choice_is_answered_and_counted():
    body = say("hello", n=3, max_tokens=5)
    answer, chunks = await whole(body), await stream(body)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 15
    assert [text_of(chunks, index) for index in range(3)] == [c["message"]["content"] for c in answer["choices"]]


async def test_it_ends_before_a_stop_sequence():
    answer = await whole(say("hello", stop=["language", "absent"]))
    assert answer["choices"][0]["message"]["content"] == "This is the Meterhouse simulator, not a "
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_the_input_is_a_token_for_four_bytes_and_a_fixed_number_for_an_image():
    assert (await whole(say("x" * 401)))["usage"]["prompt_tokens"] == 101
    parts = [{"type": "text", "text": "x" * 400}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    answer = await whole({"model": "simulator-instant", "messages": [{"role": "user", "content": parts}]})
    assert answer["usage"]["prompt_tokens"] == 100 + 85


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("hi", "required"),
        ("hi", {"type": "function", "function": {"name": "get_weather"}}),
        ("call GET_WEATHER now", None),
    ],
)
async def test_a_tool_is_called_with_arguments_that_fit_its_schema(text, choice):
    body = say(text, tools=[WEATHER], tool_choice=choice)
    answer, chunks = await whole(body), await stream(body)
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert answer["choices"][0]["message"]["content"] is None
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "simulated", "days": 1, "unit": "C"}
    assert call["id"].startswith("call_")
    assert len(call["id"]) == len("call_") + 24
    first, *rest = [
        c["choices"][0]["delta"]["tool_calls"][0] for c in chunks if c["choices"][0]["delta"].get("tool_calls")
    ]
    assert (first["index"], first["id"], first["function"]["name"]) == (0, call["id"], "get_weather")
    assert "".join(piece["function"]["arguments"] for piece in rest) == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens"] == len(rest) + 1


@pytest.mark.parametrize(("text", "choice"), [("hi", None), ("hi", "auto"), ("get_weather", "none")])
async def test_no_tool_is_called_that_was_not_asked_for(text, choice):
    answer = await whole(say(text, tools=[WEATHER], tool_choice=choice))
    assert "tool_calls" not in answer["choices"][0]["message"]


async def test_after_the_result_of_a_tool_it_answers_in_words():
    body = say("please get_weather", tools=[WEATHER])
    body["messages"] += [
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "rain", "tool_call_id": "c"},
    ]
    assert (await whole(body))["choices"][0]["finish_reason"] == "stop"


async def test_structured_answers_satisfy_their_schema():
    schema = {
        "type": "object",
        "properties": {
            "steps": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/Step"}},
            "final": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "score": {"type": "number", "exclusiveMinimum": 0},
        },
        "required": ["steps", "final", "score"],
        "$defs": {"Step": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema, "strict": True}}
    answer = await whole(say("x", response_format=form))
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert value == {"steps": [{"text": "simulated"}] * 2, "final": None, "score": 1}
    plain = await whole(say("x", response_format={"type": "json_object"}))
    assert json.loads(plain["choices"][0]["message"]["content"]) == {"message": "simulated"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 5}, 5),
        ({"type": ["string", "null"]}, None),
        ({"type": "string", "minLength": 12}, "simulatedxxx"),
        ({"type": "string", "maxLength": 3}, "sim"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "integer", "minimum": 1.5}, 2),
        ({"type": "integer", "maximum": -3}, -3),
        ({"type": "number", "exclusiveMaximum": 0}, -1),
        ({"type": "integer", "minimum": 7, "multipleOf": 5}, 10),
        ({"type": "boolean"}, False),
        ({"prefixItems": [{"type": "integer"}, {"type": "boolean"}]}, [0, False]),
        (
            {
                "allOf": [
                    {"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {"const": 2}}, "required": ["b"]},
                ]
            },
            {"a": 1, "b": 2},
        ),
        ({"type": "object", "required": ["free"]}, {"free": "simulated"}),
        (None, {}),
    ],
)
def test_the_smallest_value_of_a_schema(schema, value):
    assert smallest_value(schema) == value


def test_a_schema_that_contains_itself_ends():
    grows = {"type": "array", "minItems": 100, "items": {"$ref": "#"}}
    loops = {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    }
    assert len(json.dumps(smallest_value(grows))) < 100_000
    smallest_value(loops)
    assert smallest_value(node) == {"next": None}


_KEYS = ("type", "items", "required", "properties", "enum", "anyOf", "allOf", "$ref", "minItems", "minimum", "format")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["object", "array", "string", "#"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
        max_leaves=15,
    )
)
def test_no_schema_breaks_it(schema):
    json.dumps(smallest_value(schema))


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [(b"{", "/chat/completions", 400), (b'{"messages": 1}', "/chat/completions", 400), (b"{}", "/responses", 404)],
)
async def test_what_it_cannot_read_it_refuses_like_a_provider(body, path, status):
    answer = await send(body, path=path)
    assert answer.status == status
    assert json.loads(await answer.read_all(1_000))["error"]["type"] == "invalid_request_error"


async def test_the_slow_model_waits_and_an_abort_wakes_its_reader():
    body = {**say("hello"), "model": "simulator"}
    answer = await send(body, is_streamed=True, tokens_per_second=0.001)
    reader = asyncio.create_task(answer.read())
    await asyncio.sleep(0)
    assert not reader.done()
    answer.abort()
    with pytest.raises(UpstreamDown):
        await reader
    with pytest.raises(UpstreamDown):
        await answer.read()


async def test_a_read_that_was_cancelled_loses_nothing():
    body = {**say("hello"), "model": "simulator"}
    answer = await send(body, is_streamed=True, tokens_per_second=1_000)
    reader = asyncio.create_task(answer.read())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    assert b'"role":"assistant"' in await answer.read()


async def test_a_body_longer_than_the_limit_is_refused():
    answer = await send(say("hello"))
    with pytest.raises(UpstreamDown, match="more than 10 bytes"):
        await answer.read_all(10)
