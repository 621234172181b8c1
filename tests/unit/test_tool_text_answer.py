"""OpenAI's chunks and bodies with the calls of a text in ``tool_calls``: the same however the bytes were cut."""

import itertools
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.tool_texts import CLOCK, EXAMPLES, SCHEMAS, Example
from meterhouse.http.sse import SseReader, frame
from meterhouse.translate.tool_text import GRAMMARS
from meterhouse.translate.tool_text.answer import MAX_CHOICES, ToolTextAnswer, texts_of
from meterhouse.translate.tool_text.tools import Call, Tools

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
HERMES_CALL = '<tool_call>\n{"name": "now"}\n</tool_call>'


def answer_of(name: str) -> ToolTextAnswer:
    numbers = itertools.count()
    return ToolTextAnswer(GRAMMARS[name], Tools(SCHEMAS), lambda: f"call_{next(numbers)}")


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return msgspec.json.encode({**HEAD, "choices": [choice], **more})


def stream_of(text: str, size: int) -> list[bytes]:
    """The chunks of a stream that says a text in pieces of so many characters."""
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": piece}) for piece in pieces),
        chunk({}, "stop"),
        msgspec.json.encode({**HEAD, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
    ]


def assembled(payloads: list[bytes]) -> dict[str, Any]:
    """What a client puts together from one choice's chunks, as the SDK does: by the index of each call."""
    message: dict[str, Any] = {"content": None, "tool_calls": [], "finish": None}
    for payload in payloads:
        for choice in json.loads(payload)["choices"]:
            assert message["finish"] is None, "something came after the finish"
            message["finish"] = choice["finish_reason"]
            delta = choice["delta"]
            if delta.get("content") is not None:
                message["content"] = (message["content"] or "") + delta["content"]
            for call in delta.get("tool_calls") or ():
                assert call["index"] == len(message["tool_calls"])
                assert call["type"] == "function"
                message["tool_calls"].append((call["id"], call["function"]["name"], call["function"]["arguments"]))
    return message


def meant(example: Example) -> dict[str, Any]:
    text = "".join(piece for piece in example.pieces if isinstance(piece, str))
    calls = [piece for piece in example.pieces if isinstance(piece, Call)]
    return {
        "content": text or None,
        "tool_calls": [(f"call_{number}", *call) for number, call in enumerate(calls)],
        "finish": "tool_calls" if calls else "stop",
    }


def rewritten(name: str, payloads: list[bytes]) -> list[bytes]:
    answer = answer_of(name)
    return [out for payload in payloads for out in answer.rewrite_chunk(payload)]


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{row.format}-{n}" for n, row in enumerate(EXAMPLES)])
def test_an_examples_stream_and_body_mean_the_same(example: Example, size: int) -> None:
    assert assembled(rewritten(example.format, stream_of(example.text, size))) == meant(example)
    message = {"role": "assistant", "content": example.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = answer_of(example.format).rewrite_body(msgspec.json.encode({"id": "c", "choices": [choice]}))
    (row,) = json.loads(body)["choices"]
    said = {"content": row["message"]["content"], "finish": row["finish_reason"]}
    calls = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in row["message"].get("tool_calls", [])]
    assert said | {"tool_calls": calls} == meant(example)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_cut_anywhere_also_within_a_character_give_the_same(data: st.DataObject) -> None:
    example = data.draw(st.sampled_from(EXAMPLES))
    size = data.draw(st.integers(1, 12))
    wire = b"".join(frame(payload) for payload in stream_of(example.text, size))
    places = [0, *sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=20))), len(wire)]
    reader, answer = SseReader(), answer_of(example.format)
    out = [
        row
        for begin, end in itertools.pairwise(places)
        for payload in reader.feed(wire[begin:end])
        for row in answer.rewrite_chunk(payload)
    ]
    assert assembled(out) == meant(example)


def test_bytes_cut_at_every_place_are_the_same_payloads() -> None:
    for example in EXAMPLES:
        payloads = stream_of(example.text, 9)
        wire = b"".join(frame(payload) for payload in payloads)
        for place in range(len(wire)):
            reader = SseReader()
            assert [*reader.feed(wire[:place]), *reader.feed(wire[place:])] == payloads
        assert assembled(rewritten(example.format, payloads)) == meant(example)


def test_what_does_not_change_is_the_same_bytes() -> None:
    odd = b'{"choices" : [ {"delta":{"content":"H\\u0069"},"index":0 ,"x":1.50} ],"id":"c"}'
    for payload in (
        odd,
        chunk({"content": "Hi"}, usage={"prompt_tokens": 1}),
        chunk({"reasoning_content": "hm"}),
        chunk({}, "stop"),
        chunk({"content": "Hi"}, "length"),
        b'{"choices":[],"usage":{}}',
        b'{"choices":null}',
        b'{"choices":[5]}',
        b'{"choices":[{"delta":"text"}]}',
        b'{"choices":[{"delta":{"content":["a"]}}]}',
        b'{"id":1}',
        b"5",
    ):
        assert answer_of("hermes").rewrite_chunk(payload) == [payload]
    for body in (b'{"choices":[{"message":{"content":"Hi"}}]}', b'{"choices":[{"message":{"content":null}}]}', b"[]"):
        assert answer_of("hermes").rewrite_body(body) == body


@pytest.mark.parametrize(
    "choice",
    [
        b'{"delta":{"content":"x","\xff":1},"message":{"content":"x","\xff":1}}',
        b'{"delta":{"content":"x"},"message":{"content":"x"},"\xff":1}',
        b'{"delta":{"content":"x"},"message":{"content":"x"},"finish_reason":{"\xff":1}}',
    ],
)
def test_what_is_no_text_passes_as_it_came(choice: bytes) -> None:
    payload = b'{"choices":[%b]}' % choice
    assert answer_of("hermes").rewrite_chunk(payload) == [payload]
    assert answer_of("hermes").rewrite_body(payload) == payload


def test_the_first_delta_says_null_so_that_calls_alone_have_no_content() -> None:
    (first, *_, call, finish) = rewritten("hermes", stream_of(HERMES_CALL, 4)[:-1])
    assert json.loads(first)["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "content" not in json.loads(call)["choices"][0]["delta"]
    assert json.loads(finish)["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


def test_a_role_in_every_delta_is_told_once() -> None:
    answer = answer_of("hermes")
    parts = [HERMES_CALL[:5], HERMES_CALL[5:9], HERMES_CALL[9:]]
    out = [row for part in parts for row in answer.rewrite_chunk(chunk({"role": "assistant", "content": part}))]
    assert [list(json.loads(row)["choices"][0]["delta"]) for row in out] == [["role"], ["tool_calls"]]


def test_what_else_is_in_a_delta_is_kept_while_text_is_held() -> None:
    answer = answer_of("hermes")
    (out,) = answer.rewrite_chunk(chunk({"content": "<tool", "reasoning_content": "hm"}))
    assert json.loads(out)["choices"][0]["delta"] == {"reasoning_content": "hm"}
    assert answer.rewrite_chunk(chunk({"content": "_c", "refusal": None, "tool_calls": []})) == []
    logprobs = {"content": [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []}], "refusal": None}
    choice = {"index": 0, "delta": {"content": "all"}, "logprobs": logprobs, "finish_reason": None}
    (out,) = answer.rewrite_chunk(msgspec.json.encode({**HEAD, "choices": [choice]}))
    assert json.loads(out)["choices"][0] == {**choice, "delta": {}}


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
def test_another_finish_than_stop_stays(finish: str) -> None:
    answer = answer_of("hermes")
    (call,) = answer.rewrite_chunk(chunk({"content": HERMES_CALL}))
    (end,) = answer.rewrite_chunk(chunk({}, finish))
    assert json.loads(call)["choices"][0]["delta"]["tool_calls"][0]["id"] == "call_0"
    assert json.loads(end)["choices"][0]["finish_reason"] == finish


def test_usage_in_a_chunk_that_becomes_several_goes_with_the_last() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    out = answer_of("hermes").rewrite_chunk(chunk({"content": f"Hi {HERMES_CALL}"}, "stop", usage=usage))
    rows = [json.loads(row) for row in out]
    assert len(rows) == 3
    assert [row.get("usage") for row in rows] == [None, None, usage]
    assert all({**row, **HEAD} == row for row in rows)


def test_choices_are_apart_and_their_calls_numbered_each_from_zero() -> None:
    answer = answer_of("hermes")
    rows = []
    for index in (0, 1, 0, 1):
        rows += answer.rewrite_chunk(chunk({"content": HERMES_CALL}, index=index))
    found = [json.loads(row)["choices"][0] for row in rows]
    assert [(row["index"], row["delta"]["tool_calls"][0]["index"]) for row in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    both = [{"index": i, "delta": {"content": "a<to"}, "finish_reason": None} for i in (0, 1)]
    out = answer.rewrite_chunk(msgspec.json.encode({**HEAD, "choices": both}))
    assert [json.loads(row)["choices"][0]["delta"] for row in out] == [{"content": "a"}] * 2
    assert texts_of(answer.waiting()) == {0: "<to", 1: "<to"}


def test_more_choices_than_a_request_can_have_pass_as_they_came() -> None:
    answer = answer_of("hermes")
    for index in range(MAX_CHOICES):
        answer.rewrite_chunk(chunk({"content": "<"}, index=index))
    payload = chunk({"content": HERMES_CALL}, index=MAX_CHOICES)
    assert answer.rewrite_chunk(payload) == [payload]


def test_calls_that_the_server_found_itself_come_behind_ours() -> None:
    answer = answer_of("hermes")
    answer.rewrite_chunk(chunk({"content": HERMES_CALL}))
    own = {"index": 0, "id": "x", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    text, call = answer.rewrite_chunk(chunk({"content": "<too", "tool_calls": [own]}))
    assert json.loads(text)["choices"][0]["delta"] == {"content": "<too"}
    assert json.loads(call)["choices"][0]["delta"] == {"tool_calls": [{**own, "index": 1}]}
    (more,) = answer.rewrite_chunk(chunk({"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}))
    assert json.loads(more)["choices"][0]["delta"]["tool_calls"][0]["index"] == 1
    message = {"role": "assistant", "content": HERMES_CALL, "tool_calls": [own]}
    body = msgspec.json.encode({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    (row,) = json.loads(answer_of("hermes").rewrite_body(body))["choices"]
    assert [found["id"] for found in row["message"]["tool_calls"]] == ["call_0", "x"]


def test_what_is_held_can_be_told_at_any_time() -> None:
    answer = answer_of("hermes")
    answer.rewrite_chunk(chunk({"content": 'Hi <tool_call>\n{"name": "no'}))
    before = answer.waiting()
    answer.rewrite_chunk(chunk({"content": 'w", "arguments": {'}))
    assert texts_of(before) == {0: '<tool_call>\n{"name": "no'}
    assert texts_of(answer.waiting()) == {0: '<tool_call>\n{"name": "now", "arguments": {'}
    answer.rewrite_chunk(chunk({"content": "}}"}))
    assert texts_of(before) == {0: '<tool_call>\n{"name": "no'}
    assert texts_of(answer.waiting()) == {}


@pytest.mark.parametrize(("name", "form"), [("hermes", r"call_[0-9A-Za-z]{24}"), ("mistral", r"[0-9A-Za-z]{9}")])
def test_ids_are_fresh_and_have_the_form_that_the_family_takes(name: str, form: str) -> None:
    answer = ToolTextAnswer(GRAMMARS[name], Tools(SCHEMAS))
    text = GRAMMARS[name].write(CLOCK.name, CLOCK.arguments) * 2
    rows = answer.rewrite_chunk(chunk({"content": text}))
    ids = [json.loads(row)["choices"][0]["delta"]["tool_calls"][0]["id"] for row in rows]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(form, one) for one in ids)


@pytest.mark.parametrize("delta", [{}, {"delta": None}])
def test_what_is_held_back_comes_with_an_end_that_has_no_delta(delta: dict[str, Any]) -> None:
    end = msgspec.json.encode({**HEAD, "choices": [{"index": 0, **delta, "finish_reason": "stop"}]})
    for text in (HERMES_CALL, "<tool_"):
        answer = answer_of("hermes")
        sent = [payload for one in (chunk({"content": text}), end) for payload in answer.rewrite_chunk(one)]
        found = assembled(sent)
        assert (found["content"], len(found["tool_calls"])) == ((None, 1) if text == HERMES_CALL else (text, 0))
        assert found["finish"] == ("tool_calls" if text == HERMES_CALL else "stop")
    assert answer_of("hermes").rewrite_chunk(end) == [end]
