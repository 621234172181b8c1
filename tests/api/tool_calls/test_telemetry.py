"""What is said of calls that were found and of texts that only looked like one: how many and why, never a word.

In a process of its own: the configuration of the log is the process's, and other gateways of these tests would take it.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.tool_calls.conftest import Sayer
from fakes.gateway import GatewayProcess, provider_environment
from fakes.tool_texts import TOOLS
from fakes.upstream import FakeUpstream

CANARY = "tool-canary-8f21"


@pytest.fixture(scope="module")
def process(up: FakeUpstream, sayer: Sayer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    environment = {"METERHOUSE_LOG_LEVEL": "debug"}
    for name in ("glm4", "glm45", "llama3_json"):
        environment |= provider_environment(name, up.base_url)
        environment[f"METERHOUSE_PROVIDER_{name.upper()}_TOOL_CALL_FORMAT"] = name
    with GatewayProcess(tmp_path_factory.mktemp("told") / "data", environment) as running:
        yield running


def lines_of(process: GatewayProcess, event: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in process.log_path.read_bytes().splitlines() if line.startswith(b"{")]
    return [row for row in rows if row["event"] == event]


def counted(process: GatewayProcess, provider: str) -> dict[str, float]:
    body = process.request("GET", "/metrics", key="")[2].decode()
    return {
        sample.labels["result"]: sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == "meterhouse_tool_texts_total" and sample.labels["provider"] == provider
    }


def asked(process: GatewayProcess, model: str, text: str, **fields: Any) -> tuple[str, str]:
    body = {"model": model, "messages": [{"role": "user", "content": f"{CANARY} say:{text}"}], **fields}
    status, headers, answer = process.request("POST", "/v1/chat/completions", body)
    assert status == 200, answer
    return headers["x-request-id"], answer.decode()


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_failures_are_counted_and_failures_are_logged(process: GatewayProcess, stream: bool) -> None:
    good = "<arg_key>text</arg_key><arg_value>x</arg_value></tool_call>"
    texts = {
        f"<tool_call>write_note{good}<tool_call>now</tool_call>": {"parsed": 2},
        f"<tool_call>{CANARY}</tool_call>": {"unknown_function": 1},
        f"<tool_call>now {CANARY}</tool_call>": {"malformed": 1},
        f"<tool_call>now<arg_key>{CANARY}": {"unfinished": 1},
    }
    for text, results in texts.items():
        before = counted(process, "glm45")
        request_id, body = asked(process, "glm45/say?tokens=5", text, tools=TOOLS, stream=stream)
        after = counted(process, "glm45")
        assert {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key)} == results
        told = [line for line in lines_of(process, "tool_call.not_parsed") if line["request_id"] == request_id]
        if "parsed" in results:
            assert told == []
            continue
        (line,) = told
        assert line["level"] == "warning"
        assert line["deployment"] == "glm45/say?tokens=5"
        assert line["format"] == "glm45"
        assert {key: line[key] for key in results} == results
        assert stream or CANARY in body
    assert CANARY not in process.log_path.read_text()
    assert CANARY.encode() not in process.request("GET", "/metrics", key="")[2]


def test_text_that_is_no_attempt_is_neither_counted_nor_logged(process: GatewayProcess) -> None:
    before = counted(process, "llama3_json")
    told = len(lines_of(process, "tool_call.not_parsed"))
    asked(process, "llama3_json/say?tokens=3", '{"weather": "sunny"}', tools=TOOLS, stream=True)
    assert counted(process, "llama3_json") == before
    assert len(lines_of(process, "tool_call.not_parsed")) == told


def test_the_parameters_are_logged_for_debugging_without_a_word_of_the_request(process: GatewayProcess) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.2, "tools": TOOLS}
    named = {"type": "function", "function": {"name": "now"}}
    model = "glm4/say?tokens=2"
    asked(process, model, "Hi", **fields)
    asked(process, model, "Hi", tools=TOOLS, tool_choice=named, stream=True, max_tokens=5)
    asked(process, model, "Hi", repetition_penalty=CANARY)
    lines = [line for line in lines_of(process, "generation.started") if line["deployment"] == model]
    kept = ("temperature", "top_p", "max_tokens", "repetition_penalty", "tools", "tool_choice", "stream")
    assert [[line[name] for name in kept] for line in lines] == [
        [0.5, 0.9, 1_024, 1.2, 3, None, False],
        [None, None, 5, None, 3, "named", True],
        [None, None, 1_024, None, 0, None, False],
    ]
    assert CANARY not in process.log_path.read_text()
