"""OpenAI's chat request as Anthropic's: what is said otherwise, what is left out, what is refused."""

from typing import Any

import msgspec
import pytest

from meterhouse.errors import Malformed
from meterhouse.translate.anthropic.asking import to_messages_request

PIXEL = "iVBORw0KGgo="
FUNCTION = {"name": "f", "description": "Does it.", "parameters": {"type": "object", "properties": {"x": {}}}}
TOOL = {"type": "function", "function": FUNCTION}


def asked(*messages: dict[str, Any], thinks_by_budget: bool = False, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": messages or ({"role": "user", "content": "Hi"},), **fields}
    found = to_messages_request(
        msgspec.json.encode(body), upstream_model="claude", default_max_tokens=4_096, thinks_by_budget=thinks_by_budget
    )
    request: dict[str, Any] = msgspec.json.decode(found)
    return request


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def test_a_plain_request_has_the_models_name_and_a_bound() -> None:
    assert asked() == {
        "model": "claude",
        "max_tokens": 4_096,
        "messages": [{"role": "user", "content": [text("Hi")]}],
    }


def test_options_have_their_other_names() -> None:
    found = asked(
        max_tokens=9,
        max_completion_tokens=8,
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        stop="END",
        stream=True,
        user="u-1",
        service_tier="default",
        seed=7,
        presence_penalty=0,
        stream_options={"include_usage": True},
    )
    del found["messages"], found["model"]
    assert found == {
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop_sequences": ["END"],
        "stream": True,
        "metadata": {"user_id": "u-1"},
        "service_tier": "standard_only",
    }


def test_nothing_unknown_goes_along() -> None:
    found = asked(container="c", mcp_servers=[{}], speed="fast", inference_geo="us", store=True, metadata={"a": "b"})
    assert found.keys() == {"model", "max_tokens", "messages"}


def test_system_messages_come_out_and_neighbours_of_one_role_become_one_turn() -> None:
    found = asked(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "user", "content": [text("two"), text("")]},
        {"role": "developer", "content": [{**text("Be kind."), "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": "Well"},
    )
    assert found["system"] == [text("Be brief."), {**text("Be kind."), "cache_control": {"type": "ephemeral"}}]
    assert found["messages"] == [
        {"role": "user", "content": [text("One"), text("two"), text("three")]},
        {"role": "assistant", "content": [text("No."), text("Well")]},
    ]


def test_calls_and_their_results_become_blocks() -> None:
    call = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    other = {"id": "toolu_2", "type": "function", "function": {"name": "g", "arguments": ""}}
    found = asked(
        {"role": "user", "content": "Do it"},
        {"role": "assistant", "content": "Yes.", "tool_calls": [call, other]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "done"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": [text("a"), text("b")]},
        {"role": "user", "content": "And?"},
        tools=[TOOL, {**TOOL, "cache_control": {"type": "ephemeral"}}],
    )
    assert found["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                text("Yes."),
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("a"), text("b")]},
                text("And?"),
            ],
        },
    ]
    plain = {"name": "f", "description": "Does it.", "input_schema": FUNCTION["parameters"]}
    assert found["tools"] == [plain, {**plain, "cache_control": {"type": "ephemeral"}}]
    assert "tool_choice" not in found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_a_choice_of_tools(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert asked(tools=[TOOL], **fields)["tool_choice"] == expected


def test_pictures_and_files() -> None:
    found = asked(
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
                {"type": "file", "file": {"file_data": "data:text/plain;base64,SGk="}},
            ],
        }
    )
    assert found["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}},
    ]


def test_only_thoughts_that_were_signed_go_back() -> None:
    signed = [{"type": "thinking", "thinking": "Hm", "signature": "c2ln"}, {"type": "redacted_thinking", "data": "x"}]
    found = asked(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "reasoning_content": "Hm", "thinking_blocks": signed},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "No", "reasoning_content": "Hm"},
    )
    assert found["messages"][1]["content"] == [*signed, text("Yes")]
    assert found["messages"][3]["content"] == [text("No")]


@pytest.mark.parametrize(
    ("effort", "thinking", "output_config"),
    [
        ("none", {"type": "disabled"}, None),
        ("minimal", {"type": "adaptive", "display": "summarized"}, {"effort": "low"}),
        ("xhigh", {"type": "adaptive", "display": "summarized"}, {"effort": "xhigh"}),
    ],
)
def test_effort_of_models_that_take_one(effort: str, thinking: dict[str, Any], output_config: Any) -> None:
    found = asked(reasoning_effort=effort)
    assert found["thinking"] == thinking
    assert found.get("output_config") == output_config


def test_effort_of_models_that_take_a_number_of_tokens() -> None:
    found = asked(reasoning_effort="medium", thinks_by_budget=True, max_tokens=20_000)
    assert found["thinking"] == {"type": "enabled", "budget_tokens": 8_192}
    assert "output_config" not in found
    found = asked(reasoning_effort="high", thinks_by_budget=True, max_tokens=2_000)
    assert found["thinking"]["budget_tokens"] == 1_999, "thoughts are a part of the answer's bound"
    assert "thinking" not in asked(reasoning_effort="high", thinks_by_budget=True, max_tokens=1_000)


def test_anthropics_own_thinking_stands_above_an_effort() -> None:
    thinking = {"type": "enabled", "budget_tokens": 2_048}
    assert asked(thinking=thinking, reasoning_effort="high", thinks_by_budget=True)["thinking"] == thinking


def test_a_schema_is_asked_for_as_anthropic_has_it() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    found = asked(response_format=form, reasoning_effort="low")
    assert found["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert "output_config" not in asked(response_format={"type": "text"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 1.5}, "temperature"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"verbosity": "low"}, "verbosity"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "cache_control.ttl"),
    ],
)
def test_what_anthropic_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Malformed) as caught:
        asked(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "mp3"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,raw"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:text/plain;base64,#"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:image/tiff;base64,AA"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"filename": "x"}}]},
        {"role": "user", "content": [{**text("x"), "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
        {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {}}]},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}]},
        {"role": "tool", "content": "no id"},
        {"role": "system", "content": "nothing else"},
        {"role": "user", "content": ""},
    ],
)
def test_messages_that_cannot_be_told_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        asked(message)
