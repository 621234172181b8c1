"""Buckets and cursors of reports."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.admin.span import MOST_BUCKETS, SECONDS, SpanRequest, read_span
from meterhouse.errors import Malformed

NOW = 1_790_000_123


def ask(start, end=None, width="1d", limit=None, page=None):
    return read_span(SpanRequest(start_time=start, end_time=end, width=width, limit=limit, page=page), NOW)


@given(
    start=st.integers(0, 2_000_000_000),
    length=st.integers(1, 400_000),
    width=st.sampled_from(sorted(SECONDS)),
    limit=st.integers(1, 31),
)
def test_the_pages_of_a_span_cover_it_once(start, length, width, limit):
    end = start + min(length, SECONDS[width] * 300)
    buckets, page = [], None
    while True:
        span = ask(start, end, width, limit, page)
        found = span.buckets()
        assert 1 <= len(found) <= limit
        buckets += found
        page = span.next_page
        if page is None:
            break
    assert buckets[0][0] == start
    assert buckets[-1][1] == end
    for (_, before), (after, _) in itertools.pairwise(buckets):
        assert before == after
        assert before % SECONDS[width] == 0


def test_without_an_end_a_span_ends_with_the_bucket_of_now():
    span = ask(NOW - 90_000, width="1h", limit=100)
    assert span.buckets()[-1] == (NOW // 3600 * 3600, NOW // 3600 * 3600 + 3600)
    assert span.next_page is None
    assert ask(NOW + 10**6).buckets() == []
    assert ask(NOW + 10**6).next_page is None


def test_a_cursor_keeps_the_end_that_the_first_page_had():
    first = ask(NOW - 90_000, width="1h", limit=2)
    later = read_span(
        SpanRequest(start_time=NOW - 90_000, end_time=None, width="1h", limit=100, page=first.next_page), NOW + 86_400
    )
    assert later.buckets()[0][0] == first.buckets()[-1][1]
    assert later.end == first.end


@pytest.mark.parametrize("width", sorted(SECONDS))
def test_a_limit_lies_within_what_the_width_allows(width):
    assert len(ask(0, 10**9, width, MOST_BUCKETS[width]).buckets()) == MOST_BUCKETS[width]
    for limit in (0, -1, MOST_BUCKETS[width] + 1):
        with pytest.raises(Malformed, match="'limit' lies from 1 to") as caught:
            ask(0, 10**9, width, limit)
        assert caught.value.param == "limit"


@pytest.mark.parametrize(
    ("start", "end", "param"),
    [
        (-1, None, "start_time"),
        (10**12, None, "start_time"),
        (5, 5, "end_time"),
        (5, 4, "end_time"),
        (5, 10**12, "end_time"),
    ],
)
def test_times_that_are_none_are_refused(start, end, param):
    with pytest.raises(Malformed) as caught:
        ask(start, end)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "page",
    [
        *("", "page_", "page_1_2", "nonsense", "page_15180_2a300x", "page_0_2a300", "page_2a300_2a300"),
        *("page_15181_2a300", "page_15180_2a301", "page_ffffffffff_ffffffffff", "page_15180_2a300\n"),
    ],
)
def test_a_cursor_of_another_query_is_refused(page):
    with pytest.raises(Malformed, match=re.escape("'next_page'")):
        ask(1, 0x2A300, page=page)
    assert ask(1, 0x2A300, page="page_15180_2a300").buckets() == [(0x15180, 0x2A300)]
