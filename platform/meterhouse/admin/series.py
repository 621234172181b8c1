"""`GET /admin/series`: lines to plot, from the hourly projection: requests, tokens, money and errors over time.

An owner or a reader sees its own organization; an operator one, or everybody. The lines with the most money come first,
and what is left over is added up in one more. Not here: exact reports (``admin.usage``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.pages import MOST_WORDS, Text
from meterhouse.admin.span import SECONDS, SpanRequest, Width, read_span
from meterhouse.admin.usage import UsageParts
from meterhouse.db.reports import RECORDS, BucketSums, Group, ReportQuery
from meterhouse.errors import Malformed, NotFound

MS = 1_000
MOST_POINTS: dict[Width, int] = {"1m": 1_440, "1h": 768, "1d": 400}
MOST_LINES, LINES = 100, 20

By = Literal["organization", "project", "key", "model", "provider", "operation", "outcome", "owner"]
COLUMNS: dict[By, Group] = {
    "organization": "organization_id",
    "project": "project_id",
    "key": "key_id",
    "model": "model",
    "provider": "provider",
    "operation": "operation",
    "outcome": "outcome",
    "owner": "error_owner",
}
MEASURES = ("requests", "input_tokens", "cached_input_tokens", "output_tokens", "charge_nanos")
Names = Annotated[list[Text], Field(default=[], max_length=MOST_WORDS)]
Line = list[list[int]]
"""A row of points for each measure, and the errors behind them."""


class SeriesParams(BaseModel):
    """What to plot."""

    model_config = ConfigDict(extra="forbid")

    start_time: int = Field(description="Unix seconds")
    end_time: int | None = Field(None, description="Unix seconds; without it: now")
    bucket_width: Width = "1h"
    by: By | None = Field(None, description="A line for each; `owner` is who owns an error, empty for none")
    organization_id: Text | None = None
    project_ids: Names
    key_ids: Names
    models: Names
    top: int = Field(LINES, ge=1, le=MOST_LINES, description="Most lines beside the one of what is left over")


class SeriesLine(BaseModel):
    """One line: a value for each of the ``times``."""

    name: str | None = Field(description="Null for everything, or for what is left over")
    requests: list[int]
    input_tokens: list[int]
    cached_input_tokens: list[int]
    output_tokens: list[int]
    charge_nanos: list[int]
    errors: list[int] = Field(
        description="Attempts that failed, and requests that were turned away: the latter but by minutes"
    )


class Series(BaseModel):
    """Lines over one span."""

    object: Literal["series"] = "series"
    start_time: int
    end_time: int
    bucket_width: Width
    by: By | None
    times: list[int] = Field(description="Where each bucket begins, in Unix seconds")
    lines: list[SeriesLine]


def add_series(router: APIRouter, parts: UsageParts) -> None:
    """Add the route."""

    @router.get("/series", summary="Requests, tokens, money and errors over time, to plot")
    async def get_series(author: SignedIn, params: Annotated[SeriesParams, Query()]) -> Series:
        asked = params.organization_id
        if asked is not None and not author.actor.may_see(asked):
            raise NotFound("There is no such organization, or this credential is not bound to it.")
        return await read_series(parts, params, author.actor.organization_id or asked)


async def read_series(parts: UsageParts, params: SeriesParams, organization_id: str | None) -> Series:
    """Read the lines of an organization, or of all.

    Raises:
        Malformed: They cannot be read, or are more than an answer holds.
    """
    width = params.bucket_width
    request = SpanRequest(
        start_time=params.start_time, end_time=params.end_time, width=width, limit=MOST_POINTS[width], page=None
    )
    span = read_span(request, parts.clock.now_ms() // MS, MOST_POINTS[width])
    if span.next_page is not None:
        raise Malformed(f"A plot has at most {MOST_POINTS[width]} buckets of '{width}'.", param="bucket_width")
    filters: dict[Group, Sequence[str]] = {
        "project_id": params.project_ids,
        "key_id": params.key_ids,
        "model": params.models,
    }
    query = ReportQuery(
        start_ms=span.start * MS,
        end_ms=span.end * MS,
        width_ms=SECONDS[width] * MS,
        measures=(*MEASURES, RECORDS),
        # Errors are the records that somebody owns.
        group_by=("error_owner",) if params.by is None else ("error_owner", COLUMNS[params.by]),
        organization_id=organization_id,
        only={name: values for name, values in filters.items() if values},
    )
    rows = (await parts.reports.read(query)).rows
    if rows is None:
        raise Malformed("This is more lines and points than an answer holds. Plot longer buckets.", param="by")
    refused = [] if width == "1m" else await parts.refusals.read(query)
    if refused is None:
        raise Malformed("This is more lines and points than an answer holds. Plot longer buckets.", param="by")
    times = [start for start, _ in span.buckets()]
    places = {start // SECONDS[width] * SECONDS[width] * MS: i for i, start in enumerate(times)}
    return Series(
        start_time=span.start,
        end_time=span.end,
        bucket_width=width,
        by=params.by,
        times=times,
        lines=_pick(_lines([*rows, *map(_as_errors, refused)], places, has_names=params.by is not None), params.top),
    )


def _lines(rows: Iterable[BucketSums], places: Mapping[int, int], *, has_names: bool) -> dict[str | None, Line]:
    lines: dict[str | None, Line] = {} if has_names else {None: _empty(len(places))}
    for row in rows:
        owner = row.group[0]
        line = lines.setdefault(row.group[-1] if has_names else None, _empty(len(places)))
        *sums, records = row.sums
        for points, value in zip(line, (*sums, records if owner else 0), strict=True):
            points[places[row.bucket_ms]] += value
    return lines


def _as_errors(refused: BucketSums) -> BucketSums:
    """Return refused requests as sums of records: nothing was used, and somebody owns the error."""
    return replace(refused, sums=(*[0] * len(MEASURES), *refused.sums))


def _pick(lines: Mapping[str | None, Line], top: int) -> list[SeriesLine]:
    """Order lines by money, then requests, and add up those behind the first ones."""
    order = sorted(lines, key=lambda name: (-sum(lines[name][4]), -sum(lines[name][0]), name or ""))
    shown = [(name, lines[name]) for name in order[:top]]
    rest = [lines[name] for name in order[top:]]
    if rest:
        shown.append(
            (None, [[sum(points) for points in zip(*measure, strict=True)] for measure in zip(*rest, strict=True)])
        )
    names = (*MEASURES, "errors")
    return [SeriesLine(name=name, **dict(zip(names, line, strict=True))) for name, line in shown]


def _empty(points: int) -> Line:
    return [[0] * points for _ in range(len(MEASURES) + 1)]
