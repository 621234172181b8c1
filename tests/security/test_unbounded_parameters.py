"""Parameters that buy much work for few bytes (CVE-2026-34756 and the guided-decoding family): each has its bound."""

import json
from typing import Any

import pytest

from api.asking import Capture, error_of
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

LONG = "a" * 65_536
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": [LONG]}}}
TOO_MUCH: dict[str, tuple[dict[str, Any], str | None]] = {
    "answers": ({"n": 129}, "n"),
    "likely tokens": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "stops": ({"stop": ["a"] * 5}, "stop"),
    "a long stop": ({"stop": "a" * 257}, "stop"),
    "a long stop among others": ({"stop": ["a", "a" * 257]}, "stop"),
    "biases": ({"logit_bias": {str(number): 1 for number in range(1_025)}}, "logit_bias"),
    "messages": ({"messages": [{"role": "user", "content": "a"}] * 5_001}, "messages"),
    "tools": ({"tools": [TOOL] * 10_001}, "tools"),
    "functions": ({"functions": [{"name": "f"}] * 129}, "functions"),
    "metadata": ({"metadata": {str(number): "a" for number in range(17)}}, "metadata"),
    "a schema": ({"response_format": SCHEMA}, "response_format"),
    "a tool": ({"tools": [TOOL, {**TOOL, "function": {"name": "f", "parameters": {"x": LONG}}}]}, "tools[1]"),
    "a function": ({"functions": [{"name": "f", "parameters": {"x": LONG}}]}, "functions[0]"),
    "a regular expression": ({"guided_regex": "(a+)+" * 20_000}, None),
    "a grammar": ({"structured_outputs": {"grammar": LONG}}, None),
    "a template": ({"chat_template": LONG}, None),
    "a list of files": ({"file_ids": [LONG]}, None),
    "a token count": ({"max_tokens": 2**31 + 1}, "max_tokens"),
    "a token count beyond 64 bits": ({"max_tokens": 2**70}, "max_tokens"),
    "a seed beyond 64 bits": ({"seed": 2**70}, "seed"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_more_than_the_bound_is_a_400_that_names_it(gateway: Gateway, up: FakeUpstream, name: str) -> None:
    fields, param = TOO_MUCH[name]
    before = len(up.attempts)
    status, _, body = gateway.chat("fake/normal?tokens=1", **fields)
    error = error_of(body)
    assert status == 400, error
    assert param is None or (error["param"] or "").startswith(param), error
    assert "aaaa" not in error["message"]
    assert len(up.attempts) == before


def test_the_bounds_themselves_are_good(gateway: Gateway) -> None:
    fields = {
        "stop": ["a" * 256] * 4,
        "logit_bias": {str(number): 1 for number in range(1_024)},
        "tools": [{**TOOL, "function": {"name": "f", "parameters": {"x": LONG[:65_000]}}}] * 3,
        "guided_regex": LONG[:65_000],
        "messages": [{"role": "user", "content": "a"}] * 5_000,
    }
    status, _, body = gateway.chat("fake/normal?tokens=1", **fields)
    assert status == 200, body


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("completions", {"prompt": "a"}),
        ("responses", {"input": "a"}),
        ("embeddings", {"input": "a"}),
        ("moderations", {"input": "a"}),
        ("images/generations", {"prompt": "a"}),
        ("audio/speech", {"input": "a", "voice": "alloy"}),
    ],
)
def test_the_bound_of_a_parameter_is_that_of_every_wire(
    gateway: Gateway, up: FakeUpstream, path: str, given: dict[str, Any]
) -> None:
    before = len(up.attempts)
    body = {"model": "fake/normal?tokens=1", **given, "guided_regex": LONG}
    status, _, answer = gateway.request("POST", f"/v1/{path}", body)
    assert status == 400
    assert "aaaa" not in error_of(answer)["message"]
    assert len(up.attempts) == before


@pytest.mark.parametrize("path", ["messages", "messages/count_tokens"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_config": {"format": {"type": "json_schema", "schema": {"enum": [LONG]}}}}, "output_config"),
        ({"stop_sequences": [LONG]}, "stop_sequences"),
        ({"metadata": {"user_id": LONG}}, "metadata"),
        ({"thinking": {"type": "disabled", "x": LONG}}, "thinking"),
        ({"tools": [{"name": "f", "input_schema": {}}, {"name": "g", "input_schema": {"x": LONG}}]}, "tools[1]"),
    ],
)
def test_the_bound_of_a_parameter_is_that_of_anthropics_wire(
    gateway: Gateway, up: FakeUpstream, path: str, fields: dict[str, Any], param: str
) -> None:
    before = len(up.attempts)
    body = {"model": "fake/normal?tokens=1", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}], **fields}
    status, _, answer = gateway.request("POST", f"/v1/{path}", body)
    found = json.loads(answer)
    assert (status, found["type"], found["error"]["type"]) == (400, "error", "invalid_request_error")
    assert found["error"]["message"].startswith(f"'{param}' is longer"), found
    assert len(up.attempts) == before


def test_what_the_model_reads_has_no_such_bound(gateway: Gateway) -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"x": LONG[:65_000]}}] * 2
    for path, given in (
        ("completions", {"prompt": LONG * 2}),
        ("responses", {"input": LONG, "instructions": LONG, "tools": tools}),
        ("embeddings", {"input": [LONG]}),
        ("moderations", {"input": LONG}),
        ("messages", {"max_tokens": 5, "messages": [{"role": "user", "content": LONG * 2}], "system": LONG}),
    ):
        status, _, body = gateway.request("POST", f"/v1/{path}", {"model": "fake/normal?tokens=1", **given})
        assert status == 200, (path, body)


OTHER_NAMES = {"n_predict": 90_000, "max_new_tokens": 90_000, "num_predict": -1, "Max_Tokens": 90_000}


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_no_other_name_of_the_bound_reaches_a_server(gateway: Gateway, capture: Capture, path: str) -> None:
    marker = f"bounds-{path.replace('/', '-')}"
    text = f"Hello marker={marker}"
    inputs = {
        "chat/completions": {"messages": [{"role": "user", "content": text}], "max_tokens": 7},
        "completions": {"prompt": text, "max_tokens": 7},
        "responses": {"input": text, "max_output_tokens": 17},
    }
    body = {"model": "fake/capture", **inputs[path], **OTHER_NAMES}
    status, _, answer = gateway.request("POST", f"/v1/{path}", body)
    assert status == 200, answer
    sent = {name for name in capture.body(marker) if "max" in name.lower() or "predict" in name}
    assert len(sent & {"max_tokens", "max_output_tokens"}) == len(sent) == 1
