"""A long body is judged as by looking at all of it, however its long texts are left out."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meterhouse.errors import Malformed
from meterhouse.http.intake import check_structure
from meterhouse.http.skeleton import BYTES_PER_QUOTE, LONG_BODY_BYTES, MOST_QUOTES, has_more_than, leave_texts_out

PADDING = b'"' + b"a, [b] {c} " * (LONG_BODY_BYTES // 11 + 1) + b'"'
"""A text that makes its body a long one, with everything in it that is structure elsewhere."""

PIECES = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b",", b":", b" ", b'"', b"\\", b'\\"', b"\\\\", b"\\u00e9", b"\\ud83d", b"\xc3\xa9"),
        *(
            b'"\\u00000000000"',
            b"\\u0000",
            b"\xff",
            b"\n",
            b"1",
            b"01",
            b"1e999",
            b"NaN",
            b"true",
            b"null",
            b'"k"',
            b'"k":',
            b'"k":1,',
            b'"":',
            b"\x00",
        ),
        *(PADDING, b'"' + b"x" * 2_000, b"y" * 2_000 + b'"', b"\\" * 70, PADDING + b":", PADDING + b" :"),
    ]
)


def _is_good(body: bytes) -> bool:
    """Say of a body what Python's own decoder says, keys that are there twice and endless numbers refused."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("twice")

    def finite(text: str) -> float:
        if abs(float(text)) == float("inf"):
            raise ValueError("endless")
        return 0.0

    def no_constant(text: str) -> None:
        raise ValueError(text)

    try:
        json.loads(str(body, "utf-8"), object_pairs_hook=unique, parse_float=finite, parse_constant=no_constant)
    except ValueError:
        return False
    return True


def _data(body: bytes) -> bytes:
    skeleton = leave_texts_out(body)
    assert skeleton is not None
    return skeleton.data


def _is_taken(body: bytes) -> bool:
    try:
        check_structure(body)
    except Malformed:
        return False
    return True


@given(st.lists(PIECES, max_size=8).map(b"".join))
@example(b'"k":1,"k":')
@example(b"\\")
@example(b"1," + PADDING + b":1," + PADDING + b":")
@settings(max_examples=150, deadline=None)
def test_whatever_stands_beside_a_long_text_is_judged_as_without_leaving_it_out(middle: bytes) -> None:
    """Of pieces that make and break JSON, also inside and behind long texts."""
    body = b'{"a":[' + PADDING + b"," + middle + PADDING + b"]}"
    assert _is_taken(body) == _is_good(body)


def test_a_megabyte_of_one_text_leaves_next_to_nothing() -> None:
    """What is decoded for its structure does not grow with a prompt."""
    prompt = json.dumps('say "so" and \\ then go\n' * 40).encode()
    body = b'{"messages":[{"content":' + prompt[:-1] + b"x" * 1_048_576 + b'"}]}'
    assert _data(body) == b'{"messages":[{"content":"\\u00000000000"}]}'


@pytest.mark.parametrize("bad", [b"\\x", b"\x01", b"\xff", b"\\ud800\\u0041" + b"\xc3"])
def test_a_long_text_that_is_no_good_is_found(bad: bytes) -> None:
    """Left out is only what was looked at."""
    body = b'{"a":"' + b"x" * LONG_BODY_BYTES + bad + b'"}'
    assert leave_texts_out(body) is None
    with pytest.raises(Malformed):
        check_structure(body)


def test_long_keys_stay() -> None:
    """Two long keys that are alike are one key twice."""
    key = b'"' + b"k" * LONG_BODY_BYTES + b'"'
    with pytest.raises(Malformed, match="twice"):
        check_structure(b"{" + key + b" :1," + key + b":2}")
    check_structure(b"{" + key + b":1," + key[:-1] + b'k":2}')


def test_what_has_too_many_quotes_is_left_whole() -> None:
    """Looking has an end."""
    long = b'"' + b"x" * BYTES_PER_QUOTE * MOST_QUOTES * 2 + b'"'
    few = MOST_QUOTES - 2
    assert _data(b"[" + long + b',""' * (few // 2) + b"]") == b'["\\u00000000000"' + b',""' * (few // 2) + b"]"
    assert leave_texts_out(b"[" + long + b',""' * (few // 2 + 1) + b"]") is None
    assert leave_texts_out(b"[" + long[:-1] + b'\\"' * (few + 1) + b'"]') is None
    assert leave_texts_out(b'["' + b"\\" * 100_000 + b'"]') is None


def test_what_is_mostly_short_strings_is_left_whole() -> None:
    """Nothing is gained by jumping through messages and tools, each of a few short strings."""
    short = b',"' + b"s" * 30 + b'"'
    assert leave_texts_out(b"[" + PADDING + short * (len(PADDING) // BYTES_PER_QUOTE) + b"]") is None
    assert leave_texts_out(b"[" + b"1," * LONG_BODY_BYTES + b'"k"]') is None


def test_bytes_are_counted_no_further_than_asked() -> None:
    """More than so many, or not."""
    assert has_more_than(b"a\nb\nc\n", b"\n", 2)
    assert not has_more_than(b"a\nb\nc\n", b"\n", 3)
    assert not has_more_than(b"", b"\n", 0)
