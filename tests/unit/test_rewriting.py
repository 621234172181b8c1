"""Whether an answer is to be searched for thoughts is known from its first chunk, where that says text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import UpstreamDown
from meterhouse.http.chunk import decode_chunk
from meterhouse.http.rewriting import begins_with_text
from meterhouse.translate.think_tags import MOST_BLANKS, ThoughtsApart

BLANKS = " " * MOST_BLANKS
texts = st.sampled_from(
    ["", " ", "\n<", "<thi", "<think>", " <think>I", "<b>", "Hi", " <thinking", BLANKS, BLANKS + " <"]
)
deltas = st.dictionaries(st.sampled_from(["content", "reasoning_content", "tool_calls", "role"]), texts | st.none())
chunks = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"delta": deltas | st.none()}), max_size=2) | st.none()},
    optional={"created": st.sampled_from([1, 1.5, "now"]), "finish_reason": st.sampled_from([None, "stop"])},
)


def says(**fields: Any) -> bool:
    return begins_with_text(decode_chunk(json.dumps(fields).encode()))


@given(chunks)
def test_an_answer_that_begins_with_text_would_have_passed_as_it_came(fields: dict[str, Any]) -> None:
    payload = json.dumps(fields).encode()
    try:
        first = decode_chunk(payload)
    except UpstreamDown:
        return
    if begins_with_text(first):
        thoughts = ThoughtsApart(1)
        assert thoughts.rewrite_chunk(payload) == payload
        assert thoughts.is_over


@pytest.mark.parametrize("text", ["Hi", " Hi", "<b>", BLANKS + " <think>"])
def test_text_is_told(text: str) -> None:
    assert says(choices=[{"delta": {"role": "assistant", "content": text}}])


@pytest.mark.parametrize("text", ["", " ", "<", "\n<think>", None])
def test_what_may_become_a_tag_is_not_taken_for_text(text: str | None) -> None:
    assert not says(choices=[{"delta": {"content": text}}])


def test_a_chunk_that_was_read_leniently_is_never_taken_for_text() -> None:
    # What the decoder gives as its text is the JSON of the delta.
    assert not says(created=1.5, choices=[{"delta": {"content": "<think>I see"}}])
    assert not begins_with_text(None)
