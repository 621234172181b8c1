"""The simple endpoints, read as their clients read them: line by line, by events, as a body."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from api.asking import Capture, Tenant, marked
from failure.raw_client import Client as RawClient
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome


def post(gateway: Gateway, path: str, body: object, *, key: str | None = None) -> tuple[dict[str, str], bytes]:
    status, headers, answer = gateway.request("POST", path, body, key=key)
    assert status == 200, answer
    return headers, answer


def lines_of(answer: bytes) -> Iterator[str]:
    """Yield the lines as ``requests.Response.iter_lines`` does."""
    return iter(answer.decode().splitlines())


def test_api_chat_is_read_line_by_line(gateway: Gateway) -> None:
    marker, messages = marked()
    headers, answer = post(gateway, "/api/chat", {"messages": messages, "model": "fake/normal"})
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    pieces, is_done = [], False
    for line in lines_of(answer):
        if not line:
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            is_done = True
            break
        pieces.append(json.loads(data)["content"])
    assert is_done
    assert len(pieces) > 10
    assert "".join(pieces) == answer_text(marker, 20)


def test_stream_sends_named_events_of_which_the_last_is_done(gateway: Gateway) -> None:
    marker, [said] = marked()
    _, answer = post(gateway, "/stream", {"message": said["content"], "model": "fake/normal"})
    *events, end = answer.decode().split("\n\n")
    assert end == ""
    names, data = zip(*(event.split("\n") for event in events), strict=True)
    assert set(names) == {"event: message"}
    said_so = [json.loads(line.removeprefix("data: ")) for line in data]
    assert [row["done"] for row in said_so] == [False] * (len(said_so) - 1) + [True]
    assert "".join(row["content"] for row in said_so) == answer_text(marker, 20)


def test_chat_answers_with_a_response(gateway: Gateway) -> None:
    marker, [said] = marked()
    headers, answer = post(gateway, "/chat", {"message": said["content"], "model": "fake/normal"})
    assert headers["content-type"] == "application/json"
    assert json.loads(answer) == {"response": answer_text(marker, 20)}


@pytest.mark.parametrize(("asked", "sent"), [({}, 0.7), ({"temperature": 0}, 0), ({"temperature": 1.5}, 1.5)])
def test_the_temperature_is_0_7_unless_it_is_given(
    asked: dict[str, Any], sent: float, gateway: Gateway, capture: Capture
) -> None:
    marker, [said] = marked()
    post(gateway, "/chat", {"message": said["content"], "model": "fake/capture", **asked})
    body = capture.body(marker)
    assert body["temperature"] == sent
    assert body["messages"] == [{"role": "user", "content": said["content"]}]
    assert "message" not in body


def test_other_parameters_of_a_chat_completion_are_understood(gateway: Gateway, capture: Capture) -> None:
    marker, messages = marked()
    asked = {"top_p": 0.5, "max_tokens": 9, "stop": ["x"], "seed": 3}
    post(gateway, "/api/chat", {"messages": messages, "model": "fake/capture", "temperature": 1, **asked})
    assert {name: capture.body(marker)[name] for name in asked} == asked
    assert capture.body(marker)["stream"] is True


def test_thoughts_stand_beside_the_content(gateway: Gateway) -> None:
    marker, messages = marked()
    _, answer = post(gateway, "/api/chat", {"messages": messages, "model": "fake/reasoning-vllm"})
    rows = [json.loads(line[6:]) for line in lines_of(answer) if line.startswith("data: {")]
    assert all("content" in row for row in rows)
    assert len([row for row in rows if row.get("reasoning_content")]) == 8
    assert "".join(row["content"] for row in rows) == answer_text(marker, 20)
    _, whole = post(gateway, "/chat", {"message": messages[0]["content"], "model": "fake/reasoning-vllm"})
    assert json.loads(whole)["reasoning_content"]


def test_an_answer_that_was_cut_short_says_so(gateway: Gateway) -> None:
    _, messages = marked()
    _, answer = post(gateway, "/api/chat", {"messages": messages, "model": "fake/normal", "max_tokens": 3})
    rows = [json.loads(line[6:]) for line in lines_of(answer) if line.startswith("data: {")]
    assert rows[-1] == {"content": "", "finish_reason": "length"}


def test_without_a_model_the_first_that_the_key_may_use_answers(gateway: Gateway) -> None:
    _, answer = post(gateway, "/chat", {"message": "Hello"}, key=Tenant(gateway, models=["simulator-instant"]).key)
    assert "simulator" in json.loads(answer)["response"]


def test_the_operators_default_model_answers(up: FakeUpstream, tmp_path: Any) -> None:
    environment = provider_environment("fake", up.base_url, METERHOUSE_DEFAULT_MODEL="fake/normal?tokens=4")
    with Gateway(tmp_path / "data", environment) as gateway:
        marker, messages = marked()
        headers, answer = post(gateway, "/api/chat", {"messages": messages})
        assert answer_text(marker, 4).split()[0] in answer.decode()
        assert gateway.records(headers["x-request-id"])[0].model == "fake/normal?tokens=4"


@pytest.mark.parametrize("path", ["/api/chat", "/chat", "/stream"])
def test_each_is_metered_and_recorded_like_any_other_request(path: str, gateway: Gateway) -> None:
    key = gateway.new_key("requests 5 total; tokens 100000 total")
    marker, messages = marked()
    body = {"messages": messages} if path == "/api/chat" else {"message": messages[0]["content"]}
    headers, _ = post(gateway, path, {**body, "model": "fake/normal"}, key=key)
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.outcome, record.exactness, record.usage.output_tokens) == (
        Outcome.COMPLETED,
        Exactness.REPORTED,
        20,
    )
    spent = {row["kind"]: row["spent"] for row in gateway.limits(key)}
    assert spent == {"requests": 1, "tokens": record.usage.total_tokens}
    del marker


def test_the_first_piece_does_not_wait_for_the_last(gateway: Gateway, up: FakeUpstream) -> None:
    _, messages = marked()
    body = {"messages": messages, "model": "fake/gate?gate=5"}
    client = RawClient(gateway.url, gateway.key, body, path="/api/chat")
    client.read_until(lambda c: c.body.count(b'"content"') >= 5)
    assert not client.is_whole
    up.release(name="gate")
    assert client.read_all().body.endswith(b"data: [DONE]\n\n")
