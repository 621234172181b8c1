"""What is said of calls that were found and of texts that only looked like one: how many and why, never a word."""

import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from fakes.gateway import Gateway, provider_environment
from fakes.tool_texts import TOOLS
from fakes.upstream import FakeUpstream

CANARY = "tool-canary-8f21"


def counted(gateway: Gateway, provider: str) -> dict[str, float]:
    body = gateway.request("GET", "/metrics", key="")[2].decode()
    return {
        sample.labels["result"]: sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == "meterhouse_tool_texts_total" and sample.labels["provider"] == provider
    }


def asked(gateway: Gateway, name: str, text: str, *, stream: bool) -> tuple[str, str]:
    messages = [{"role": "user", "content": f"{CANARY} say:{text}"}]
    status, headers, body = gateway.chat(f"{name}/say?tokens=5", messages=messages, tools=TOOLS, stream=stream)
    assert status == 200, body
    return headers["x-request-id"], body.decode()


def test_calls_and_failures_are_counted_and_failures_are_logged(gateway: Gateway) -> None:
    good = "<arg_key>text</arg_key><arg_value>x</arg_value></tool_call>"
    texts = {
        f"<tool_call>write_note{good}<tool_call>now</tool_call>": {"parsed": 2},
        f"<tool_call>{CANARY}</tool_call>": {"unknown_function": 1},
        f"<tool_call>now {CANARY}</tool_call>": {"malformed": 1},
        f"<tool_call>now<arg_key>{CANARY}": {"unfinished": 1},
    }
    for stream in (False, True):
        for text, results in texts.items():
            before = counted(gateway, "glm45")
            request_id, body = asked(gateway, "glm45", text, stream=stream)
            after = counted(gateway, "glm45")
            assert {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key)} == results
            lines = [line for line in gateway.log_lines() if line["event"] == "tool_call.not_parsed"]
            told = [line for line in lines if line["request_id"] == request_id]
            if "parsed" in results:
                assert told == []
                continue
            (line,) = told
            assert line["level"] == "warning"
            assert line["deployment"] == "glm45/say?tokens=5"
            assert line["format"] == "glm45"
            assert {key: line[key] for key in results} == results
            if not stream:
                assert CANARY in body
    assert CANARY not in gateway.log_path.read_text()
    assert CANARY.encode() not in gateway.request("GET", "/metrics", key="")[2]


def test_the_parameters_are_logged_for_debugging_without_a_word_of_the_request(
    up: FakeUpstream, tmp_path: Path
) -> None:
    environment = provider_environment("glm", up.base_url, METERHOUSE_LOG_LEVEL="debug")
    environment["METERHOUSE_PROVIDER_GLM_TOOL_CALL_FORMAT"] = "glm4"
    fields = {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.2, "tools": TOOLS}
    named = {"type": "function", "function": {"name": "now"}}
    messages = [{"role": "user", "content": CANARY}]
    with Gateway(tmp_path / "data", environment) as running:
        running.chat("glm/normal?tokens=2", messages=messages, **fields)
        running.chat(
            "glm/normal?tokens=2", messages=messages, tools=TOOLS, tool_choice=named, stream=True, max_tokens=5
        )
        running.chat("glm/normal?tokens=2", messages=messages, repetition_penalty=CANARY)
        lines = [line for line in running.log_lines() if line["event"] == "generation.started"]
    kept = ("temperature", "top_p", "max_tokens", "repetition_penalty", "tools", "tool_choice", "stream")
    assert [[line[name] for name in kept] for line in lines] == [
        [0.5, 0.9, 1_024, 1.2, 3, None, False],
        [None, None, 5, None, 3, "named", True],
        [None, None, 1_024, None, 0, None, False],
    ]
    assert CANARY not in running.log_path.read_text()


def test_text_that_is_no_attempt_is_neither_counted_nor_logged(gateway: Gateway) -> None:
    before = counted(gateway, "llama3_json")
    request_id, _ = asked(gateway, "llama3_json", '{"weather": "sunny"}', stream=True)
    time.sleep(0.1)
    assert counted(gateway, "llama3_json") == before
    events = [line["event"] for line in gateway.log_lines() if line.get("request_id") == request_id]
    assert events == ["request.finished"]
