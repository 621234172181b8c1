"""What a local server gets to see: its extras, a bound, and the tools, or in their place words in the prompt."""

import json
from typing import Any

import pytest

from api.tool_calls.conftest import Sayer
from fakes.gateway import Gateway
from fakes.tool_texts import FUNCTIONS, NOW, TOOLS

USER = {"role": "user", "content": "say:Hi"}
EXTRAS = {
    "repetition_penalty": 1.1,
    "top_k": 40,
    "min_p": 0.05,
    "length_penalty": 1.0,
    "stop_token_ids": [151_338],
    "chat_template_kwargs": {"enable_thinking": False},
    "skip_special_tokens": False,
}


def sent(gateway: Gateway, sayer: Sayer, name: str, **fields: Any) -> dict[str, Any]:
    status, _, body = gateway.chat(f"{name}/say?tokens=3", **{"messages": [USER], **fields})
    assert status == 200, body
    return sayer.bodies[-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["glm4", "told", "plain"])
def test_the_extras_of_local_servers_pass(gateway: Gateway, sayer: Sayer, name: str, stream: bool) -> None:
    body = sent(gateway, sayer, name, stream=stream, tools=TOOLS, **EXTRAS)
    assert {key: body[key] for key in EXTRAS} == EXTRAS


def test_ollama_gets_the_extras_under_its_own_names(gateway: Gateway, sayer: Sayer) -> None:
    body = sent(gateway, sayer, "ollama", repetition_penalty=1.1, top_k=40)
    assert (body["options"]["repeat_penalty"], body["options"]["top_k"]) == (1.1, 40)


def test_a_glm_4_gets_a_bound_of_1024_where_none_was_asked(gateway: Gateway, sayer: Sayer) -> None:
    assert sent(gateway, sayer, "glm4")["max_tokens"] == 1_024
    assert sent(gateway, sayer, "glm4", max_completion_tokens=7)["max_tokens"] == 7
    assert "max_tokens" not in sent(gateway, sayer, "hermes")


def test_tools_go_along_unless_the_deployment_says_otherwise(gateway: Gateway, sayer: Sayer) -> None:
    fields = {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False}
    body = sent(gateway, sayer, "hermes", **fields)
    assert {key: body[key] for key in fields} == fields
    assert body["messages"] == [USER]
    for name in ("kept", "told"):
        assert not fields.keys() & sent(gateway, sayer, name, **fields).keys()
    assert sent(gateway, sayer, "kept", **fields)["messages"] == [USER]


def test_withheld_tools_still_make_calls_of_the_answers_text(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": 'say:<tool_call>{"name": "now"}'}]
    for name in ("kept", "told"):
        _, _, body = gateway.chat(f"{name}/say?tokens=3", messages=messages, tools=TOOLS)
        (call,) = json.loads(body)["choices"][0]["message"]["tool_calls"]
        assert call["function"] == {"name": NOW, "arguments": "{}"}


def test_the_prompt_tells_of_the_tools_and_of_the_familys_form(gateway: Gateway, sayer: Sayer) -> None:
    system, user = sent(gateway, sayer, "told", tools=TOOLS)["messages"]
    assert user == USER
    assert system["role"] == "system"
    lines = system["content"].splitlines()
    assert [json.loads(line) for line in lines if line.startswith('{"name":"')] == FUNCTIONS
    assert '<tool_call>\n{"name": "FUNCTION", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>' in system["content"]


def test_a_system_message_that_is_there_is_gone_on_with(gateway: Gateway, sayer: Sayer) -> None:
    for content in ("Be kind.", [{"type": "text", "text": "Be kind."}]):
        messages = [{"role": "system", "content": content, "name": "boss"}, USER]
        system, user = sent(gateway, sayer, "told", messages=messages, tools=TOOLS)["messages"]
        assert user == USER
        assert system["name"] == "boss"
        text = system["content"] if isinstance(content, str) else "\n\n".join(p["text"] for p in system["content"])
        assert text.startswith("Be kind.\n\nYou can call functions.")


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("required", "at least one call is needed"),
        ({"type": "function", "function": {"name": NOW}}, "This time call the function now."),
    ],
)
def test_a_choice_of_tools_is_told_in_words(gateway: Gateway, sayer: Sayer, choice: Any, text: str) -> None:
    assert text in sent(gateway, sayer, "told", tools=TOOLS, tool_choice=choice)["messages"][0]["content"]


def test_without_tools_nothing_is_told(gateway: Gateway, sayer: Sayer) -> None:
    for fields in ({}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}):
        assert sent(gateway, sayer, "told", **fields)["messages"] == [USER]


def block(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_earlier_calls_and_their_results_become_text(gateway: Gateway, sayer: Sayer) -> None:
    def call(number: int, name: str, arguments: str) -> dict[str, Any]:
        return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}

    messages = [
        USER,
        {"role": "assistant", "content": "Two.", "tool_calls": [call(1, NOW, "{}"), call(2, "f", '{"a": 1}')]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "done"}]},
        {"role": "assistant", "content": None, "tool_calls": [call(3, "g", "no JSON")]},
        {"role": "tool", "tool_call_id": "unknown", "content": "odd"},
    ]
    body = sent(gateway, sayer, "told", messages=messages, tools=TOOLS)
    rows = [(row["role"], row["content"]) for row in body["messages"][1:]]
    assert rows == [
        ("user", "say:Hi"),
        ("assistant", "\n".join(["Two.", block(NOW, "{}"), block("f", '{"a": 1}')])),
        ("user", "Result of the call of now:\nnoon\n\nResult of the call of f:\ndone"),
        ("assistant", block("g", "no JSON")),
        ("user", "Result of the call:\nodd"),
    ]
    assert not any("tool_calls" in row for row in body["messages"])


def test_a_budget_holds_what_the_prompt_became(gateway: Gateway, sayer: Sayer) -> None:
    """A token of input is at most a byte of text: what the gateway adds to the text must be held as well."""
    gateway.set_price("told", "say?tokens=3", "1", "4")
    gateway.set_price("kept", "say?tokens=3", "1", "4")
    for name in ("told", "kept"):
        key = gateway.new_key("spend 1 USD/month")
        status, headers, _ = gateway.chat(f"{name}/say?tokens=3", key=key, messages=[USER], tools=TOOLS, max_tokens=9)
        assert status == 200
        (record,) = gateway.records(headers["x-request-id"])
        assert record.overrun_nanos == 0
    told = gateway.call(lambda: sayer.bodies[-2])
    added = len(told["messages"][0]["content"].encode())
    key = gateway.new_key("tokens 100000/minute")
    left = {}
    for name in ("told", "kept"):
        _, headers, _ = gateway.chat(f"{name}/say?tokens=3", key=key, messages=[USER], tools=TOOLS, max_tokens=9)
        left[name] = int(headers["x-ratelimit-remaining-tokens"])
    assert left["told"] < 100_000 - added // 3
