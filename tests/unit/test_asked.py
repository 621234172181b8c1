"""What is left in memory of a long request once its answer has begun: next to nothing, whatever was long in it."""

import json
import tracemalloc
from typing import Any

import pytest

from meterhouse.http.wires.chat import ChatWire
from meterhouse.http.wires.passed_responses import TellingBack
from meterhouse.http.wires.responses import ResponsesWire

KEPT_BYTES = 65_536
LONG_BYTES = 2_000_000


def parameters(texts: int) -> dict[str, Any]:
    return {"type": "object", "enum": ["x" * 1_000 for _ in range(texts)]}


LONG: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "x" * LONG_BYTES}]},
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters(60)}}] * 33},
    "functions": {"functions": [{"name": "f", "parameters": parameters(60)}] * 33},
    "prediction": {"prediction": {"type": "content", "content": "x" * LONG_BYTES}},
}


@pytest.fixture
def traced() -> Any:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


@pytest.mark.parametrize("field", LONG)
def test_nothing_long_outlives_the_beginning_of_an_answer(traced: Any, field: str) -> None:
    wire = ChatWire()
    given = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **LONG[field]}
    before = traced()
    asked = wire.read(json.dumps(given).encode(), "", str)
    assert traced() - before > LONG_BYTES / 2
    asked.let_go(KEPT_BYTES)
    assert traced() - before < KEPT_BYTES
    assert asked.model == "m"


def test_of_a_prompt_that_is_packed_the_text_is_left_and_how_many_messages_it_had() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Hello \U0001f600"},
        {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": " parts"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    asked = ChatWire().read(json.dumps({"model": "m", "messages": messages}).encode(), "", str)
    asked.let_go(KEPT_BYTES)
    asked.pack()
    assert asked.packed == ("system\nHello \U0001f600user\ntwo partsassistant\nf{}".encode(), 3)
    assert asked.messages == []


def test_what_a_response_tells_back_does_not_keep_the_body_that_it_came_in(traced: Any) -> None:
    wire = ResponsesWire()
    before = traced()
    asked = wire.read(json.dumps({"model": "m", "input": "x" * LONG_BYTES, "user": "me"}).encode(), "", str)
    telling = TellingBack(asked)
    asked.let_go(KEPT_BYTES)
    assert traced() - before < KEPT_BYTES
    assert json.loads(telling.put_right(b'{"user":"mh-1-me","model":"up"}')) == {"user": "me", "model": "m"}
