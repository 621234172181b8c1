"""Whether an answer is to be searched for thoughts is known from its first text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import UpstreamDown
from meterhouse.http.chunk import decode_chunk
from meterhouse.http.rewriting import find_only_text
from meterhouse.translate.think_tags import MOST_BLANKS, ThinkTags, ThoughtsApart, is_no_tag

BLANKS = " " * MOST_BLANKS
texts = st.sampled_from(
    ["", " ", "\n<", "<thi", "<think>", " <think>I", "<b>", "Hi", " <thinking", BLANKS, BLANKS + " <"]
)
deltas = st.dictionaries(st.sampled_from(["content", "reasoning_content", "tool_calls", "role"]), texts | st.none())
chunks = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"delta": deltas | st.none()}), max_size=2) | st.none()},
    optional={"created": st.sampled_from([1, 1.5, "now"]), "finish_reason": st.sampled_from([None, "stop"])},
)


def only_text(**fields: Any) -> str | None:
    return find_only_text(decode_chunk(json.dumps(fields).encode()))


@given(chunks)
def test_what_says_text_or_nothing_would_have_passed_as_it_came(fields: dict[str, Any]) -> None:
    payload = json.dumps(fields).encode()
    try:
        text = find_only_text(decode_chunk(payload))
    except UpstreamDown:
        return
    if text == "" or (text is not None and is_no_tag(text)):
        thoughts = ThoughtsApart(1)
        assert thoughts.rewrite_chunk(payload) == payload
        assert thoughts.is_over is (text != "")
        assert thoughts.waiting() == []


@given(st.lists(texts, max_size=4))
def test_a_text_that_is_no_tag_stays_none_whatever_comes_next(pieces: list[str]) -> None:
    tags = ThinkTags()
    said = [tags.split(piece) for piece in pieces]
    if is_no_tag("".join(pieces)):
        assert ("".join(row[0] for row in said), "".join(row[1] for row in said)) == ("", "".join(pieces))
        assert tags.is_over


@pytest.mark.parametrize("text", ["Hi", " Hi", "<b>", "<think>", "", None])
def test_the_text_of_a_chunk_that_says_nothing_else_is_found(text: str | None) -> None:
    assert only_text(choices=[{"delta": {"role": "assistant", "content": text}}]) == (text or "")


@pytest.mark.parametrize(
    "choices",
    [
        [],
        [{"delta": {"content": "Hi"}}, {"index": 1, "delta": {"content": "Ho"}}],
        [{"index": 1, "delta": {"content": "Hi"}}],
        [{"delta": {"content": "Hi"}, "finish_reason": "stop"}],
        [{"delta": {"content": "", "reasoning": "hm"}}],
        [{"delta": {"content": "", "reasoning_content": "hm"}}],
        [{"delta": {"tool_calls": [{"id": "c"}]}}],
        [{"message": {"content": "Hi"}}],
    ],
)
def test_what_says_something_else_is_looked_at_closer(choices: list[dict[str, Any]]) -> None:
    assert only_text(choices=choices) is None


def test_a_chunk_that_was_read_leniently_is_looked_at_closer() -> None:
    # What the decoder gives as its text is the JSON of the delta.
    assert only_text(created=1.5, choices=[{"delta": {"content": "<think>I see"}}]) is None
    assert find_only_text(None) is None


def test_a_choice_that_nobody_asked_for_is_not_taken_for_one_that_has_not_begun() -> None:
    thoughts = ThoughtsApart(1)
    assert thoughts.rewrite_chunk(b'{"choices":[{"index":1,"delta":{"content":"Hi"}}]}')
    assert not thoughts.is_over
    told = json.loads(
        thoughts.rewrite_chunk(b'{"choices":[{"index":0,"delta":{"content":"<think>I see</think>Yes"}}]}')
    )
    assert told["choices"][0]["delta"] == {"content": "Yes", "reasoning_content": "I see"}
    assert thoughts.is_over
