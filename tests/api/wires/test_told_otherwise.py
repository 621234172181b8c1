"""A chat completion that is told on another wire: what is odd in it says nothing, what cannot be read is a failure.

In both cases it is no error of ours, and what is recorded is what the client saw.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from meterhouse.usage import Exactness, Outcome

MESSAGES = [{"role": "user", "content": "Hello"}]
WIRES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "deepseek/odd", "prompt": "Hello", "logprobs": 2},
    "/v1/messages": {"model": "fake/odd", "messages": MESSAGES, "max_tokens": 10},
    "/v1/responses": {"model": "fake/odd", "input": "Hello"},
    "/api/chat": {"model": "fake/odd", "messages": MESSAGES},
    "/chat": {"model": "fake/odd", "message": "Hello"},
    "/stream": {"model": "fake/odd", "message": "Hello"},
}
USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}'
ODD_SAID = {
    "an object for arguments": b'"content":"Hi","tool_calls":[{"index":0,"function":{"name":"f","arguments":{}}}]',
    "words for calls": b'"content":"Hi","tool_calls":["f"]',
    "a word for a function": b'"content":"Hi","tool_calls":[{"function":"f"}]',
    "a list for a call's index": b'"content":"Hi","tool_calls":[{"index":[1],"id":"a","function":{"name":"f"}}]',
    "a number for calls": b'"content":"Hi","tool_calls":7',
    "parts for a text": b'"content":[{"type":"text","text":"Hi"},7]',
}
ODD_CHOICE = {
    "no probability of a token": b'"logprobs":{"content":[{"token":"Hi"}]}',
    "no token": b'"logprobs":{"content":[{"token":null,"logprob":-1}]}',
    "words for probabilities": b'"logprobs":{"content":["Hi"]}',
    "nothing for others": b'"logprobs":{"content":[{"token":"Hi","logprob":-1,"top_logprobs":[{},7]}]}',
    "a list for an index": b'"index":[1]',
}
UNREADABLE = {"no text": b'"x":"\xff"', "no number": b'"x":1e999'}


class Odd:
    """Says what a test wants in the answers of the model ``odd``."""

    def __init__(self, up: FakeUpstream) -> None:
        self.said = b'"content":"Hi"'
        self.choice = b'"index":0'
        self.head = b'"id":"c1"'
        self.end = b'"id":"c1"'
        up.script("odd", self._run)

    async def _run(self, exchange: Exchange) -> None:
        finish = b'"finish_reason":"stop"'
        body = b"{%b,%b,%b}" % (self.head, self._choices(b'"message":{%b},%b' % (self.said, finish)), USAGE)
        content_type = "application/json"
        if exchange.request.is_streamed:
            content_type = "text/event-stream"
            first = self._choices(b'"delta":{%b},"finish_reason":null' % self.said)
            last = b'"choices":[{"index":0,"delta":{},%b}]' % finish
            body = b"data: {%b,%b}\n\ndata: {%b,%b,%b}\n\ndata: [DONE]\n\n" % (self.head, first, self.end, last, USAGE)
        await exchange.whole(200, content_type, body)

    def _choices(self, of_one: bytes) -> bytes:
        return b'"choices":[{%b,%b}]' % (self.choice, of_one)


@pytest.fixture(scope="module")
def both(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Neither of the rows that are asked serves the wire itself."""
    environment = provider_environment("fake", up.base_url) | provider_environment("deepseek", up.base_url)
    folder: Path = tmp_path_factory.mktemp("odd")
    with Gateway(folder / "data", environment | {"METERHOUSE_SHIP_SECONDS": "0.01"}) as running:
        yield running


@pytest.fixture
def odd(up: FakeUpstream) -> Iterator[Odd]:
    yield Odd(up)
    up.script("odd", scripts.answer)


def ways(path: str) -> list[dict[str, Any]]:
    """Return the bodies of a wire: not streamed and streamed, where it has both."""
    return [WIRES[path]] if not path.startswith("/v1/") else [WIRES[path], WIRES[path] | {"stream": True}]


@pytest.mark.parametrize("path", WIRES)
def test_what_is_odd_in_an_answer_says_nothing(both: Gateway, odd: Odd, path: str) -> None:
    for said, choice in [(said, odd.choice) for said in ODD_SAID.values()] + [
        (odd.said, choice) for choice in ODD_CHOICE.values()
    ]:
        odd.said, odd.choice = said, choice
        for body in ways(path):
            status, headers, answer = both.request("POST", path, body)
            assert (status, b"Hi" in answer, b'"error":{' in answer) == (200, True, False), (said, choice, answer)
            (record,) = both.records(headers["x-request-id"])
            assert (record.outcome, record.usage.output_tokens) == (Outcome.COMPLETED, 5)


@pytest.mark.parametrize("what", UNREADABLE)
@pytest.mark.parametrize("path", WIRES)
def test_what_cannot_be_read_is_the_providers_failure(both: Gateway, odd: Odd, path: str, what: str) -> None:
    odd.head = UNREADABLE[what]
    for body in ways(path):
        status, headers, answer = both.request("POST", path, body)
        assert (status, b"upstream_protocol_error" in answer) == (502, True), answer
        (record,) = both.records(headers["x-request-id"])
        assert (record.outcome, record.error_code) == (Outcome.UPSTREAM_FAILED, "upstream_protocol_error")
        if not body.get("stream") and path not in {"/api/chat", "/stream"}:
            assert (record.exactness, record.usage.output_tokens) == (Exactness.REPORTED, 5)


@pytest.mark.parametrize("path", [path for path in WIRES if path != "/chat"])
def test_an_end_that_cannot_be_read_ends_no_answer(both: Gateway, odd: Odd, path: str) -> None:
    odd.end = UNREADABLE["no text"]
    status, headers, answer = both.request("POST", path, ways(path)[-1])
    assert (status, b"Hi" in answer, b"upstream_protocol_error" in answer) == (200, True, True), answer
    assert b"[DONE]" not in answer
    (record,) = both.records(headers["x-request-id"])
    assert record.outcome is Outcome.UPSTREAM_FAILED


def test_an_object_for_arguments_reaches_the_client_as_arguments(both: Gateway, odd: Odd) -> None:
    odd.said = b'"content":"Hi","tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":{"x":[1]}}}]'
    _, _, message = both.request("POST", "/v1/messages", WIRES["/v1/messages"])
    assert b'"input":{"x":[1]}' in message
    _, _, events = both.request("POST", "/v1/messages", WIRES["/v1/messages"] | {"stream": True})
    assert rb'"partial_json":"{\"x\":[1]}"' in events
    _, _, response = both.request("POST", "/v1/responses", WIRES["/v1/responses"])
    assert rb'"arguments":"{\"x\":[1]}"' in response
