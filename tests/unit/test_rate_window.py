"""The sliding window of a rate, against the same arithmetic done with fractions and by trying every millisecond."""

from fractions import Fraction
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from meterhouse.limits.window import RateCounter, period_of
from meterhouse.metering import Kind, Limit, Scope, Window

WINDOW_MS = 50


def make_counter(previous: int, current: int) -> RateCounter:
    counter = RateCounter(WINDOW_MS)
    counter.add(previous, 10 * WINDOW_MS)
    counter.add(current, 11 * WINDOW_MS)
    return counter


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3 * WINDOW_MS))
def test_the_previous_window_counts_with_its_remaining_share_rounded_up(
    previous: int, current: int, elapsed_ms: int
) -> None:
    counter = make_counter(previous, current)
    windows, inside_ms = divmod(elapsed_ms, WINDOW_MS)
    before, now = [(previous, current), (current, 0), (0, 0), (0, 0)][windows]
    share = Fraction(WINDOW_MS - inside_ms, WINDOW_MS)
    assert counter.used(11 * WINDOW_MS + elapsed_ms) == now + ceil(before * share)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, WINDOW_MS - 1), st.integers(1, 30), st.integers(0, 30))
def test_the_wait_is_the_first_millisecond_at_which_the_demand_fits(
    previous: int, current: int, elapsed_ms: int, demanded: int, spare: int
) -> None:
    amount = demanded + spare
    start_ms = 11 * WINDOW_MS + elapsed_ms
    tried = make_counter(previous, current)
    expected = next(wait for wait in range(3 * WINDOW_MS) if tried.used(start_ms + wait) + demanded <= amount)
    assert make_counter(previous, current).wait_ms(amount, demanded, start_ms) == expected


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3 * WINDOW_MS))
def test_full_again_is_when_nothing_is_used(previous: int, current: int, elapsed_ms: int) -> None:
    now_ms = 11 * WINDOW_MS + elapsed_ms
    full_at_ms = make_counter(previous, current).full_at_ms(now_ms)
    assert make_counter(previous, current).used(full_at_ms) == 0
    assert full_at_ms == now_ms or make_counter(previous, current).used(full_at_ms - 1) > 0


def test_a_correction_lands_where_the_amount_was_counted() -> None:
    counter = RateCounter(WINDOW_MS)
    index = counter.add(10, 0)
    counter.correct(index, -4, WINDOW_MS - 1)
    assert (counter.previous, counter.current) == (0, 6)
    counter.correct(index, -2, WINDOW_MS)
    counter.correct(index, 1, WINDOW_MS)
    assert (counter.previous, counter.current) == (5, 0)


def test_after_both_windows_nothing_is_given_back_and_a_debit_falls_on_now() -> None:
    counter = RateCounter(WINDOW_MS)
    index = counter.add(10, 0)
    counter.correct(index, -4, 2 * WINDOW_MS)
    assert counter.used(2 * WINDOW_MS) == 0
    counter.correct(index, 3, 2 * WINDOW_MS)
    assert counter.used(2 * WINDOW_MS) == 3


def test_a_clock_that_goes_back_frees_nothing() -> None:
    counter = make_counter(7, 5)
    assert counter.used(9 * WINDOW_MS) == 12
    counter.add(1, 9 * WINDOW_MS)
    assert counter.used(11 * WINDOW_MS) == 13


def test_a_counter_is_idle_after_two_windows() -> None:
    counter = RateCounter(WINDOW_MS)
    counter.add(1, 0)
    assert [counter.is_idle(ms) for ms in (0, WINDOW_MS, 2 * WINDOW_MS - 1, 2 * WINDOW_MS)] == [False] * 3 + [True]


def test_periods_are_those_of_the_utc_calendar() -> None:
    def bounds(window: Window, at_ms: int) -> tuple[int | None, int | None]:
        period = period_of(Limit(Scope.KEY, "key_1", Kind.SPEND, window, 1), at_ms)
        return period.start_ms, period.end_ms

    new_year_ms, leap_day_ms, march_ms = 1_704_067_200_000, 1_709_164_800_000, 1_709_251_200_000  # 2024
    assert bounds(Window.MONTH, new_year_ms - 1) == (1_701_388_800_000, new_year_ms)
    assert bounds(Window.MONTH, new_year_ms) == (new_year_ms, 1_706_745_600_000)
    assert bounds(Window.MONTH, march_ms - 1) == (1_706_745_600_000, march_ms)
    assert bounds(Window.DAY, leap_day_ms + 5) == (leap_day_ms, march_ms)
    assert bounds(Window.TOTAL, new_year_ms) == (None, None)
