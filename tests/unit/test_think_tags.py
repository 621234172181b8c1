"""Thoughts in the text of a local model are found however the text is cut, and nothing else is touched."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.translate.think_tags import MOST_BLANKS, ThinkTags, ThoughtsApart, split_whole

CASES = [
    ("<think>I see</think>Hello", "I see", "Hello"),
    ("\n <think>\nI see\n</think>\n\nHello <b> there", "I see\n", "Hello <b> there"),
    ("<think></think>Hello", "", "Hello"),
    ("<think>I </thin and </thinkers></think>x", "I </thin and </thinkers>", "x"),
    ("<think>never closed </thi", "never closed </thi", ""),
    ("Hello <think>not</think>", "", "Hello <think>not</think>"),
    ("<thinking>not</thinking>", "", "<thinking>not</thinking>"),
    ("<thi", "", "<thi"),
    ("  ", "", "  "),
    ("<", "", "<"),
    ("", "", ""),
    (" " * MOST_BLANKS + "<think>I see</think>x", "I see", "x"),
    (" " * (MOST_BLANKS + 1) + "<think>", "", " " * (MOST_BLANKS + 1) + "<think>"),
]


def split(pieces: list[str]) -> tuple[str, str]:
    tags = ThinkTags()
    found = [tags.split(piece) for piece in pieces] + [tags.finish()]
    return "".join(reasoning for reasoning, _ in found), "".join(text for _, text in found)


@pytest.mark.parametrize(("text", "reasoning", "said"), CASES)
def test_it_is_the_same_however_it_is_cut(text, reasoning, said):
    for size in (1, 2, 3, 5, 100):
        assert split([text[at : at + size] for at in range(0, len(text), size)]) == (reasoning, said)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "ink>", " ", "\n", "word"]), max_size=12))
def test_nothing_but_tags_and_blanks_is_lost(pieces):
    text = "".join(pieces)
    whole, cut = split([text]), split(list(text))
    assert cut == whole
    kept = "".join(whole).replace(" ", "").replace("\n", "")
    bare = text.replace(" ", "").replace("\n", "")
    assert kept in {bare, bare.replace("<think>", "", 1), bare.replace("<think>", "", 1).replace("</think>", "", 1)}


def chunk(content, finish=None, index=0, **more):
    delta = {"content": content} if content is not None else {}
    choice = {"index": index, "delta": {**delta, **more}, "finish_reason": finish}
    return json.dumps({"id": "c", "choices": [choice]}).encode()


def read(*payloads, choices=1):
    thoughts = ThoughtsApart(choices)
    return [read for payload in payloads if (read := thoughts.rewrite_chunk(payload))]


def deltas(payloads):
    return [json.loads(payload)["choices"][0]["delta"] for payload in payloads]


def test_a_stream_is_told_apart_and_then_passes_byte_for_byte():
    late = b'{"id":"c",  "choices":[{"index":0,"delta":{"content":" <think> "},"finish_reason":null}]}'
    sent = (chunk("", role="assistant"), chunk("<thi"), chunk("nk>I s"), chunk("ee</think>\nHi"), late)
    *found, passed = read(*sent)
    assert found[0] == sent[0]
    assert deltas(found)[1:] == [{"reasoning_content": "I s"}, {"content": "Hi", "reasoning_content": "ee"}]
    assert passed == late


def test_what_is_held_back_comes_with_the_end():
    found = deltas(read(chunk("<"), chunk(None, "stop")))
    assert "".join(delta.get("content", "") for delta in found) == "<"


@pytest.mark.parametrize("delta", [{}, {"delta": None}])
def test_what_is_held_back_comes_with_an_end_that_has_no_delta(delta):
    end = json.dumps({"id": "c", "choices": [{"index": 0, **delta, "finish_reason": "stop"}]}).encode()
    assert deltas(read(chunk("<thi"), end)) == [{"content": "<thi"}]
    assert read(chunk("Hi"), end)[1] == end


def test_a_payload_whose_text_is_held_back_goes_out_if_it_says_something_else():
    sent = chunk("<th", role="assistant")
    assert deltas(read(sent)) == [{"role": "assistant"}]
    assert read(chunk("<th")) == []


def test_what_is_said_beside_the_text_goes_out_although_the_text_is_held_back():
    held = {"index": 0, "delta": {"content": "<"}, "logprobs": {"content": [{"token": "<"}]}, "finish_reason": None}
    (found,) = read(json.dumps({"id": "c", "choices": [held]}).encode())
    assert json.loads(found)["choices"] == [{**held, "delta": {}}]


def test_a_choice_that_begins_when_all_others_say_their_text_is_told_apart_too():
    found = deltas(read(chunk("Hi"), chunk("<think>hm</think>Ho", index=1), choices=2))
    assert found[1] == {"content": "Ho", "reasoning_content": "hm"}


def test_what_is_held_back_can_be_let_go_at_any_time():
    thoughts = ThoughtsApart(2)
    thoughts.rewrite_chunk(chunk("<think>hm</th"))
    thoughts.rewrite_chunk(chunk("  <thi", index=1))
    assert thoughts.waiting() == [(0, "</th", ""), (1, "", "  <thi")]


def test_a_server_that_tells_them_apart_itself_is_left_alone():
    sent = [chunk(None, reasoning="hm"), chunk("<think>is a tag</think>"), chunk(None, "stop")]
    assert read(*sent) == sent


def test_garbage_and_errors_are_left_to_others():
    sent = [b"{", b'{"error":{"message":"no"}}', b'{"choices":[7]}', b'{"choices":[{"index":0,"delta":null}]}', b"[1]"]
    assert read(*sent) == sent


def test_a_body_is_told_apart_and_any_other_is_left_as_it_is():
    def body(content, **more):
        return json.dumps({"choices": [{"index": 0, "message": {"content": content, **more}}]}).encode()

    message = json.loads(split_whole(body("<think>I see</think>\n\nHi")))["choices"][0]["message"]
    assert message == {"content": "Hi", "reasoning_content": "I see"}
    for same in (body("Hi <think>x</think>"), body(None), body("<think>x</think>", reasoning_content="y"), b"think>{"):
        assert split_whole(same) == same


@pytest.mark.parametrize("choices", ["7", "true", '{"a":1}', '"think>"', "[7]"])
def test_choices_that_are_none_pass_as_they_came(choices):
    payload = f'{{"choices":{choices},"x":"<think>"}}'.encode()
    assert ThoughtsApart(1).rewrite_chunk(payload) == payload
    assert split_whole(payload) == payload
