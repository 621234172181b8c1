"""The time span of a report: its buckets, how many fit on a page, and the cursor of the next one (wire.md 1.12).

Buckets begin at whole minutes, hours or days of UTC; the first and the last one are cut to the span that was asked for.
"""

import re
from dataclasses import dataclass
from typing import Literal

from meterhouse.errors import Malformed

Width = Literal["1m", "1h", "1d"]

SECONDS: dict[Width, int] = {"1m": 60, "1h": 3_600, "1d": 86_400}
DEFAULT_BUCKETS: dict[Width, int] = {"1m": 60, "1h": 24, "1d": 7}
MOST_BUCKETS: dict[Width, int] = {"1m": 1_440, "1h": 168, "1d": 31}
LAST_SECOND = 253_402_300_799
"""The end of the year 9999."""

_CURSOR = re.compile(r"page_([0-9a-f]{1,10})_([0-9a-f]{1,10})")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRequest:
    """What a caller asks for, in Unix seconds."""

    start_time: int
    end_time: int | None
    width: Width
    limit: int | None
    page: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """One page of buckets, in Unix seconds."""

    start: int
    end: int
    """Where the whole span ends, not this page."""
    width: int
    count: int
    """Most buckets on this page."""

    @property
    def behind(self) -> int:
        """Where this page ends."""
        return min(self.end, (self.start // self.width + self.count) * self.width)

    @property
    def next_page(self) -> str | None:
        """The cursor of the next page; None on the last one."""
        return f"page_{self.behind:x}_{self.end:x}" if self.start < self.end and self.behind < self.end else None

    def buckets(self) -> list[tuple[int, int]]:
        """Return where each bucket of this page begins and ends."""
        starts = range(self.start // self.width * self.width, self.behind, self.width)
        return [(max(at, self.start), min(at + self.width, self.end)) for at in starts if self.start < self.behind]


def read_span(request: SpanRequest, now_seconds: int, most: int | None = None, default: int | None = None) -> Span:
    """Check what was asked for and return the page.

    Args:
        request: as it was asked.
        now_seconds: the time; without an end the span ends with the bucket that it falls into.
        most: most buckets of a page, where it is not the usual number of the width.
        default: how many there are when nothing is said, likewise.

    Raises:
        Malformed: A value cannot be used; ``param`` names it.
    """
    width = SECONDS[request.width]
    most = most or MOST_BUCKETS[request.width]
    count = default or DEFAULT_BUCKETS[request.width]
    if request.limit is not None:
        if not 1 <= request.limit <= most:
            raise Malformed(f"'limit' lies from 1 to {most} with a bucket width of '{request.width}'.", param="limit")
        count = request.limit
    if not 0 <= request.start_time <= LAST_SECOND:
        raise Malformed("'start_time' is a time in Unix seconds.", param="start_time")
    end = (now_seconds // width + 1) * width if request.end_time is None else request.end_time
    if request.end_time is not None and not request.start_time < end <= LAST_SECOND:
        raise Malformed("'end_time' is a time in Unix seconds after 'start_time'.", param="end_time")
    start = request.start_time
    if request.page is not None:
        start, end = _read_cursor(request, end, width)
    return Span(start, max(start, end), width, count)


def _read_cursor(request: SpanRequest, end: int, width: int) -> tuple[int, int]:
    """Return where a page begins and its span ends, as the page before it said."""
    found = _CURSOR.fullmatch(request.page or "")
    if found is not None:
        at, last = (int(text, 16) for text in found.groups())
        is_end_good = last == end if request.end_time is not None else last <= end
        if request.start_time < at < last and at % width == 0 and is_end_good:
            return at, last
    raise Malformed(
        "'page' is the 'next_page' of an answer to the same query, and this is none. Begin again without it.",
        param="page",
    )
