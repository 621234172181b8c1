"""Answers with tool calls that a model wrote as text: whole and streamed, through the official SDK and without it."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from api.asking import chunks_of, events_of
from api.tool_calls.conftest import SAY, Sayer
from fakes.gateway import Gateway, provider_environment
from fakes.tool_texts import CLOCK, EXAMPLES, NOW, PARIS, TOOLS, Example
from fakes.upstream import FakeUpstream
from meterhouse.providers.tool_text import TOOL_CALL_FORMATS
from meterhouse.translate.tool_text import GRAMMARS
from meterhouse.translate.tool_text.tools import Call

HERMES = '<tool_call>\n{"name": "now"}\n</tool_call>'
FIRST = {row.format: row for row in reversed(EXAMPLES) if len([p for p in row.pieces if isinstance(p, Call)]) > 0}
CUT = "say?tokens=12&pace_ms=1"
TWO = {row.format: row for row in EXAMPLES if [p for p in row.pieces if isinstance(p, Call)] == [PARIS, CLOCK]}


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client()


def asking(text: str) -> list[Any]:
    return [{"role": "user", "content": f"{SAY}{text}"}]


def calls_of(example: Example) -> list[tuple[str, str]]:
    return [(piece.name, piece.arguments) for piece in example.pieces if isinstance(piece, Call)]


def text_of(example: Example) -> str | None:
    return "".join(piece for piece in example.pieces if isinstance(piece, str)) or None


def test_every_format_has_an_example_here() -> None:
    assert set(FIRST) == set(TOOL_CALL_FORMATS) == set(GRAMMARS)


@pytest.mark.parametrize("example", [*FIRST.values(), *TWO.values()], ids=lambda row: row.format)
def test_the_sdk_gets_the_calls_of_a_whole_answer(client: openai.OpenAI, example: Example) -> None:
    answer = client.chat.completions.create(
        model=f"{example.format}/say?tokens=3", messages=asking(example.text), tools=TOOLS
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == text_of(example)
    assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls] == calls_of(example)
    assert len({call.id for call in choice.message.tool_calls}) == len(calls_of(example))


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("example", [*FIRST.values(), *TWO.values()], ids=lambda row: row.format)
def test_the_sdks_stream_helper_assembles_the_calls(client: openai.OpenAI, example: Example, size: int) -> None:
    with client.chat.completions.stream(
        model=f"{example.format}/say?tokens={size}", messages=asking(example.text), tools=TOOLS
    ) as stream:
        events = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == text_of(example)
    assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls] == calls_of(example)
    assert events.count("tool_calls.function.arguments.done") == len(calls_of(example))


def test_the_plain_stream_gives_each_call_its_index_and_id_once(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="hermes/say?tokens=4", messages=asking(HERMES * 2),
        tools=TOOLS, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    calls = [call for chunk in chunks for row in chunk.choices for call in row.delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert all(call.id.startswith("call_") and len(call.id) == 29 for call in calls)
    assert {chunk.model for chunk in chunks} == {"hermes/say?tokens=4"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == -(-len(HERMES * 2) // 4)


def test_the_ids_of_mistral_are_those_that_its_template_takes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="mistral/say?tokens=9", messages=asking(FIRST["mistral"].text), tools=TOOLS
    )
    assert all(len(call.id) == 9 and call.id.isalnum() for call in answer.choices[0].message.tool_calls)


@pytest.mark.parametrize("more", [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}])
@pytest.mark.parametrize("stream", [False, True])
def test_without_tools_a_call_is_text(gateway: Gateway, more: dict[str, Any], stream: bool) -> None:
    for model in ("hermes", "plain"):
        messages = asking(HERMES)
        status, _, body = gateway.chat(f"{model}/say?tokens=5", messages=messages, stream=stream, **more)
        assert status == 200
        if stream:
            deltas = [row["delta"] for chunk in chunks_of(body) for row in chunk["choices"]]
            assert deltas[0] == {"role": "assistant", "content": ""}
            assert [delta["content"] for delta in deltas[1:-1]] == [HERMES[i : i + 5] for i in range(0, len(HERMES), 5)]
        else:
            assert json.loads(body)["choices"][0]["message"] == {"role": "assistant", "content": HERMES}


def test_a_deployment_without_a_format_passes_the_text_on(gateway: Gateway) -> None:
    _, _, body = gateway.chat("plain/say?tokens=5", messages=asking(HERMES), tools=TOOLS)
    (choice,) = json.loads(body)["choices"]
    assert choice["message"]["content"] == HERMES
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_glm_4_answer_has_no_white_space_around_it_with_tools_or_without(gateway: Gateway, stream: bool) -> None:
    for tools in ({}, {"tools": TOOLS}):
        messages = asking("\n It is  sunny.\n\n")
        _, _, body = gateway.chat("glm4/say?tokens=2", messages=messages, stream=stream, **tools)
        if stream:
            deltas = [row["delta"] for chunk in chunks_of(body) for row in chunk["choices"]]
            text = "".join(delta.get("content") or "" for delta in deltas)
        else:
            text = json.loads(body)["choices"][0]["message"]["content"]
        assert text == "It is  sunny."


def test_text_that_is_no_call_arrives_while_the_answer_is_written(gateway: Gateway) -> None:
    """The provider stalls after "Hello <tool_x"; what it said is with the client before it goes on."""
    text = "Hello <tool_x and more"
    with gateway.client().chat.completions.create(
        model="hermes/say?tokens=1&fault=stall&at=13", messages=asking(text), tools=TOOLS, stream=True
    ) as stream:
        said = ""
        for chunk in stream:
            said += chunk.choices[0].delta.content or ""
            if said == text[:13]:
                break
    assert said == text[:13]


def test_a_client_is_kept_waiting_with_comments_while_a_call_is_held(
    up: FakeUpstream, sayer: Sayer, tmp_path: Path
) -> None:
    environment = provider_environment("local", up.base_url, METERHOUSE_KEEP_ALIVE_SECONDS="0.1")
    environment["METERHOUSE_PROVIDER_LOCAL_TOOL_CALL_FORMAT"] = "hermes"
    with Gateway(tmp_path / "data", environment) as running:
        _, _, body = running.chat("local/say?tokens=1&pace_ms=20", messages=asking(HERMES), tools=TOOLS, stream=True)
    frames = body.removesuffix(b"\n\n").split(b"\n\n")
    role, call, finish, done = [frame for frame in frames if frame != b": keep-alive"]
    assert b'"role"' in role
    assert frames.index(call) - frames.index(role) > 2
    assert b'"tool_calls":[' in call
    assert b'"finish_reason":"tool_calls"' in finish
    assert done == b"data: [DONE]"


def test_a_failure_in_mid_stream_comes_after_what_was_held(gateway: Gateway) -> None:
    text = 'Hi <tool_call>\n{"name": "now", "arg'
    model = f"hermes/say?tokens=1&fault=reset&at={len(text) - 1}"
    _, _, body = gateway.chat(model, messages=asking(text), tools=TOOLS, stream=True)
    *chunks, failure = [json.loads(event) for event in events_of(body)]
    assert "error" in failure
    assert "".join(row["delta"].get("content") or "" for chunk in chunks for row in chunk["choices"]) == text[:-1]


@pytest.mark.parametrize("first", ["role", "none"])
def test_a_failure_while_all_is_held_ends_a_stream_like_any_other(gateway: Gateway, first: str) -> None:
    """What was held is told and was paid for; a status instead of a stream would make the SDK ask again."""
    status, headers, body = gateway.chat(
        f"glm45/say?tokens=4&fault=reset&at=3&usage=none&first={first}",
        messages=asking("<tool_call>now<arg_key>"), tools=TOOLS, stream=True,
    )  # fmt: skip
    assert status == 200
    *chunks, failure = [json.loads(event) for event in events_of(body)]
    assert "error" in failure
    assert "".join(row["delta"].get("content") or "" for chunk in chunks for row in chunk["choices"]) == "<tool_call>n"
    (record,) = gateway.records(headers["x-request-id"])
    assert record.outcome.value == "upstream_failed"
    assert record.usage.output_tokens > 0


def test_the_first_failure_keeps_its_status(gateway: Gateway) -> None:
    status, _, _ = gateway.chat("glm4/error-429", messages=asking(""), tools=TOOLS, stream=True)
    assert status == 503


@pytest.mark.parametrize("usage", ["choices", "finish", "kimi", "running", "none"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_charged_is_what_the_provider_sent(gateway: Gateway, usage: str, stream: bool) -> None:
    """A call loses its marks on the way, and the count must not lose them."""
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    answers = {}
    for name in ("hermes", "plain"):
        status, headers, body = gateway.chat(
            f"{name}/say?tokens=4&usage={usage}", messages=asking(HERMES), tools=TOOLS, stream=stream, **more
        )
        assert status == 200
        (record,) = gateway.records(headers["x-request-id"])
        told = [chunk["usage"] for chunk in chunks_of(body) if chunk.get("usage")] if stream else []
        answers[name] = (record.usage, record.exactness, told[-1] if stream else json.loads(body)["usage"])
        assert answers[name][2]["completion_tokens"] == record.usage.output_tokens
    assert answers["hermes"] == answers["plain"]
    assert answers["hermes"][0].output_tokens > 8


def test_an_answer_that_is_cut_at_its_hold_ends_with_what_was_held_back_until_then(gateway: Gateway) -> None:
    """The provider ignores ``max_tokens``: 100 events of 12 characters are what the budget holds."""
    text = f'{HERMES} word <tool_call>{{"name": "now", "arguments": {{"a": "{"y" * 4_000}'
    gateway.set_price("hermes", CUT, "1", "4")
    key = gateway.new_key("spend 1 USD/month")
    status, headers, body = gateway.chat(
        f"hermes/{CUT}", key=key, messages=asking(text), tools=TOOLS, stream=True, max_tokens=100
    )
    assert status == 200, body
    chunks = chunks_of(body)
    deltas = [row["delta"] for chunk in chunks for row in chunk["choices"]]
    assert sum("tool_calls" in delta for delta in deltas) == 1
    said = "".join(delta.get("content") or "" for delta in deltas)
    (record,) = gateway.records(headers["x-request-id"])
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert record.outcome.value == "cut"
    assert text[len(HERMES) + 1 :].startswith(said)
    # Of the read that went too far nothing is told.
    assert 600 < len(HERMES) + 1 + len(said) <= 1_200


def test_the_sdks_round_trip_goes_on_with_the_result(client: openai.OpenAI, sayer: Sayer) -> None:
    messages = asking(FIRST["qwen3_coder"].text)
    answer = client.chat.completions.create(model="qwen3_coder/say?tokens=9", messages=messages, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    again = client.chat.completions.create(model="qwen3_coder/say?tokens=9", messages=messages, tools=TOOLS)
    assert again.choices[0].finish_reason == "tool_calls"
    assert sayer.bodies[-1]["tools"] == TOOLS
    assert [message["role"] for message in sayer.bodies[-1]["messages"]] == ["user", "assistant", "tool"]


def test_ollamas_own_wire_has_formats_by_model(gateway: Gateway) -> None:
    body = {"model": "ollama/say?tokens=3", "messages": asking("\nnow\n{}\n"), "tools": TOOLS}
    for stream in (False, True):
        status, _, answer = gateway.chat(**body, stream=stream)
        assert status == 200, answer
        assert NOW.encode() in answer
        rows = chunks_of(answer) if stream else [json.loads(answer)]
        found = [row.get("delta") or row.get("message") for chunk in rows for row in chunk["choices"]]
        calls = [call["function"] for row in found if row for call in row.get("tool_calls") or ()]
        assert [(call["name"], call["arguments"]) for call in calls] == [CLOCK]
