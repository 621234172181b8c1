"""Chat completions as responses: the same answer streamed and whole, whatever its pieces, valid to the SDK's models."""

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.responses_wire import read_response, read_stream
from meterhouse.errors import UpstreamDown
from meterhouse.translate.responses import output
from meterhouse.translate.responses.answer import Answering, tell_back
from meterhouse.translate.responses.shape import ResponsesRequest
from meterhouse.translate.responses.stream import ResponseStream, to_response

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
DONE = b"[DONE]"

Json = dict[str, Any]
Delta = Json


def new_answering(**more: Any) -> Answering:
    request = ResponsesRequest(model="m", input="Hello")
    numbers = itertools.count()
    return Answering(
        tell_back(request),
        id="resp_1",
        created_seconds=100,
        now_seconds=lambda: 200,
        new_id=lambda prefix: f"{prefix}_{next(numbers)}",
        **more,
    )


def chunk(delta: Delta | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": choices, **more}).encode()


def stream(payloads: list[bytes], **answering: Any) -> list[Any]:
    made = ResponseStream(new_answering(**answering))
    return read_stream(b"".join(made.events(payload) for payload in payloads))


def failing(payloads: list[bytes], error: Json) -> list[Any]:
    made = ResponseStream(new_answering())
    said = b"".join(made.events(payload) for payload in payloads) + made.fail(error)
    assert made.events(DONE) == made.fail(error) == b""
    return read_stream(said)


def payloads_of(deltas: list[Delta], finish: str = "stop") -> list[bytes]:
    return [*map(chunk, deltas), chunk({}, finish), chunk(None, usage=USAGE), DONE]


def call(index: int, arguments: str, name: str | None = None, call_id: str | None = None) -> Delta:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"tool_calls": [{"index": index, "function": function} | ({"id": call_id} if call_id else {})]}


def whole(message: Delta, finish: str = "stop", **answering: Any) -> Any:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": None}
    body = json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
    return read_response(to_response(body, new_answering(**answering)))


def test_a_text_is_told_in_the_order_that_the_helper_demands() -> None:
    events = stream(payloads_of([{"role": "assistant", "content": ""}, {"content": "He"}, {"content": "llo"}]))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    response = events[-1].response
    assert (response.status, response.output_text, response.completed_at) == ("completed", "Hello", 200)
    assert response.usage.to_dict() == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 12,
    }


def test_thoughts_become_a_reasoning_item_before_the_message() -> None:
    events = stream(payloads_of([{"reasoning_content": "Hm"}, {"reasoning_content": "."}, {"content": "Yes"}]))
    thought, said = events[-1].response.output
    assert [part.to_dict() for part in thought.content] == [{"type": "reasoning_text", "text": "Hm."}]
    assert thought.summary == []
    assert said.content[0].text == "Yes"
    kinds = [event.type for event in events]
    assert "response.reasoning_text.delta" in kinds
    assert kinds.index("response.output_item.done") < kinds.index("response.output_text.delta")


def test_thoughts_are_the_summary_where_one_was_asked_for() -> None:
    events = stream(payloads_of([{"reasoning_content": "Hm"}, {"content": "Yes"}]), wants_summary=True)
    thought, _ = events[-1].response.output
    assert [part.to_dict() for part in thought.summary] == [{"type": "summary_text", "text": "Hm"}]
    assert [event.type for event in events][3:7] == [
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ]


def test_calls_whose_pieces_are_mixed_stay_apart() -> None:
    deltas = [call(0, "", "a", "c0"), call(1, "", "b", "c1"), call(1, "[1"), call(0, "{"), call(0, "}"), call(1, "]")]
    events = stream(payloads_of(deltas, "tool_calls"))
    calls = events[-1].response.output
    assert [(row.name, row.call_id, row.arguments) for row in calls] == [("a", "c0", "{}"), ("b", "c1", "[1]")]
    assert events[-1].response.status == "completed"


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    pieces = [{"id": "c0", "function": {"name": "a", "arguments": "{}"}}, {"function": {"arguments": " "}}]
    other = {"id": "c1", "function": {"name": "b", "arguments": "[]"}}
    events = stream(payloads_of([{"tool_calls": [piece]} for piece in [*pieces, other]], "tool_calls"))
    assert [(row.name, row.arguments) for row in events[-1].response.output] == [("a", "{} "), ("b", "[]")]


def test_a_call_that_is_named_late_loses_nothing() -> None:
    events = stream(payloads_of([call(0, '{"x"'), call(0, ":1}", "late")], "tool_calls"))
    (row,) = events[-1].response.output
    assert (row.name, row.arguments) == ("late", '{"x":1}')
    assert row.call_id.startswith("call_")


@pytest.mark.parametrize(
    ("arguments", "said"), [('{"input":"ls -l"}', "ls -l"), ("ls -l", "ls -l"), ('{"x":1}', '{"x":1}')]
)
def test_a_call_of_a_custom_tool_has_an_input(arguments: str, said: str) -> None:
    deltas = [call(0, arguments[:4], "shell", "c0"), call(0, arguments[4:])]
    events = stream(payloads_of(deltas, "tool_calls"), custom_tools=frozenset({"shell"}))
    (row,) = events[-1].response.output
    assert (row.type, row.name, row.call_id, row.input) == ("custom_tool_call", "shell", "c0", said)
    assert [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"] == [said]


def test_a_refusal_is_a_part_of_its_own() -> None:
    events = stream(payloads_of([{"content": "Well"}, {"refusal": "No"}, {"refusal": "."}]))
    (said,) = events[-1].response.output
    assert [part.to_dict() for part in said.content][1] == {"type": "refusal", "refusal": "No."}
    assert [event.type for event in events].count("response.refusal.delta") == 2


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_ended_early_is_incomplete(finish: str, reason: str) -> None:
    events = stream(payloads_of([{"content": "He"}], finish))
    response = events[-1].response
    assert (events[-1].type, response.status) == ("response.incomplete", "incomplete")
    assert response.incomplete_details.reason == reason
    assert response.output[0].status == "incomplete"
    assert response.completed_at is None


def test_a_failure_in_the_stream_is_an_error_and_the_end() -> None:
    error = {"message": "It broke.", "type": "upstream_error", "param": None, "code": "upstream_error"}
    last, told = failing([chunk({"content": "He"})], error)[-2:]
    assert (told.type, told.code, told.message) == ("error", "upstream_error", "It broke.")
    assert (last.type, last.response.error.code, last.response.error.message) == (
        "response.failed",
        "server_error",
        "It broke.",
    )
    assert last.response.output[0].status == "incomplete"
    assert last.response.output_text == "He"


def test_a_failure_before_anything_was_said_still_begins() -> None:
    error = {"message": "Slow down.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
    events = failing([], error)
    assert [event.type for event in events[2:]] == ["response.failed", "error"]
    assert events[-2].response.error.code == "rate_limit_exceeded"


def test_the_probabilities_of_tokens_come_along() -> None:
    row = {
        "token": "é",
        "logprob": -0.5,
        "bytes": None,
        "top_logprobs": [{"token": "e", "logprob": -1, "bytes": [101]}],
    }
    choice = {"index": 0, "delta": {"content": "é"}, "finish_reason": None, "logprobs": {"content": [row]}}
    events = stream([json.dumps({"choices": [choice]}).encode(), *payloads_of([])])
    (delta,) = [event for event in events if event.type == "response.output_text.delta"]
    assert [(token.token, token.logprob) for token in delta.logprobs] == [("é", -0.5)]
    (kept,) = events[-1].response.output[0].content[0].logprobs
    assert kept.bytes == list("é".encode())
    assert kept.top_logprobs[0].bytes == [101]


def test_what_a_provider_cites_is_an_annotation() -> None:
    cited = {"url": "https://example.test", "title": "T", "start_index": 0, "end_index": 2}
    message = {"content": "Hi", "annotations": [{"type": "url_citation", "url_citation": cited}]}
    assert whole(message).output[0].content[0].annotations[0].to_dict() == {"type": "url_citation", **cited}
    events = stream(payloads_of([{"content": "Hi"}, {"annotations": message["annotations"]}]))
    assert [event.type for event in events].count("response.output_text.annotation.added") == 1


def test_what_was_asked_for_is_told_back() -> None:
    function = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    body = {
        "model": "m",
        "input": "Hello",
        "instructions": "Be brief.",
        "max_output_tokens": 50,
        "max_tool_calls": 2,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s",
        "service_tier": "flex",
        "store": True,
        "temperature": 0.5,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}, "verbosity": "low"},
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "tools": [function, {"type": "custom", "name": "c", "description": "d"}],
        "top_logprobs": 2,
        "top_p": 0.5,
        "truncation": "auto",
        "user": "u",
    }
    told = tell_back(msgspec.convert(body, ResponsesRequest))
    made = Answering(told, id="resp_1", created_seconds=1, now_seconds=lambda: 2)
    response = read_response(msgspec.json.encode(made.snapshot(is_over=True))).to_dict()
    same = body.keys() - {"input", "store", "truncation"}
    assert {name: response[name] for name in same} == {name: body[name] for name in same}
    assert (response["store"], response["truncation"]) == (False, "disabled")


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    assert whole({"content": ""}).output_text == ""
    (said,) = stream(payloads_of([]))[-1].response.output
    assert said.content[0].text == ""


def test_an_answer_that_is_too_long_to_be_told_twice_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_BYTES", 1_000)
    made = ResponseStream(new_answering())
    for _ in range(20):
        made.events(chunk({"content": "x" * 10}))
    made.events(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}))
    with pytest.raises(UpstreamDown):
        made.events(chunk({"content": "x" * 200}))
    error = {"message": "Too long.", "type": "upstream_error", "param": None, "code": "upstream_unavailable"}
    assert b"event: response.failed" in made.fail(error)


TEXTS = st.text(max_size=6)
DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"reasoning_content": text}, TEXTS),
    st.builds(lambda text: {"refusal": text}, TEXTS),
    st.builds(call, st.integers(0, 2), TEXTS, st.none() | st.sampled_from(["f", "shell"]), st.none() | st.just("c")),
)
FINISHES = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


@settings(deadline=None, max_examples=60)
@given(st.lists(DELTAS, max_size=12), FINISHES, st.booleans())
def test_any_stream_is_one_that_the_helper_accepts(deltas: list[Delta], finish: str, wants_summary: bool) -> None:
    events = stream(payloads_of(deltas, finish), custom_tools=frozenset({"shell"}), wants_summary=wants_summary)
    said = "".join(delta.get("content", "") for delta in deltas)
    assert events[-1].response.output_text == said
    calls = [item for item in events[-1].response.output if item.type == "function_call"]
    for item in calls:
        assert isinstance(item.arguments, str)


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS, TEXTS, st.lists(st.tuples(TEXTS, st.sampled_from(["f", "shell"])), max_size=3), FINISHES)
def test_a_whole_answer_is_what_a_stream_of_it_adds_up_to(
    thought: str, said: str, refused: str, calls: list[tuple[str, str]], finish: str
) -> None:
    rows = [
        {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (arguments, name) in enumerate(calls)
    ]
    message = {"reasoning_content": thought, "content": said, "refusal": refused, "tool_calls": rows}
    deltas = [{name: letter} for name in ("reasoning_content", "content", "refusal") for letter in message[name]]
    deltas += [{"tool_calls": [{"index": index, **row}]} for index, row in enumerate(rows)]
    streamed = stream(payloads_of(deltas, finish), custom_tools=frozenset({"shell"}))[-1].response
    at_once = whole(message, finish, custom_tools=frozenset({"shell"}))
    assert at_once.to_dict() == streamed.to_dict()
