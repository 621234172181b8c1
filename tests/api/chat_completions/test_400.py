"""What is wrong with a request is named: the parameter, a code, and nothing reaches a provider (wire.md 1.2, 1.5)."""

import json
from typing import Any

import pytest

from api.asking import error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

TYPE, VALUE, MISSING = "invalid_type", "invalid_value", "missing_required_parameter"
USER = {"role": "user", "content": "Hi"}
GOOD_TOOL = {"type": "function", "function": {"name": "f"}}
PART = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}


def ask(gateway: Gateway, body: object) -> dict[str, Any]:
    status, headers, answer = gateway.request("POST", "/v1/chat/completions", body)
    assert status == 400, (status, answer)
    assert headers["content-type"] == "application/json"
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    return error


def chat(gateway: Gateway, **fields: object) -> dict[str, Any]:
    return ask(gateway, {"model": "fake/normal", "messages": [USER], **fields})


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("model", 5, TYPE),
        ("model", None, TYPE),
        ("model", "", VALUE),
        ("model", "m" * 257, VALUE),
        ("messages", "Hi", TYPE),
        ("messages", {"role": "user"}, TYPE),
        ("messages", [], VALUE),
        ("audio", "loud", TYPE),
        ("frequency_penalty", 2.01, VALUE),
        ("frequency_penalty", -2.01, VALUE),
        ("frequency_penalty", "1", TYPE),
        ("function_call", 1, TYPE),
        ("functions", {}, TYPE),
        ("functions", [{"name": "f"}] * 129, VALUE),
        ("logit_bias", [1], TYPE),
        ("logprobs", "yes", TYPE),
        ("max_completion_tokens", 0, VALUE),
        ("max_completion_tokens", -1, VALUE),
        ("max_completion_tokens", 1.5, TYPE),
        ("max_completion_tokens", "100", TYPE),
        ("max_completion_tokens", True, TYPE),
        ("max_tokens", 0, VALUE),
        ("max_tokens", 2**40, VALUE),
        ("max_tokens", "100", TYPE),
        ("metadata", "none", TYPE),
        ("metadata", {str(number): "x" for number in range(17)}, VALUE),
        ("metadata", {"k" * 65: "x"}, VALUE),
        ("modalities", "text", TYPE),
        ("moderation", "strict", TYPE),
        ("n", 0, VALUE),
        ("n", 129, VALUE),
        ("n", "2", TYPE),
        ("parallel_tool_calls", 1, TYPE),
        ("prediction", "text", TYPE),
        ("presence_penalty", 2.01, VALUE),
        ("presence_penalty", -2.01, VALUE),
        ("presence_penalty", "1", TYPE),
        ("prompt_cache_key", 7, TYPE),
        ("prompt_cache_options", "implicit", TYPE),
        ("prompt_cache_retention", 24, TYPE),
        ("reasoning_effort", 3, TYPE),
        ("response_format", "json", TYPE),
        ("safety_identifier", "s" * 65, VALUE),
        ("safety_identifier", 1, TYPE),
        ("seed", 1.5, TYPE),
        ("seed", "1", TYPE),
        ("service_tier", 1, TYPE),
        ("stop", 1, TYPE),
        ("stop", ["a", "b", "c", "d", "e"], VALUE),
        ("store", "yes", TYPE),
        ("stream", "true", TYPE),
        ("stream", 1, TYPE),
        ("stream_options", True, TYPE),
        ("temperature", 2.01, VALUE),
        ("temperature", -0.01, VALUE),
        ("temperature", "0", TYPE),
        ("tool_choice", 1, TYPE),
        ("tool_choice", "sometimes", VALUE),
        ("tools", {}, TYPE),
        ("tools", "none", TYPE),
        ("top_logprobs", 21, VALUE),
        ("top_logprobs", -1, VALUE),
        ("top_logprobs", "5", TYPE),
        ("top_p", 1.01, VALUE),
        ("top_p", -0.01, VALUE),
        ("top_p", "1", TYPE),
        ("user", 5, TYPE),
        ("verbosity", "loud", VALUE),
        ("web_search_options", "on", TYPE),
    ],
)
def test_a_parameter_out_of_its_type_or_range_is_named(gateway: Gateway, name: str, value: object, code: str) -> None:
    error = chat(gateway, **{name: value})
    assert (error["param"], error["code"]) == (name, code)
    assert name in error["message"]


@pytest.mark.parametrize(
    ("param", "fields", "code"),
    [
        ("messages[0].role", {"messages": [{"role": "robot", "content": "Hi"}]}, VALUE),
        ("messages[0].role", {"messages": [{"content": "Hi"}]}, MISSING),
        ("messages[0]", {"messages": ["Hi"]}, TYPE),
        ("messages[1].content", {"messages": [USER, {"role": "user", "content": 5}]}, TYPE),
        ("messages[0].content", {"messages": [{"role": "user"}]}, MISSING),
        ("messages[0].content", {"messages": [{"role": "system", "content": None}, USER]}, MISSING),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}, MISSING),
        (
            "messages[0].content[0].text",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            TYPE,
        ),
        (
            "messages[0].content[0].image_url.url",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            MISSING,
        ),
        ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "42"}]}, MISSING),
        ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": "yes"}}, TYPE),
        ("response_format.type", {"response_format": {}}, MISSING),
        ("response_format.json_schema.name", {"response_format": {"type": "json_schema", "json_schema": {}}}, MISSING),
        (
            "response_format.json_schema.name",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            VALUE,
        ),
        ("tools[0].function", {"tools": [{"type": "function"}]}, MISSING),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {}}]}, MISSING),
        ("tools[1].function.name", {"tools": [GOOD_TOOL, {"type": "function", "function": {"name": "f" * 65}}]}, VALUE),
        ("stop[1]", {"stop": ["a", 1]}, TYPE),
        ("modalities[0]", {"modalities": ["smell"]}, VALUE),
    ],
)
def test_a_fault_inside_a_parameter_is_named_by_its_path(
    gateway: Gateway, param: str, fields: dict[str, object], code: str
) -> None:
    error = chat(gateway, **fields)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"50256": 101}),
        ("logit_bias", {"50256": -101}),
        ("logit_bias", {"50256": "1"}),
        ("metadata", {"k": "v" * 513}),
        ("metadata", {"k": 5}),
    ],
)
def test_a_fault_in_a_mapping_is_named_at_least_by_the_mapping(gateway: Gateway, name: str, value: object) -> None:
    error = chat(gateway, **{name: value})
    assert error["param"] is not None
    assert error["param"].startswith(name)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_parameter_is_named(gateway: Gateway, name: str) -> None:
    body: dict[str, Any] = {"model": "fake/normal", "messages": [USER]}
    del body[name]
    error = ask(gateway, body)
    assert (error["param"], error["code"]) == (name, MISSING)


@pytest.mark.parametrize(
    "value",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 0, "presence_penalty": -2, "frequency_penalty": 2},
        {"n": 1, "seed": -(2**63), "stop": ["a", "b", "c", "d"]},
        {"top_logprobs": 20, "logprobs": True},
        {"logit_bias": {"1": -100, "2": 100}},
        {"metadata": {"k" * 64: "v" * 512}},
        {"safety_identifier": "s" * 64},
        {"reasoning_effort": "xhigh", "verbosity": "low", "service_tier": "flex"},
        {"response_format": {"type": "json_object"}, "modalities": ["text"]},
        {"tools": [{"type": "custom", "custom": {"name": "c"}}], "tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        dict.fromkeys(("temperature", "top_p", "n", "stop", "tools", "stream_options", "max_tokens", "user", "seed")),
    ],
)
def test_the_bounds_themselves_and_null_are_good(gateway: Gateway, value: dict[str, object]) -> None:
    status, _, body = gateway.chat("fake/normal?tokens=1", **value)
    assert status == 200, body


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("messages[0].content[0].file.file_id", {"content": [{"type": "file", "file": {"file_id": "file-1"}}]}),
        ("messages[0].audio.id", {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}),
    ],
)
def test_what_is_stored_at_a_provider_is_refused(gateway: Gateway, param: str, message: dict[str, object]) -> None:
    error = chat(gateway, messages=[{"role": "user", **message}, USER])
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
def test_stream_options_need_a_stream(gateway: Gateway, stream: dict[str, object]) -> None:
    assert chat(gateway, stream_options={"include_usage": True}, **stream)["param"] == "stream_options"


def test_top_logprobs_need_logprobs(gateway: Gateway) -> None:
    assert chat(gateway, top_logprobs=5)["param"] == "top_logprobs"
    assert chat(gateway, top_logprobs=5, logprobs=False)["param"] == "top_logprobs"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "fake/normal", "messages": [}',
        b'{"model": "fake/normal"} extra',
        b"{'model': 'fake/normal'}",
        b'{"model": "fake/normal", "temperature": NaN}',
        b'{"model": "\xff\xfe", "messages": []}',
        b"\x00\x01\x02",
        b'{"a":' * 20_000,
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_not_json_is_refused(gateway: Gateway, body: bytes) -> None:
    error = ask(gateway, body)
    assert (error["param"], error["code"]) == (None, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(gateway: Gateway, body: bytes) -> None:
    error = ask(gateway, body)
    assert (error["param"], error["code"]) == (None, TYPE)
    assert "object" in error["message"]


def test_a_number_beyond_every_range_is_refused(gateway: Gateway) -> None:
    body = b'{"model": "fake/normal", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1e999}'
    assert ask(gateway, body)["type"] == "invalid_request_error"


def test_a_parameter_of_an_unknown_name_passes(gateway: Gateway) -> None:
    assert gateway.chat("fake/normal", top_k=5, x_new={"deep": [1]}, **{"": 1})[0] == 200


def test_nothing_of_a_refused_request_reaches_a_provider_or_the_ledger(gateway: Gateway, up: FakeUpstream) -> None:
    marker, messages = marked()
    key_id, key = gateway.new_key_of("requests 5/minute")
    status, headers, _ = gateway.chat("fake/normal", key=key, messages=messages, temperature=9)
    assert status == 400
    assert up.truth.by_marker(marker) == []
    assert all(record["key_id"] != key_id for record in gateway.all_records())
    assert [limit["spent"] for limit in gateway.limits(key)] == [0]
    assert "x-ratelimit-limit-requests" not in headers


def test_the_text_of_a_message_is_not_repeated_in_an_error(gateway: Gateway) -> None:
    error = chat(gateway, messages=[{"role": "user", "content": [{"type": "text", "text": ["a private text"]}]}])
    assert "private" not in json.dumps(error)


def test_a_prefix_must_be_declared_by_a_boolean(gateway: Gateway) -> None:
    assert chat(gateway, messages=[PART, {"role": "assistant", "content": "a", "prefix": "yes"}])["code"] == TYPE
