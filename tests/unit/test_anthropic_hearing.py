"""Anthropic's answers as OpenAI's: what the SDKs of both companies make of the same answer."""

from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from meterhouse.errors import UpstreamDown
from meterhouse.translate.anthropic.hearing import DONE, HeardStream, from_message

USAGE = {"input_tokens": 11, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 7, "output_tokens": 1}


def heard(*events: dict[str, Any]) -> list[Any]:
    stream = HeardStream(completion_id="chatcmpl-1", created_seconds=5, model="claude")
    payloads = [payload for event in events for payload in stream.take(msgspec.json.encode(event))]
    return [payload if payload == DONE else msgspec.json.decode(payload) for payload in payloads]


def start(usage: dict[str, Any] | None = None) -> dict[str, Any]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5-20251001"}
    return {"type": "message_start", "message": {**message, "content": [], "usage": usage or USAGE}}


def block(index: int, content_block: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content_block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def end(reason: str, **usage: Any) -> list[dict[str, Any]]:
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]


def test_text_comes_with_the_input_at_its_start_and_the_whole_usage_at_its_end() -> None:
    text = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hi"})
    chunks = heard(start(), {"type": "ping"}, *text, *end("end_turn", output_tokens=4))
    assert chunks.pop() == DONE
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    first, said, finish, last = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["usage"]["prompt_tokens"] == 23
    assert first["usage"]["completion_tokens"] == 1
    assert said["choices"][0]["delta"] == {"content": "Hi"}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 7},
        "completion_tokens": 4,
        "completion_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 27,
    }
    assert {chunk["model"] for chunk in chunks} == {"claude-haiku-4-5-20251001"}


def test_the_counts_of_the_end_stand_above_those_of_the_start() -> None:
    usage = {"input_tokens": 20, "cache_read_input_tokens": None, "output_tokens": 9}
    details = {"output_tokens_details": {"thinking_tokens": 6}}
    *_, last, done = heard(start(), *end("max_tokens", **usage, **details))
    assert done == DONE
    assert last["usage"]["prompt_tokens"] == 20 + 5 + 7
    assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 6}


def test_calls_are_numbered_among_themselves_and_have_arguments_even_if_none_came() -> None:
    chunks = heard(
        start(),
        *block(0, {"type": "text", "text": "Let me see."}),
        *block(
            1,
            {"type": "tool_use", "id": "toolu_1", "name": "a", "input": {}},
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"x":'},
            {"type": "input_json_delta", "partial_json": "1}"},
        ),
        *block(2, {"type": "tool_use", "id": "toolu_2", "name": "b", "input": {}}),
        *end("tool_use", output_tokens=9),
    )
    calls = [
        piece for chunk in chunks[:-1] for choice in chunk["choices"] for piece in choice["delta"].get("tool_calls", ())
    ]
    assert [(call["index"], call.get("id"), call["function"]["arguments"]) for call in calls] == [
        (0, "toolu_1", ""),
        (0, None, '{"x":'),
        (0, None, "1}"),
        (1, "toolu_2", ""),
        (1, None, "{}"),
    ]
    assert chunks[-3]["choices"][0]["finish_reason"] == "tool_calls"


def test_thoughts_come_as_reasoning_and_whole_with_their_signature() -> None:
    chunks = heard(
        start(),
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Hm"},
            {"type": "thinking_delta", "thinking": "m."},
            {"type": "signature_delta", "signature": "c2ln"},
        ),
        *block(1, {"type": "redacted_thinking", "data": "xyz"}),
        *end("end_turn", output_tokens=3),
    )
    deltas = [choice["delta"] for chunk in chunks[:-1] for choice in chunk["choices"]]
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["Hm", "m."]
    assert [delta["thinking_blocks"] for delta in deltas if "thinking_blocks" in delta] == [
        [{"type": "thinking", "thinking": "Hmm.", "signature": "c2ln"}],
        [{"type": "redacted_thinking", "data": "xyz"}],
    ]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_each_stop_reason_has_its_finish_reason(reason: str, expected: str) -> None:
    assert heard(start(), *end(reason, output_tokens=1))[1]["choices"][0]["finish_reason"] == expected
    body = {"type": "message", "model": "m", "content": [], "stop_reason": reason, "usage": USAGE}
    assert whole(body)["choices"][0]["finish_reason"] == expected


def test_an_error_ends_the_stream_and_says_its_status() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    *_, failure = heard(start(), error, *end("end_turn", output_tokens=1))
    assert failure["error"] == {
        "message": "Overloaded",
        "type": "overloaded_error",
        "param": None,
        "code": "overloaded_error",
        "status": 529,
    }


def test_what_is_not_known_is_passed_over_and_what_is_no_event_is_an_error() -> None:
    citation = {"type": "citations_delta", "citation": {"type": "char_location"}}
    chunks = heard(start(), {"type": "fortune", "index": 3}, *block(0, {"type": "text", "text": ""}, citation))
    assert len(chunks) == 1
    stream = HeardStream(completion_id="c", created_seconds=0, model="m")
    for garbage in (
        b"nothing",
        b"[1]",
        b'{"no":"type"}',
        b'{"type":"content_block_delta","index":0,"delta":{"text":"x"}}',
    ):
        with pytest.raises(UpstreamDown):
            stream.take(garbage)


def test_arguments_that_are_no_text_are_an_error_and_a_tier_that_is_none_says_nothing() -> None:
    call = b'{"type":"tool_use","id":"a","name":"f","input":{"x":"\xff"}}'
    body = b'{"type":"message","content":[%b],"stop_reason":"tool_use","usage":{"service_tier":[]}}'
    stream = HeardStream(completion_id="c", created_seconds=0, model="m")
    stream.take(msgspec.json.encode(start({"service_tier": {}})))
    stream.take(b'{"type":"content_block_start","index":0,"content_block":%b}' % call)
    with pytest.raises(UpstreamDown):
        stream.take(b'{"type":"content_block_stop","index":0}')
    with pytest.raises(UpstreamDown):
        from_message(body % call, completion_id="c", created_seconds=0, model="m")
    answer = msgspec.json.decode(from_message(body % b"", completion_id="c", created_seconds=0, model="m"))
    assert "service_tier" not in answer


def whole(body: dict[str, Any]) -> dict[str, Any]:
    found = from_message(msgspec.json.encode(body), completion_id="chatcmpl-1", created_seconds=5, model="claude")
    ChatCompletion.model_validate_json(found)
    answer: dict[str, Any] = msgspec.json.decode(found)
    return answer


def test_a_whole_answer_has_all_of_it() -> None:
    answer = whole(
        {
            "type": "message",
            "model": "claude-x",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "c2ln"},
                {"type": "text", "text": "It "},
                {"type": "text", "text": "is."},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": [1, 2]}},
            ],
            "stop_reason": "tool_use",
            "usage": {**USAGE, "service_tier": "standard"},
        }
    )
    assert answer["service_tier"] == "default"
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("It is.", "Hm")
    assert message["thinking_blocks"] == [{"type": "thinking", "thinking": "Hm", "signature": "c2ln"}]
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":[1,2]}'}
    assert answer["usage"]["total_tokens"] == 24


@pytest.mark.parametrize(
    "body", [b"{}", b"nothing", b'{"type":"message","content":[]}', b'{"type":"error","stop_reason":"x"}']
)
def test_a_whole_answer_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(UpstreamDown):
        from_message(body, completion_id="c", created_seconds=0, model="m")
