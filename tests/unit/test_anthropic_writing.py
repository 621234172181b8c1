"""OpenAI's answers as Anthropic's: what Anthropic's own SDK makes of the events and the messages."""

import json
from typing import Any

import msgspec
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from meterhouse.errors import GatewayError, UpstreamBusy
from meterhouse.translate.anthropic.hearing import DONE, HeardStream, from_message
from meterhouse.translate.anthropic.words import error_body, error_status
from meterhouse.translate.anthropic.writing import MessagesWriter, to_message

EVENTS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 4},
}


def frames(*deltas: dict[str, Any], reason: str = "stop", usage: dict[str, Any] | None = None) -> list[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [
        *({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas),
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        {**head, "choices": [], "usage": usage or USAGE},
    ]
    return [b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


def events_of(data: bytes) -> list[dict[str, Any]]:
    found = []
    for part in data.split(b"\n\n"):
        if part:
            name, line = part.split(b"\n")
            event = json.loads(line.removeprefix(b"data: "))
            assert name == b"event: " + event["type"].encode()
            found.append(event)
    return found


def written(pieces: list[bytes]) -> list[dict[str, Any]]:
    writer = MessagesWriter()
    return events_of(b"".join(writer.frames(piece) for piece in pieces))


def assembled(events: list[dict[str, Any]]) -> Message:
    """Assemble a message as Anthropic's SDK does, and check that blocks come one after the other."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    open_index: int | None = None
    blocks = 0
    for event in events:
        parsed = EVENTS.validate_python(event, strict=True)
        if event["type"] == "content_block_start":
            assert open_index is None
            assert event["index"] == blocks
            open_index, blocks = blocks, blocks + 1
        elif event["type"] == "content_block_delta":
            assert event["index"] == open_index
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_index
            open_index = None
        snapshot = accumulate_event(event=parsed, current_snapshot=snapshot, json_bufs=buffers)
    assert open_index is None
    assert events[-1]["type"] == "message_stop"
    message: Message = snapshot
    return message


def test_text() -> None:
    events = written(frames({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message = assembled(events)
    assert message.id == "msg_1"
    assert message.content[0].type == "text"
    assert message.content[0].text == "Hello"
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 12
    assert message.usage.cache_read_input_tokens == 5
    assert message.usage.cache_creation_input_tokens == 3
    assert message.usage.output_tokens == 9
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == 4


def test_thoughts_text_and_calls_are_blocks_one_after_the_other() -> None:
    pieces = frames(
        {"role": "assistant", "content": None, "reasoning_content": "Hm"},
        {"reasoning_content": "m."},
        {"content": "Let me see."},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [{"index": 1, "id": "call_2", "type": "function", "function": {"name": "g"}}]},
        reason="tool_calls",
    )
    message = assembled(written(pieces))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].to_dict() == {"type": "thinking", "thinking": "Hmm.", "signature": ""}
    assert message.content[2].to_dict() == {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 1}}
    assert message.content[3].to_dict() == {"type": "tool_use", "id": "call_2", "name": "g", "input": {}}
    assert message.stop_reason == "tool_use"


def test_calls_that_come_mixed_are_put_in_a_row() -> None:
    def piece(index: int, arguments: str, **opening: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **opening, "function": {"arguments": arguments, **opening}}]}

    pieces = frames(
        piece(2, "", id="call_1", name="f"),
        piece(7, '{"b":', id="call_2", name="g"),
        piece(2, '{"a":'),
        piece(7, "2}"),
        piece(2, "1}"),
        reason="tool_calls",
    )
    blocks = [block.to_dict() for block in assembled(written(pieces)).content]
    assert [(block["id"], block["input"]) for block in blocks] == [("call_1", {"a": 1}), ("call_2", {"b": 2})]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
def test_each_finish_reason_has_its_stop_reason(reason: str, expected: str) -> None:
    assert assembled(written(frames({"content": "x"}, reason=reason))).stop_reason == expected


def test_text_between_calls_is_a_block_between_them() -> None:
    def opened(index: int) -> dict[str, Any]:
        function = {"name": f"f{index}", "arguments": "{}"}
        return {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}

    pieces = frames(
        opened(0), {"content": "And"}, opened(1), {"reasoning_content": "Hm"}, opened(2), reason="tool_calls"
    )
    found = [block.to_dict() for block in assembled(written(pieces)).content]
    assert [block.get("id", block["type"]) for block in found] == ["call_0", "text", "call_1", "thinking", "call_2"]


def test_a_refusal_is_text_and_comments_stay() -> None:
    assert MessagesWriter().frames(b": keep-alive\n\n") == b": keep-alive\n\n"
    events = written(frames({"refusal": "No."}, reason="content_filter"))
    assert assembled(events).content[0].to_dict()["text"] == "No."


def test_an_answer_without_anything_is_an_empty_message() -> None:
    assert assembled(written(frames())).content == []


def test_an_error_has_its_type_its_code_and_the_request() -> None:
    busy = UpstreamBusy("Wait.")
    assert error_status(busy) == 529
    expected = {
        "error": {"type": "overloaded_error", "message": "Wait.", "details": {"error_code": "upstream_busy"}},
        "request_id": "req_1",
    }
    assert json.loads(error_body(busy, "req_1")) == {"type": "error", **expected}
    assert events_of(MessagesWriter().fail(busy, "req_1")) == [{"type": "error", **expected}]
    assert json.loads(error_body(GatewayError("Oh."), "req_1"))["error"] == {"type": "api_error", "message": "Oh."}


def test_what_is_no_object_of_arguments_is_kept() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{oh"}}
    body = {"id": "c", "model": "m", "choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    (block,) = json.loads(to_message(msgspec.json.encode(body)))["content"]
    assert block["input"] == {"arguments": "{oh"}


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | WORDS, lambda inner: st.lists(inner, max_size=3))
TEXTS = st.builds(lambda text: {"type": "text", "text": text}, WORDS)
THOUGHTS = st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "c2ln"}, WORDS)
CALLS = st.builds(
    lambda name, arguments: {"type": "tool_use", "id": "toolu_" + name, "name": name, "input": arguments},
    st.text("abc", min_size=1, max_size=5),
    st.dictionaries(WORDS, JSON, max_size=3),
)
ANSWERS = st.tuples(st.lists(THOUGHTS, max_size=1), st.lists(TEXTS, max_size=1), st.lists(CALLS, max_size=3))


def stream_of(message: dict[str, Any], cut: int) -> list[dict[str, Any]]:
    """Stream a message as Anthropic would: each text in pieces of ``cut`` characters."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    ]
    for index, block in enumerate(message["content"]):
        kind, field = {
            "text": ("text_delta", "text"),
            "thinking": ("thinking_delta", "thinking"),
            "tool_use": ("input_json_delta", "partial_json"),
        }[block["type"]]
        whole = json.dumps(block["input"]) if block["type"] == "tool_use" else block[field]
        empty = {**block, "input": {}} if block["type"] == "tool_use" else {**block, field: "", "signature": ""}
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        deltas = [{"type": kind, field: whole[at : at + cut]} for at in range(0, len(whole), cut)]
        if block["type"] == "thinking":
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": delta, "usage": message["usage"]}, {"type": "message_stop"}]


@given(ANSWERS, st.integers(1, 9), st.sampled_from(["end_turn", "max_tokens", "tool_use", "refusal"]))
def test_a_message_that_goes_through_chat_completions_comes_back(
    answer: tuple[list[Any], list[Any], list[Any]], cut: int, reason: str
) -> None:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1, "output_tokens": 7}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [block for blocks in answer for block in blocks],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }
    stream = HeardStream(completion_id="chatcmpl-1", created_seconds=5, model="m")
    payloads = [payload for event in stream_of(message, cut) for payload in stream.take(msgspec.json.encode(event))]
    assert payloads[-1] == DONE
    streamed = assembled(written([b"data: " + payload + b"\n\n" for payload in payloads]))
    chat = from_message(msgspec.json.encode(message), completion_id="chatcmpl-1", created_seconds=5, model="m")
    whole = Message.model_validate_json(to_message(chat))
    # What Anthropic signed comes back to who asked over chat completions, not over its own wire by this way.
    expected = [{**block, "signature": ""} if block["type"] == "thinking" else block for block in message["content"]]
    for found in (streamed, whole):
        assert [block.to_dict() for block in found.content] == expected
        assert found.stop_reason == reason
        assert found.usage.to_dict() == usage
        assert found.model == "claude"
