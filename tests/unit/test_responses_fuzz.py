"""Whatever a caller or a provider sends: it is refused in our words or answered, never a crash."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterhouse.errors import Malformed, UpstreamError
from meterhouse.http.wires.responses import ResponsesWire
from meterhouse.request import Attempt
from meterhouse.translate.responses.answer import Answering
from meterhouse.translate.responses.shape import ResponsesItem, ResponsesPart, ResponsesRequest, ResponsesTool
from meterhouse.translate.responses.stream import ResponseStream, to_response
from unit.test_passed_listeners import responses

SCALARS = st.none() | st.booleans() | st.integers(-2, 2**40) | st.floats(-9, 9) | st.text(max_size=4)
ODD = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "id"]), inner),
    max_leaves=4,
)
KINDS = st.sampled_from(
    [
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "item_reference",
        "input_text",
        "input_image",
        "input_file",
        "function",
        "custom",
        "allowed_tools",
        "mcp",
        "auto",
        "json_schema",
        "output_text",
        "refusal",
    ]
)
ROLES = st.sampled_from(["user", "assistant", "system", "developer"])


def fields_of(shape: type[msgspec.Struct], **known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with any of a shape's fields, each as it should be or odd."""
    rows = {name: known.get(name, ODD) | ODD for name in shape.__struct_fields__}
    return st.fixed_dictionaries({}, optional=rows)


PARTS = fields_of(ResponsesPart, type=KINDS, text=st.text(max_size=4))
ITEMS = fields_of(
    ResponsesItem,
    type=KINDS,
    role=ROLES,
    content=st.text(max_size=4) | st.lists(PARTS, max_size=2),
    output=st.text(max_size=4) | st.lists(PARTS, max_size=2),
    call_id=st.just("c"),
    name=st.just("f"),
    arguments=st.just("{}"),
)
TOOLS = fields_of(ResponsesTool, type=KINDS, name=st.just("f"), parameters=st.just({}))
REQUESTS = fields_of(
    ResponsesRequest,
    model=st.just("m"),
    input=st.text(max_size=4) | st.lists(ITEMS, max_size=3),
    tools=st.lists(TOOLS, max_size=2),
    tool_choice=st.fixed_dictionaries({"type": KINDS | ODD}, optional={"name": ODD, "mode": ODD, "tools": ODD}),
)


@settings(deadline=None, max_examples=60)
@given(REQUESTS)
def test_any_request_is_read_or_refused(body: dict[str, Any]) -> None:
    wire = ResponsesWire()
    with suppress(Malformed):
        asked = wire.read(json.dumps(body).encode(), "application/json", lambda: "m")
        dialect = wire.open_dialect(asked)
        assert dialect is not None
        assert b"response.completed" in dialect.frames(b"data: [DONE]\n\n")


DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "content": ODD,
        "reasoning_content": ODD,
        "refusal": ODD,
        "annotations": ODD | st.lists(st.fixed_dictionaries({"url_citation": ODD}), max_size=1),
        "tool_calls": ODD | st.lists(st.fixed_dictionaries({}, optional={"index": ODD, "id": ODD, "function": ODD})),
    },
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "index": ODD,
        "delta": DELTAS | ODD,
        "message": DELTAS | ODD,
        "finish_reason": ODD,
        "logprobs": ODD | st.fixed_dictionaries({"content": ODD}),
    },
)
CHUNKS = st.fixed_dictionaries(
    {}, optional={"choices": st.lists(CHOICES, max_size=2) | ODD, "usage": ODD, "service_tier": ODD}
)


@settings(deadline=None, max_examples=60)
@given(st.lists(CHUNKS, max_size=3))
def test_any_chat_completion_is_told_or_a_failure(chunks: list[Any]) -> None:
    def answering() -> Answering:
        return Answering({"service_tier": None}, "resp_1", 1, lambda: 2)

    stream = ResponseStream(answering())
    for chunk in chunks:
        stream.events(json.dumps(chunk).encode())
        to_response(json.dumps(chunk).encode(), answering())
    assert stream.events(b"[DONE]").count(b"event: response.") >= 3


@pytest.mark.parametrize("payload", [b"[1]", b'"x"', b"{", b'{"x":"\xff"}', b'{"x":' + b"[" * 5_000])
def test_what_is_no_answer_is_the_providers_failure(payload: bytes) -> None:
    stream = ResponseStream(Answering({"service_tier": None}, "resp_1", 1, lambda: 2))
    with pytest.raises(UpstreamError):
        stream.events(payload)


TYPES = st.sampled_from(
    [
        "response.created",
        "response.completed",
        "response.failed",
        "error",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_summary_text.delta",
        "response.new.thing",
    ]
)
EVENTS = st.fixed_dictionaries(
    {"type": TYPES},
    optional={
        "sequence_number": st.integers(0, 9) | ODD,
        "output_index": st.integers(-1, 2) | ODD,
        "content_index": st.integers(-1, 2),
        "response": ODD | st.fixed_dictionaries({"id": st.just("resp_1")}, optional={"usage": ODD, "model": ODD}),
        "item": ODD,
        "part": ODD,
        "delta": ODD,
    },
)


@settings(deadline=None, max_examples=60)
@given(st.lists(EVENTS, max_size=5))
def test_any_passed_event_is_heard_or_a_failure(events: list[dict[str, Any]]) -> None:
    listener, attempt = responses(user="me"), Attempt(1, "fake", "fake/up", "up", None, 0)
    for event in events:
        with suppress(UpstreamError):
            listener.hear(json.dumps(event).encode(), attempt)
            listener.told()
    error = Malformed("No.")
    assert b"event: error" in listener.fail(error, "req_1")
