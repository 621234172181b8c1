"""Requests to ``/v1/responses`` as chat completions, and what is refused before any call."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.request import ChatRequest, InputSize
from meterhouse.translate.responses.answer import Answering
from meterhouse.translate.responses.check import check
from meterhouse.translate.responses.passed import without_lost_thoughts
from meterhouse.translate.responses.request import to_chat
from meterhouse.translate.responses.shape import ResponsesRequest
from meterhouse.translate.responses.size import larger, measure, texts_of
from meterhouse.translate.responses.stream import to_response

Json = dict[str, Any]

USER = {"role": "user", "content": "Hello"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


def translate(**body: Any) -> Json:
    """Return the chat completion, which must be one."""
    raw = json.dumps({"model": "m", "input": "Hello", **body}).encode()
    request = msgspec.json.decode(raw, type=ResponsesRequest)
    fields = msgspec.json.decode(raw, type=dict[str, Raw])
    check(request, {name for name, value in fields.items() if bytes(value) != b"null"})
    chat = to_chat(request, fields)
    msgspec.json.decode(chat, type=ChatRequest)
    made: Json = json.loads(chat)
    return made


def messages(*items: Json, **body: Any) -> list[Json]:
    rows: list[Json] = translate(input=list(items), **body)["messages"]
    return rows


def refused(**body: Any) -> tuple[str | None, str | None]:
    with pytest.raises(Malformed) as caught:
        translate(**body)
    return caught.value.param, caught.value.code


def test_a_text_and_instructions_are_two_messages() -> None:
    assert translate(instructions="Be brief.")["messages"] == [{"role": "system", "content": "Be brief."}, USER]


def test_parameters_find_their_names() -> None:
    made = translate(
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        service_tier="flex",
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "high", "format": {"type": "json_object"}},
        top_logprobs=3,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        metadata={"a": "b"},
        truncation="auto",
        max_tool_calls=3,
        store=True,
        stream=True,
        stream_options={"include_obfuscation": False},
        seed=7,
        top_k=5,
        previous_response_id=None,
    )
    del made["messages"], made["model"]
    assert made == {
        "max_completion_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "service_tier": "flex",
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "reasoning_effort": "low",
        "verbosity": "high",
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "top_logprobs": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 7,
        "top_k": 5,
    }


def test_a_schema_moves_into_its_place() -> None:
    form = {"name": "city", "schema": {"type": "object"}, "strict": True}
    made = translate(text={"format": {"type": "json_schema", **form}})
    assert made["response_format"] == {"type": "json_schema", "json_schema": form}


def test_parts_find_their_shapes() -> None:
    parts = [
        {"type": "input_text", "text": "See"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "original"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    (row,) = messages({"role": "user", "content": parts})
    assert row["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]


def test_roles_are_those_that_every_server_knows() -> None:
    text = [{"type": "input_text", "text": "Be brief."}]
    assert messages({"role": "developer", "content": text}, {"type": "message", **USER}) == [
        {"role": "system", "content": "Be brief."},
        USER,
    ]


def test_what_the_assistant_did_in_a_row_is_one_message() -> None:
    thought = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    rows = messages(USER, thought, said, CALL, {**CALL, "call_id": "c2"}, OUTPUT, {**OUTPUT, "call_id": "c2"})
    assert rows[1] == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Hm",
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
            for call_id in ("c1", "c2")
        ],
    }
    assert rows[2:] == [{"role": "tool", "tool_call_id": call_id, "content": "42"} for call_id in ("c1", "c2")]


def test_two_answers_in_a_row_stay_two() -> None:
    said = {"role": "assistant", "content": "One"}
    assert messages(said, {**said, "content": "Two"}, USER) == [said, {**said, "content": "Two"}, USER]


def test_a_refusal_is_what_the_assistant_said() -> None:
    rows = messages({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER)
    assert rows[0] == {"role": "assistant", "content": "No."}


def test_thoughts_that_nobody_else_can_read_are_left_out() -> None:
    sealed = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAA"}
    assert messages(USER, sealed, CALL, OUTPUT)[1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    shown = {**sealed, "summary": [{"type": "summary_text", "text": "Hm"}]}
    assert messages(USER, shown, CALL, OUTPUT)[1]["reasoning_content"] == "Hm"


def test_an_output_may_come_in_parts() -> None:
    parts = [{"type": "input_text", "text": "4"}, {"type": "input_text", "text": "2"}]
    assert messages(CALL, {**OUTPUT, "output": parts[:1]})[1]["content"] == "4"
    assert messages(CALL, {**OUTPUT, "output": parts})[1]["content"] == [
        {"type": "text", "text": "4"},
        {"type": "text", "text": "2"},
    ]


def test_tools_find_their_shapes() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    made = translate(
        tools=[{"type": "function", **function}, {"type": "custom", "name": "shell", "format": {"type": "text"}}],
        tool_choice={"type": "custom", "name": "shell"},
        parallel_tool_calls=False,
    )
    assert made["tools"][0] == {"type": "function", "function": function}
    assert made["tools"][1]["function"]["parameters"]["required"] == ["input"]
    assert made["tool_choice"] == {"type": "function", "function": {"name": "shell"}}
    assert made["parallel_tool_calls"] is False


def test_calls_of_custom_tools_go_back_as_calls_of_functions() -> None:
    said = {"type": "custom_tool_call", "call_id": "c1", "name": "shell", "input": 'say "hi"'}
    answered = {"type": "custom_tool_call_output", "call_id": "c1", "output": "hi"}
    called, output = messages(said, answered)
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"input": 'say "hi"'}
    assert output == {"role": "tool", "tool_call_id": "c1", "content": "hi"}


def test_of_allowed_tools_only_those_are_sent() -> None:
    tools = [{"type": "function", "name": name} for name in "abc"]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    made = translate(tools=tools, tool_choice=allowed)
    assert [tool["function"]["name"] for tool in made["tools"]] == ["b"]
    assert made["tool_choice"] == "required"


def test_choices_about_tools_go_with_tools_only() -> None:
    made = translate(tool_choice="auto", parallel_tool_calls=True)
    assert made.keys().isdisjoint({"tools", "tool_choice", "parallel_tool_calls"})


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "prompt"])
def test_what_is_stored_somewhere_is_refused(name: str) -> None:
    assert refused(**{name: "id_1"}) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[0]"),
        ({"id": "msg_1"}, "input[0]"),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]},
            "input[0].content[0].file_id",
        ),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}, "input[0].content[0].file_id"),
        ({**OUTPUT, "output": [{"type": "input_file", "file_id": "file_1"}]}, "input[0].output[0].file_id"),
    ],
)
def test_items_that_are_stored_somewhere_are_refused(item: Json, param: str) -> None:
    assert refused(input=[item]) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    "kind",
    [
        "file_search",
        "web_search",
        "web_search_preview",
        "code_interpreter",
        "computer_use_preview",
        "mcp",
        "image_generation",
        "shell",
        "namespace",
    ],
)
def test_tools_that_run_at_the_provider_are_refused(kind: str) -> None:
    assert refused(tools=[{"type": kind}]) == ("tools[0].type", "unsupported_value")
    assert refused(tool_choice={"type": kind}) == ("tool_choice.type", "unsupported_value")


@pytest.mark.parametrize("kind", ["web_search_call", "mcp_call", "tool_search_call", "shell_call_output", "compaction"])
def test_items_of_such_tools_are_refused(kind: str) -> None:
    odd = {"type": kind, "arguments": {}, "output": [{"stdout": "x"}], "id": "x_1"}
    assert refused(input=[odd]) == ("input[0].type", "unsupported_value")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"background": True}, "background", "unsupported_parameter"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "unsupported_parameter"),
        ({"access_programs": {"cyber": "standard"}}, "access_programs", "unsupported_parameter"),
        ({"messages": [USER]}, "messages", "unsupported_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "invalid_value"),
        ({"input": [{"content": "x"}]}, "input[0].role", "missing_required_parameter"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id", "missing_required_parameter"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments", "invalid_type"),
        ({"input": [{**OUTPUT, "output": 42}]}, "input[0].output", "invalid_type"),
        ({"input": [{**OUTPUT, "output": [42]}]}, "input[0].output", "invalid_type"),
        ({"input": [{"role": "user", "content": [{}]}]}, "input[0].content[0].type", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type", "unsupported_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "missing_required_parameter"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "unsupported_value"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "unsupported_value"),
        (
            {"prompt_cache_options": {"comparison_response_id": "resp_1"}},
            "prompt_cache_options.comparison_response_id",
            "unsupported_parameter",
        ),
        (
            {"tools": [{"type": "custom", "name": "x", "format": {"type": "grammar"}}]},
            "tools[0].format",
            "unsupported_value",
        ),
    ],
)
def test_what_else_cannot_be_done_is_named(body: Json, param: str, code: str) -> None:
    assert refused(**body) == (param, code)


TEXTS = st.text(max_size=8)
ROLES = st.sampled_from(["user", "assistant", "system", "developer"])
ITEMS = st.one_of(
    st.builds(lambda role, text: {"role": role, "content": text}, ROLES, TEXTS),
    st.builds(lambda text: {"role": "user", "content": [{"type": "input_text", "text": text}] * 2}, TEXTS),
    st.builds(lambda text: {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}, TEXTS),
    st.builds(lambda text: {**CALL, "arguments": text}, TEXTS),
    st.builds(lambda text: {"type": "custom_tool_call", "call_id": "c1", "name": "x", "input": text}, TEXTS),
    st.builds(lambda text: {**OUTPUT, "output": text}, TEXTS),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ITEMS, min_size=1, max_size=8))
def test_whatever_the_items_are_nothing_said_is_lost(items: list[Json]) -> None:
    try:
        rows = messages(*items)
    except Malformed:
        assert all(item.get("type") == "reasoning" for item in items)
        return
    kinds = [item.get("type") for item in items]
    calls = [call for row in rows for call in row.get("tool_calls", ())]
    assert len(calls) == kinds.count("function_call") + kinds.count("custom_tool_call")
    assert [row["content"] for row in rows if row["role"] == "tool"] == [
        item["output"] for item in items if item.get("type") == "function_call_output"
    ]
    text = "".join(msgspec.json.encode(row).decode() for row in rows)
    for item in items:
        if isinstance(said := item.get("content"), str):
            assert msgspec.json.encode(said).decode()[1:-1] in text


# --- there and back


ARGUMENTS = st.text(max_size=8)
MESSAGES = st.fixed_dictionaries(
    {"content": st.text(max_size=8), "reasoning_content": st.text(max_size=8)},
    optional={
        "tool_calls": st.lists(
            st.tuples(st.sampled_from(["f", "g"]), ARGUMENTS).map(
                lambda call: {"type": "function", "function": {"name": call[0], "arguments": call[1]}}
            ),
            min_size=1,
            max_size=3,
        )
    },
)


@settings(deadline=None, max_examples=60)
@given(MESSAGES, st.booleans())
def test_an_answer_that_is_sent_back_is_the_message_that_it_was(message: Json, wants_summary: bool) -> None:
    calls = [{"id": f"call_{index}", **call} for index, call in enumerate(message.get("tool_calls", ()))]
    said = {"role": "assistant", **message, **({"tool_calls": calls} if calls else {})}
    body = {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}
    answering = Answering({"service_tier": None}, "resp_1", 1, lambda: 2, wants_summary=wants_summary)
    output = json.loads(to_response(json.dumps(body).encode(), answering))["output"]
    given_back, *others = messages(*output, USER)
    if not (said["content"] or calls):
        # Thoughts alone are no message that could be sent to anybody.
        assert given_back == ({"role": "assistant", "content": ""} if not said["reasoning_content"] else USER)
        return
    assert others == [USER]
    assert given_back["content"] == (said["content"] or None)
    assert given_back.get("reasoning_content", "") == said["reasoning_content"]
    assert given_back.get("tool_calls", []) == calls


@settings(deadline=None, max_examples=60)
@given(st.lists(ITEMS, min_size=1, max_size=6), st.text(max_size=8))
def test_what_is_held_for_an_input_is_never_less_than_its_text(items: list[Json], instructions: str) -> None:
    raw = json.dumps({"model": "m", "input": items, "instructions": instructions}).encode()
    request = msgspec.json.decode(raw, type=ResponsesRequest)
    size = measure(request, msgspec.json.decode(raw, type=dict[str, Raw]))
    assert size.text_bytes >= sum(len(text.encode("utf-8", "replace")) for text in texts_of(request))
    assert size.messages == len(items) + 1


def test_images_sound_and_files_are_no_text() -> None:
    data = "A" * 10_000
    parts = [
        {"type": "input_image", "image_url": f"data:image/png;base64,{data}", "detail": "auto"},
        {"type": "input_file", "file_data": f"data:text/plain;base64,{data}"},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    raw = json.dumps({"model": "m", "input": [{"role": "user", "content": parts}]}).encode()
    request = msgspec.json.decode(raw, type=ResponsesRequest)
    size = measure(request, msgspec.json.decode(raw, type=dict[str, Raw]))
    assert 0 < size.text_bytes < 1_000
    assert (size.images, size.unbounded_parts) == (1, 2)
    assert larger(size, InputSize(5, 9, 0, 3)) == InputSize(size.text_bytes, 9, 1, 3)


@pytest.mark.parametrize("spelling", ["reasoning", "r\\u0065asoning"])
def test_a_lost_thought_is_found_however_it_is_spelled(spelling: str) -> None:
    lost = f'{{"type":"{spelling}","id":"rs_1","summary":[]}}'
    kept = f'{{"type":"{spelling}","id":"rs_1","encrypted_content":"g"}}'
    assert without_lost_thoughts(Raw(f"[{lost},{kept}]".encode())) == Raw(f"[{kept}]".encode())
    for same in (b'"text"', b'[{"role":"user" , "content":"x"}]'):
        assert bytes(without_lost_thoughts(Raw(same))) == same
