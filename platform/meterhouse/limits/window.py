"""When a limit counts: UTC calendar periods, and the sliding window of a rate.

Integers and Unix milliseconds only. A period decides which part of the ledger a quota or budget counts; a window
decides how much of a rate is used at a moment. Not here: amounts' units, and who is refused.
"""

from calendar import timegm
from datetime import UTC, datetime

from meterhouse.metering import Limit, Period, Window

DAY_MS = 86_400_000
MONTHS_PER_YEAR = 12


def period_of(limit: Limit, at_ms: int) -> Period:
    """Return the period of a quota or budget that a moment (Unix ms) lies in; ``total`` is unbounded."""
    if limit.window is Window.DAY:
        start_ms = at_ms - at_ms % DAY_MS
        return Period(limit, start_ms, start_ms + DAY_MS)
    if limit.window is Window.MONTH:
        moment = datetime.fromtimestamp(at_ms // 1000, UTC)
        year, month = moment.year, moment.month
        after = (year + 1, 1) if month == MONTHS_PER_YEAR else (year, month + 1)
        return Period(limit, _month_start_ms(year, month), _month_start_ms(*after))
    return Period(limit, None, None)


class RateCounter:
    """A sliding-window counter: the current window, and the previous one weighted by its remaining share, rounded up.

    A clock that goes back is taken to stand still at the start of the current window.
    """

    __slots__ = ("current", "index", "previous", "window_ms")

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self.index = 0
        """The number of the current window since the epoch."""
        self.current = 0
        self.previous = 0

    def used(self, now_ms: int) -> int:
        """Return how much is used now, in the limit's unit."""
        elapsed_ms = self._turn(now_ms)
        if not self.previous:
            return self.current
        window_ms = self.window_ms
        return self.current - (-self.previous * (window_ms - elapsed_ms) // window_ms)

    def add(self, amount: int, now_ms: int) -> int:
        """Count an amount in the current window; returns that window's number for ``correct``."""
        self._turn(now_ms)
        self.current += amount
        return self.index

    def correct(self, index: int, difference: int, now_ms: int) -> None:
        """Debit (> 0) or give back (< 0) in the window where the amount was counted.

        If that window no longer counts, nothing can be given back, and a debit falls on the current window: what was
        used is debited somewhere, however long the answer took.
        """
        self._turn(now_ms)
        if index == self.index or (difference > 0 and index < self.index - 1):
            self.current += difference
        elif index == self.index - 1:
            self.previous += difference

    def wait_ms(self, amount: int, demanded: int, now_ms: int) -> int:
        """Return how long until ``demanded`` fits under ``amount`` if nothing else is counted; exact.

        ``demanded`` must not exceed ``amount``: that would never fit.
        """
        elapsed_ms = self._turn(now_ms)
        window_ms = self.window_ms
        room = amount - demanded - self.current
        if room >= 0:
            if self.previous <= room:
                return 0
            fits_at_ms = window_ms - room * window_ms // self.previous
            return max(0, fits_at_ms - elapsed_ms)
        later_room = amount - demanded
        fits_at_ms = window_ms - later_room * window_ms // self.current
        return window_ms - elapsed_ms + fits_at_ms

    def full_at_ms(self, now_ms: int) -> int:
        """Return when the whole limit is free again if nothing else is counted."""
        self._turn(now_ms)
        if self.current:
            return (self.index + 2) * self.window_ms
        if self.previous:
            return (self.index + 1) * self.window_ms
        return now_ms

    def is_idle(self, now_ms: int) -> bool:
        """Whether nothing that was counted matters any more."""
        return now_ms // self.window_ms >= self.index + 2

    def _turn(self, now_ms: int) -> int:
        """Move on to the window of now; returns the milliseconds since it began."""
        window_ms = self.window_ms
        index = now_ms // window_ms
        if index < self.index:
            return 0
        if index > self.index:
            self.previous = self.current if index == self.index + 1 else 0
            self.current = 0
            self.index = index
        return now_ms - index * window_ms


def _month_start_ms(year: int, month: int) -> int:
    return timegm((year, month, 1, 0, 0, 0)) * 1000
