"""`GET /admin/breakdown`: what a span adds up to, for each model, project, key or provider, with how long it took.

Percentiles come from the histograms of the hourly projection, so that those of a month cost as little as those of a
day; what is left over at the two ends of a span is read from the records. Not here: how it went over time
(``admin.series``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.pages import Text
from meterhouse.admin.series import COLUMNS, MOST_LINES, By, Names
from meterhouse.admin.span import SpanRequest, read_span
from meterhouse.admin.usage import UsageParts
from meterhouse.db.reports import BucketSums, Group, ReportQuery
from meterhouse.db.tables import (
    DURATION_BOUNDS_MS,
    DURATION_COLUMNS,
    FIRST_TOKEN_BOUNDS_MS,
    FIRST_TOKEN_COLUMNS,
    HOUR_MS,
)
from meterhouse.errors import Malformed, NotFound

MS = 1_000
LINES = 20
WHOLE_SPAN_MS = 100_000_000 * HOUR_MS
"""A bucket that holds every moment up to the year 9999, and is made of whole hours."""
COUNTS = ("requests", "attempts", "input_tokens", "cached_input_tokens", "output_tokens", "charge_nanos")
MEASURES = (*COUNTS, *FIRST_TOKEN_COLUMNS, *DURATION_COLUMNS)
_FIRST_TOKEN_AT = len(COUNTS)
_DURATION_AT = _FIRST_TOKEN_AT + len(FIRST_TOKEN_COLUMNS)


class BreakdownParams(BaseModel):
    """What to add up."""

    model_config = ConfigDict(extra="forbid")

    start_time: int = Field(description="Unix seconds; at a whole hour the records need not be read")
    end_time: int | None = Field(None, description="Unix seconds; without it: now")
    by: By | None = Field(None, description="A line for each, beside the one of everything")
    organization_id: Text | None = None
    project_ids: Names
    key_ids: Names
    models: Names
    top: int = Field(LINES, ge=1, le=MOST_LINES, description="Most lines; those with the most money come first")


class Spread(BaseModel):
    """How long something took, read from a histogram: a value lies somewhere in its bucket."""

    count: int
    p50_ms: int | None = Field(
        description="Half took at most so long; the last bound of the histogram means: or longer"
    )
    p95_ms: int | None


class ErrorsByOwner(BaseModel):
    """Attempts that failed, and requests that were turned away, by who owns the error."""

    caller: int = 0
    limit: int = 0
    provider: int = 0
    us: int = 0


class BreakdownLine(BaseModel):
    """What one model, project, key, ... adds up to."""

    name: str | None = Field(description="Null for everything")
    requests: int
    refused: int = Field(description="Requests that were turned away in the hours that the span touches: about so many")
    attempts: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    charge_nanos: int
    errors: ErrorsByOwner
    first_token: Spread
    duration: Spread


class Breakdown(BaseModel):
    """A span, added up."""

    object: str = "breakdown"
    start_time: int
    end_time: int
    by: By | None
    total: BreakdownLine
    lines: list[BreakdownLine]
    more_lines: int = Field(description="How many there are besides these")


def add_breakdown(router: APIRouter, parts: UsageParts) -> None:
    """Add the route."""

    @router.get("/breakdown", summary="Usage, money, errors by owner and percentiles of latency over a span")
    async def get_breakdown(author: SignedIn, params: Annotated[BreakdownParams, Query()]) -> Breakdown:
        asked = params.organization_id
        if asked is not None and not author.actor.may_see(asked):
            raise NotFound("There is no such organization, or this credential is not bound to it.")
        return await read_breakdown(parts, params, author.actor.organization_id or asked)


async def read_breakdown(parts: UsageParts, params: BreakdownParams, organization_id: str | None) -> Breakdown:
    """Add up a span of an organization, or of all.

    Raises:
        Malformed: It cannot be read, or is more than an answer holds.
    """
    request = SpanRequest(start_time=params.start_time, end_time=params.end_time, width="1h", limit=None, page=None)
    span = read_span(request, parts.clock.now_ms() // MS)
    filters: dict[Group, Sequence[str]] = {
        "project_id": params.project_ids,
        "key_id": params.key_ids,
        "model": params.models,
    }
    query = ReportQuery(
        start_ms=span.start * MS,
        end_ms=span.end * MS,
        width_ms=WHOLE_SPAN_MS,
        measures=MEASURES,
        group_by=("error_owner",) if params.by is None else ("error_owner", COLUMNS[params.by]),
        organization_id=organization_id,
        only={name: values for name, values in filters.items() if values},
    )
    rows = (await parts.reports.read(query)).rows
    refused = await parts.refusals.read(query)
    # One reading for lines and total, so that they agree while more is refused; a second one for what no line can have.
    everybodys = (
        refused
        if parts.refusals.can_group_by(query.group_by)
        else await parts.refusals.read(replace(query, group_by=("error_owner",)))
    )
    if rows is None or refused is None or everybodys is None:
        raise Malformed("This is more lines than an answer holds. Filter, or ask by something of which there is less.")
    lines = [] if params.by is None else _lines(rows, refused)
    return Breakdown(
        start_time=span.start,
        end_time=span.end,
        by=params.by,
        total=_line(None, rows, everybodys),
        lines=lines[: params.top],
        more_lines=max(0, len(lines) - params.top),
    )


def _lines(rows: Iterable[BucketSums], refused: Iterable[BucketSums]) -> list[BreakdownLine]:
    named: dict[str, tuple[list[BucketSums], list[BucketSums]]] = {}
    for place, found in enumerate((rows, refused)):
        for row in found:
            named.setdefault(row.group[-1], ([], []))[place].append(row)
    lines = [_line(name, *mine) for name, mine in named.items()]
    return sorted(lines, key=lambda line: (-line.charge_nanos, -line.requests, line.name or ""))


def _line(name: str | None, rows: Sequence[BucketSums], refused: Sequence[BucketSums]) -> BreakdownLine:
    sums = [sum(column) for column in zip(*(row.sums for row in rows), strict=True)] or [0] * len(MEASURES)
    owners: dict[str, int] = {}
    for row in rows:
        # Each record is in one bucket of the histogram of durations.
        owners[row.group[0]] = owners.get(row.group[0], 0) + sum(row.sums[_DURATION_AT:])
    for row in refused:
        owners[row.group[0]] = owners.get(row.group[0], 0) + sum(row.sums)
    return BreakdownLine(
        name=name,
        **dict(zip(COUNTS, sums, strict=False)),
        refused=sum(sum(row.sums) for row in refused),
        errors=_errors(owners),
        first_token=_spread(sums[_FIRST_TOKEN_AT:_DURATION_AT], FIRST_TOKEN_BOUNDS_MS),
        duration=_spread(sums[_DURATION_AT:], DURATION_BOUNDS_MS),
    )


def _errors(owners: Mapping[str, int]) -> ErrorsByOwner:
    return ErrorsByOwner(**{owner: count for owner, count in owners.items() if owner in ErrorsByOwner.model_fields})


def _spread(counts: Sequence[int], bounds: Sequence[int]) -> Spread:
    return Spread(
        count=sum(counts), p50_ms=find_percentile(counts, bounds, 50), p95_ms=find_percentile(counts, bounds, 95)
    )


def find_percentile(counts: Sequence[int], bounds: Sequence[int], percent: int) -> int | None:
    """Return the value that so many of a hundred do not exceed, as if values lay evenly in their bucket.

    Args:
        counts: of each bucket; the last one has everything above the last bound.
        bounds: where each bucket but the last one ends.
        percent: from 1 to 100.

    Returns:
        None where nothing was counted; the last bound where it is that, or more.
    """
    wanted = sum(counts) * percent / 100
    if not wanted:
        return None
    ends = list(accumulate(counts))
    place = next(i for i, end in enumerate(ends) if end >= wanted and counts[i])
    if place == len(bounds):
        return bounds[-1]
    start = bounds[place - 1] if place else 0
    part = (wanted - (ends[place] - counts[place])) / counts[place]
    return round(start + part * (bounds[place] - start))
