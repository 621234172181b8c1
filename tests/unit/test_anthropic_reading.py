"""A client's Messages request: what of it becomes a chat request, what only Anthropic is told, what nobody is."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.translate.anthropic.asking import to_messages_request
from meterhouse.translate.anthropic.reading import MessagesAsked, read_request, signed_messages

TOOL = {"name": "f", "description": "Does it.", "input_schema": {"type": "object", "properties": {"x": {}}}}
USER = {"role": "user", "content": "Hi"}


def read(*turns: dict[str, Any], needs_bound: bool = True, **fields: Any) -> MessagesAsked:
    body = {"model": "m", "max_tokens": 64, "messages": turns or (USER,), **fields}
    return read_request(msgspec.json.encode(body), needs_bound=needs_bound)


def told(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    found = read(*turns, **fields)
    assert found.only_anthropic is None
    chat: dict[str, Any] = msgspec.json.decode(found.body)
    return chat


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def test_a_plain_request() -> None:
    assert told() == {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]}


def test_options_have_their_other_names() -> None:
    found = told(
        system=[text("Be brief."), {**text("Be kind."), "cache_control": {"type": "ephemeral"}}],
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop_sequences=["END"],
        stream=True,
        metadata={"user_id": "u-1"},
        service_tier="standard_only",
        cache_control=None,
        tools=[{**TOOL, "type": "custom", "strict": True, "eager_input_streaming": True}],
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    assert found.pop("messages")[0] == {"role": "system", "content": [text("Be brief."), text("Be kind.")]}
    assert found == {
        "model": "m",
        "max_tokens": 64,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "stop": ["END"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u-1",
        "service_tier": "default",
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "parameters": TOOL["input_schema"],
                    "description": "Does it.",
                    "strict": True,
                },
            }
        ],
        "reasoning_effort": "max",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
        ),
    ],
)
def test_a_choice_of_tools(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    assert told(tools=[TOOL], tool_choice=choice).items() >= expected.items()


@pytest.mark.parametrize(
    ("thinking", "effort"),
    [
        ({"type": "enabled", "budget_tokens": 1_024}, "low"),
        ({"type": "enabled", "budget_tokens": 6_000}, "medium"),
        ({"type": "enabled", "budget_tokens": 32_000}, "high"),
        ({"type": "adaptive"}, None),
        ({"type": "disabled"}, None),
    ],
)
def test_thinking_becomes_an_effort_where_it_says_one(thinking: dict[str, Any], effort: str | None) -> None:
    assert told(thinking=thinking).get("reasoning_effort") == effort


def test_blocks_of_both_sides() -> None:
    found = told(
        {"role": "user", "content": [text("Look"), {"type": "image", "source": {"type": "url", "url": "https://e/x"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "xyz"},
                text("Let me see."),
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                text("Here:"),
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [
                        text("a"),
                        text("b"),
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                    ],
                },
            ],
        },
        {"role": "system", "content": "Now be brief."},
        {"role": "user", "content": [text("So?")]},
    )
    assert found["messages"] == [
        {"role": "user", "content": [text("Look"), {"type": "image_url", "image_url": {"url": "https://e/x"}}]},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "a\nb"},
        {
            "role": "user",
            "content": [text("Here:"), {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        },
        {"role": "system", "content": "Now be brief."},
        {"role": "user", "content": "So?"},
    ]


def test_what_nobody_else_counts_is_measured() -> None:
    signed = {"type": "thinking", "thinking": "Hm", "signature": "x" * 500}
    document = {
        "type": "document",
        "title": "t" * 30,
        "source": {"type": "text", "media_type": "text/plain", "data": "D"},
    }
    found = read({"role": "user", "content": [document]}, {"role": "assistant", "content": [signed]})
    assert found.untold_bytes == 530


def test_what_only_anthropic_reads_of_a_tool_is_measured() -> None:
    examples = [{"x": "y" * 1_000}]
    assert read(tools=[{**TOOL, "input_examples": examples}]).untold_bytes > 900


def test_documents() -> None:
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
    plain = {"type": "text", "media_type": "text/plain", "data": "Words"}
    documents = [{"type": "document", "source": source, "title": "a.pdf"} for source in (pdf, plain)]
    assert told({"role": "user", "content": documents})["messages"][0]["content"] == [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
        text("Words"),
    ]


@pytest.mark.parametrize(
    ("turn", "fields"),
    [
        (USER, {"tools": [{"type": "bash_20250124", "name": "bash"}]}),
        (USER, {"tools": [{**TOOL, "name": "n" * 100}]}),
        (USER, {"stop_sequences": list("abcde")}),
        (USER, {"tools": [{"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}]}),
        ({"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "https://e/x.pdf"}}]}, {}),
        (
            {"role": "user", "content": [{"type": "document", "source": {"type": "content", "content": [text("x")]}}]},
            {},
        ),
        (
            {
                "role": "user",
                "content": [{"type": "search_result", "source": "https://e", "title": "t", "content": [text("x")]}],
            },
            {},
        ),
    ],
)
def test_what_only_anthropic_can_be_told(turn: dict[str, Any], fields: dict[str, Any]) -> None:
    found = read(turn, **fields)
    assert found.only_anthropic is not None
    assert found.only_anthropic.status == 400
    assert found.body, "it can be measured all the same"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"container": "container_1"}, "container"),
        ({"mcp_servers": [{"type": "url", "url": "https://e"}]}, "mcp_servers"),
        ({"thread": {"id": "x"}}, "thread"),
        ({"diagnostics": {"previous_message_id": "msg_1"}}, "diagnostics"),
        ({"fallbacks": []}, "fallbacks"),
        ({"betas": ["x"]}, "betas"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits"),
        ({"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "cache_control.ttl"),
        ({"tools": [{**TOOL, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}, "cache_control.ttl"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp_toolset", "name": "x"}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20250825"]}]}, "tools[0].allowed_callers"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "tool_choice.name"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"model": 5}, "model"),
    ],
)
def test_what_nobody_is_given_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Malformed) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "container_upload", "file_id": "file_1"},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "x", "input": {}},
        {"type": "tool_result", "content": "of nothing"},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "f"}]},
        {"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": {"type": "file"}}]}},
        {"type": "thinking", "thinking": "not the user's", "signature": ""},
        {**text("x"), "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
)
def test_blocks_of_what_is_stored_or_run_at_anthropic_are_refused(block: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        read({"role": "user", "content": [block]})


@pytest.mark.parametrize("body", [b"", b"nothing", b"[]", b'{"model":"m"}', b"[" * 10_000, b'{"model":"\xff"}'])
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_request(body)


def test_a_count_needs_no_bound_and_a_null_is_nothing() -> None:
    found = read(needs_bound=False, max_tokens=None, container=None)
    assert found.fields.keys() == {"model", "messages"}


def test_thoughts_of_other_providers_are_taken_out_for_anthropic() -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": ""}
    turns = [
        USER,
        {"role": "assistant", "content": [thought, text("Yes")]},
        {"role": "assistant", "content": [thought]},
    ]
    kept = msgspec.json.decode(signed_messages(read(*turns).fields["messages"]))
    assert kept == [USER, {"role": "assistant", "content": [text("Yes")]}]


def test_thoughts_that_were_signed_stay_byte_for_byte() -> None:
    body = b'[{"role": "assistant",  "content":[{"type":"thinking","thinking":"Hm","signature":"c2ln"}]}]'
    assert bytes(signed_messages(Raw(body))) == body


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
PLAIN = st.builds(text, WORDS)
PICTURES = st.builds(
    lambda data: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
    st.sampled_from(["AA==", "iVBORw0KGgo="]),
)
USERS = st.lists(PLAIN | PICTURES, min_size=1, max_size=3)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "system": st.lists(PLAIN, min_size=1, max_size=2),
        "temperature": st.sampled_from([0, 0.5, 1]),
        "top_k": st.integers(1, 9),
        "stop_sequences": st.lists(WORDS, min_size=1, max_size=4),
        "stream": st.just(True),
        "metadata": st.just({"user_id": "u"}),
        "service_tier": st.sampled_from(["auto", "standard_only"]),
    },
)
CHOICES = st.sampled_from(
    [
        None,
        {"type": "auto"},
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "f"},
        {"type": "none"},
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a request that both wires can say, in the form that it has after being told twice."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": draw(USERS)}]
    for number in range(draw(st.integers(0, 2))):
        calls = [
            {"type": "tool_use", "id": f"toolu_{number}_{index}", "name": "f", "input": {"x": draw(WORDS)}}
            for index in range(draw(st.integers(0, 2)))
        ]
        said = [draw(PLAIN)] if not calls or draw(st.booleans()) else []
        turns.append({"role": "assistant", "content": [*said, *calls]})
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": draw(WORDS)} for call in calls]
        turns.append({"role": "user", "content": [*results, *draw(USERS)]})
    found = {"model": "m", "max_tokens": 64, "messages": turns, **draw(OPTIONS)}
    if any(len(turn["content"]) > 1 for turn in turns[1::2]) or draw(st.booleans()):
        found["tools"] = [TOOL]
        if (choice := draw(CHOICES)) is not None:
            found["tool_choice"] = choice
    return found


@given(requests())
def test_a_request_that_goes_through_chat_completions_comes_back(request: dict[str, Any]) -> None:
    found = read_request(msgspec.json.encode(request))
    assert found.only_anthropic is None
    again = to_messages_request(found.body, upstream_model="m", default_max_tokens=1, thinks_by_budget=False)
    assert msgspec.json.decode(again) == request
