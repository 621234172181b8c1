"""Percentiles from a histogram lie in the bucket in which the true one lies."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.admin.breakdown import find_percentile
from meterhouse.db.tables import FIRST_TOKEN_BOUNDS_MS

BOUNDS = (10, 20, 50)


@pytest.mark.parametrize(
    ("counts", "percent", "value"),
    [
        ([0, 0, 0, 0], 50, None),
        ([1, 0, 0, 0], 50, 5),
        ([2, 0, 0, 0], 50, 5),
        ([1, 1, 0, 0], 50, 10),
        ([0, 0, 4, 0], 95, 48),
        ([0, 0, 0, 3], 50, 50),
        ([94, 0, 0, 6], 95, 50),
        ([96, 0, 0, 4], 95, 10),
    ],
)
def test_values_lie_evenly_in_their_bucket(counts: list[int], percent: int, value: int | None) -> None:
    assert find_percentile(counts, BOUNDS, percent) == value


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200), st.integers(1, 100))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(times: list[int], percent: int) -> None:
    bounds = FIRST_TOKEN_BOUNDS_MS
    counts = [0] * (len(bounds) + 1)
    for time in times:
        counts[bisect_left(bounds, time)] += 1
    found = find_percentile(counts, bounds, percent)
    true = sorted(times)[-(-len(times) * percent // 100) - 1]
    place = bisect_left(bounds, true)
    assert found is not None
    assert (bounds[place - 1] if place else 0) <= found <= bounds[min(place, len(bounds) - 1)]
