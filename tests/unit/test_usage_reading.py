"""A usage that is checked while it is decoded says what one says that is looked at field by field."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from meterhouse.http.usage_reading import ReadUsage, read_chat_usage, read_messages_usage, read_raw_chat_usage
from meterhouse.usage import SUSPECT_TOKENS

IN, OUT = "prompt_tokens", "completion_tokens"

counts = st.integers(0, 40) | st.none()
values = counts | st.sampled_from([-1, SUSPECT_TOKENS, SUSPECT_TOKENS + 1, 1 << 62, True, 1.0, "7", [], {}])
inside = st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "reasoning_tokens", "text_tokens"])
names = st.sampled_from([IN, OUT, "total_tokens", "prompt_cache_hit_tokens", "cached_tokens", "reasoning_tokens"])
details = st.sampled_from(["prompt_tokens_details", "completion_tokens_details"])


def usages(found: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    whole = st.fixed_dictionaries({IN: found, OUT: found})
    more = st.dictionaries(names, found)
    nested = st.dictionaries(details, st.none() | st.dictionaries(inside, found))
    return st.tuples(whole, more, nested).map(lambda parts: parts[0] | parts[1] | parts[2])


@given(usages(counts) | usages(values))
def test_both_ways_to_read_a_usage_agree(wire: dict[str, Any]) -> None:
    assert read_raw_chat_usage(Raw(msgspec.json.encode(wire))) == read_chat_usage(wire)


@pytest.mark.parametrize("raw", [b"12", b'"12"', b"[]", b"[1]", b"true"])
def test_what_is_no_object_is_no_usage(raw: bytes) -> None:
    assert read_raw_chat_usage(Raw(raw)) is None


@pytest.mark.parametrize(
    ("fresh", "cached", "written"),
    [
        (SUSPECT_TOKENS, 1, 0),
        (1, SUSPECT_TOKENS, SUSPECT_TOKENS),
        (3, SUSPECT_TOKENS * 1_000, 0),
        (3, 0, -1),
        (3, "7", None),
    ],
)
def test_an_input_in_parts_is_believed_as_one(fresh: Any, cached: Any, written: Any) -> None:
    wire = {"input_tokens": fresh, "cache_read_input_tokens": cached, "cache_creation_input_tokens": written}
    assert read_messages_usage({**wire, "output_tokens": 5}) == ReadUsage(is_suspect=True)
