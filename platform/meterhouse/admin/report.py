"""What the organization used and what it costs, in OpenAI's shapes (wire.md 1.12).

Every figure is an integer of the ledger's; dollars are written as the exact decimal of the nanos that they are. Who may
see what is not here (``admin.usage``), nor where a bucket begins (``admin.span``).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from meterhouse.admin.span import Span
from meterhouse.db.reports import AdjustmentSums, BucketSums, Group, Report, ReportQuery, ReportStore
from meterhouse.errors import Malformed
from meterhouse.money import Meterable, format_usd

ANSWERED = ("completed", "client_gone")
"""Outcomes of requests whose answer came whole."""


@dataclass(frozen=True, slots=True)
class Plain:
    """One of OpenAI's reports that counts requests and one quantity."""

    operations: tuple[str, ...]
    """What the ledger calls what is counted here."""
    quantity: str
    """OpenAI's word for it."""
    measure: str | None = None
    """What it is in the ledger; None: the ledger does not have it, and unknown is not zero."""
    is_of_answers: bool = False
    """The quantity is that of requests whose answer came whole."""


PLAIN_REPORTS: Mapping[str, Plain] = MappingProxyType(
    {
        "embeddings": Plain(("embeddings",), "input_tokens", "input_tokens"),
        "moderations": Plain(("moderations",), "input_tokens", "input_tokens"),
        # One image for each answer: how many a request asked for is not in the ledger.
        "images": Plain(("images",), "images", "requests", is_of_answers=True),
        "audio_speeches": Plain(("audio_speeches",), "characters"),
        "audio_transcriptions": Plain(("audio_transcriptions", "audio_translations"), "seconds"),
    }
)
"""By the last word of their paths and of what they return."""
NO_COMPLETIONS = ("count_tokens", *(name for plain in PLAIN_REPORTS.values() for name in plain.operations))
"""Operations that are counted elsewhere, or in which nothing is generated."""
ADJUSTMENT_ITEM = "adjustment"
"""The line item of credits and later charges."""
UNLABELED = "unlabeled"
IMAGE_SOURCE = "image.generation"
"""The one way to an image that there is here."""
MS = 1_000

COLUMNS: dict[str, Group] = {
    "project_id": "project_id",
    "api_key_id": "key_id",
    "model": "model",
    "service_tier": "service_tier",
}
"""The ledger's columns of what can be grouped by; the other words of OpenAI's are the same for every request here."""
CONSTANTS: dict[str, object] = {"batch": False, "api_source": UNLABELED, "source": IMAGE_SOURCE}
GROUP_NAMES = ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source")
PLAIN_GROUP_NAMES = ("project_id", "user_id", "api_key_id", "model")
IMAGES_GROUP_NAMES = (*PLAIN_GROUP_NAMES, "size", "source")
COSTS_GROUP_NAMES = ("project_id", "user_id", "line_item", "api_key_id", "api_source")

TOKENS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
)
USAGE_MEASURES = ("requests", *TOKENS)
LINE_NAMES = {
    Meterable.INPUT: "input_tokens",
    Meterable.CACHED_INPUT: "cached_input_tokens",
    Meterable.CACHE_WRITE: "cache_write_tokens",
    Meterable.OUTPUT: "output_tokens",
    Meterable.INPUT_AUDIO: "input_audio_tokens",
    Meterable.OUTPUT_AUDIO: "output_audio_tokens",
    Meterable.REQUEST: "requests",
}
"""A line item is a model and one of these: `gpt-5.5, input_tokens`."""
COST_MEASURES = ("requests", *TOKENS, *(f"{kind.value}_nanos" for kind in LINE_NAMES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Whose usage is asked for, grouped by what; an empty filter lets everything through."""

    span: Span
    organization_id: str | None
    group_by: Sequence[str] = ()
    project_ids: Sequence[str] = ()
    api_key_ids: Sequence[str] = ()
    models: Sequence[str] = ()
    line_items: Sequence[str] = ()
    is_nothing: bool = False
    """A filter asks for what there is not here: a user, a batch."""

    @property
    def only(self) -> dict[Group, Sequence[str]]:
        """Return the filters by the ledger's columns."""
        given: dict[Group, Sequence[str]] = {
            "project_id": self.project_ids,
            "key_id": self.api_key_ids,
            "model": self.models,
        }
        return {name: values for name, values in given.items() if values}


Results = Mapping[int, Sequence[Mapping[str, object]]]
Shape = Callable[[Wanted, Report], Results]


async def report_completions(store: ReportStore, wanted: Wanted) -> bytes:
    """Return a page of everything that was generated."""
    query = _query(wanted, USAGE_MEASURES, _columns(wanted.group_by))
    return await _report(store, wanted, replace(query, never={"operation": NO_COMPLETIONS}), _shape_completions)


async def report_plain(store: ReportStore, wanted: Wanted, name: str) -> bytes:
    """Return a page of one of ``PLAIN_REPORTS``."""
    plain = PLAIN_REPORTS[name]
    measures = ("requests", *([plain.measure] if plain.measure else []))
    groups = (*_columns(wanted.group_by), *(("outcome",) if plain.is_of_answers else ()))
    query = _query(wanted, measures, groups)
    query = replace(query, only={**query.only, "operation": plain.operations})
    return await _report(store, wanted, query, partial(_shape_plain, name))


async def report_costs(store: ReportStore, wanted: Wanted) -> bytes:
    """Return a page of charges, credits and corrections included."""
    has_lines = "line_item" in wanted.group_by or bool(wanted.line_items)
    columns = _columns(wanted.group_by)
    if has_lines:
        query = _query(wanted, COST_MEASURES, (*columns, "model"))
        return await _report(store, wanted, query, _shape_lines)
    return await _report(store, wanted, _query(wanted, ("charge_nanos",), columns), _shape_costs)


def _columns(words: Sequence[str]) -> tuple[Group, ...]:
    return tuple(COLUMNS[word] for word in words if word in COLUMNS)


def _query(wanted: Wanted, measures: Sequence[str], group_by: Sequence[Group]) -> ReportQuery:
    span = wanted.span
    return ReportQuery(
        start_ms=span.start * MS,
        end_ms=span.behind * MS,
        width_ms=span.width * MS,
        measures=measures,
        group_by=group_by,
        organization_id=wanted.organization_id,
        only=wanted.only,
    )


async def _report(store: ReportStore, wanted: Wanted, query: ReportQuery, shape: Shape) -> bytes:
    """Read a page and write it; a page of too many rows gets fewer buckets, and the next page begins there."""
    if wanted.is_nothing:
        return _write(wanted.span, {})
    has_adjustments = shape in {_shape_costs, _shape_lines}
    while True:
        report = await store.read(query, has_adjustments=has_adjustments)
        if report.rows is not None:
            return _write(wanted.span, shape(wanted, report))
        count = len(wanted.span.buckets())
        if count == 1:
            raise Malformed(
                "This groups a single bucket into more rows than an answer holds. Group by less, or filter.",
                param="group_by",
            )
        wanted = replace(wanted, span=replace(wanted.span, count=count // 2))
        query = replace(query, end_ms=wanted.span.behind * MS)


def _write(span: Span, results: Results) -> bytes:
    buckets = [
        {
            "object": "bucket",
            "start_time": start,
            "end_time": end,
            "results": results.get(start // span.width * span.width * MS, ()),
        }
        for start, end in span.buckets()
    ]
    next_page = span.next_page
    page = {"object": "page", "data": buckets, "has_more": next_page is not None, "next_page": next_page}
    return msgspec.json.encode(page)


def _labels(wanted: Wanted, names: Iterable[str], group: Sequence[str | None]) -> dict[str, object]:
    """Return what a result is about: null for every name that was not grouped by."""
    columns = dict(zip(_columns(wanted.group_by), group, strict=False))
    labels: dict[str, object] = dict.fromkeys(names)
    for word in wanted.group_by:
        column = COLUMNS.get(word)
        labels[word] = CONSTANTS.get(word) if column is None else columns.get(column) or None
    return labels


def _shape_completions(wanted: Wanted, report: Report) -> Results:
    results = defaultdict(list)
    for row in report.rows or ():
        count = dict(zip(USAGE_MEASURES, row.sums, strict=True))
        special = count["cached_input_tokens"] + count["cache_write_tokens"]
        uncached = max(0, count["input_tokens"] - special)
        results[row.bucket_ms].append(
            {
                "object": "organization.usage.completions.result",
                "input_tokens": count["input_tokens"],
                "output_tokens": count["output_tokens"],
                "num_model_requests": count["requests"],
                "input_cached_tokens": count["cached_input_tokens"],
                "input_cache_write_tokens": count["cache_write_tokens"],
                "input_uncached_tokens": uncached,
                "input_text_tokens": max(0, uncached - count["input_audio_tokens"]),
                "output_text_tokens": max(0, count["output_tokens"] - count["output_audio_tokens"]),
                "input_audio_tokens": count["input_audio_tokens"],
                "output_audio_tokens": count["output_audio_tokens"],
                **_labels(wanted, GROUP_NAMES, row.group),
            }
        )
    return results


def _shape_plain(name: str, wanted: Wanted, report: Report) -> Results:
    plain = PLAIN_REPORTS[name]
    counts: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for row in report.rows or ():
        requests, *quantity = row.sums
        group, counted = row.group, sum(quantity)
        if plain.is_of_answers:
            *group_words, outcome = row.group
            group, counted = tuple(group_words), counted if outcome in ANSWERED else 0
        count = counts.setdefault((row.bucket_ms, group), [0, 0])
        count[0] += requests
        count[1] += counted
    names = IMAGES_GROUP_NAMES if name == "images" else PLAIN_GROUP_NAMES
    results = defaultdict(list)
    for (bucket_ms, group), (requests, counted) in counts.items():
        results[bucket_ms].append(
            {
                "object": f"organization.usage.{name}.result",
                plain.quantity: None if plain.measure is None else counted,
                "num_model_requests": requests,
                **_labels(wanted, names, group),
            }
        )
    return results


@dataclass(slots=True)
class _Line:
    """What one result of costs adds up to."""

    nanos: int = 0
    quantity: int | None = None
    unit: str | None = None


def _shape_costs(wanted: Wanted, report: Report) -> Results:
    lines: dict[tuple[int, tuple[str | None, ...]], _Line] = {}
    for row in report.rows or ():
        lines.setdefault((row.bucket_ms, row.group), _Line()).nanos += row.sums[0]
    for one in report.adjustments:
        lines.setdefault((one.bucket_ms, _group_of(wanted, one)), _Line()).nanos += one.nanos
    return _costs(wanted, {(bucket, (*group, None)): line for (bucket, group), line in lines.items()})


def _shape_lines(wanted: Wanted, report: Report) -> Results:
    lines: dict[tuple[int, tuple[str | None, ...]], _Line] = {}

    def take(bucket_ms: int, group: Sequence[str | None], item: str) -> _Line | None:
        if wanted.line_items and item not in wanted.line_items:
            return None
        shown = item if "line_item" in wanted.group_by else None
        return lines.setdefault((bucket_ms, (*group, shown)), _Line())

    for row in report.rows or ():
        *group, model = row.group
        for name, nanos, quantity in _items(row):
            is_shown = nanos or (quantity and name != LINE_NAMES[Meterable.REQUEST])
            line = take(row.bucket_ms, group, f"{model}, {name}") if is_shown else None
            if line is not None:
                line.nanos += nanos
                line.quantity = (line.quantity or 0) + quantity
                line.unit = None if name == LINE_NAMES[Meterable.REQUEST] else "tokens"
    for one in report.adjustments:
        line = take(one.bucket_ms, _group_of(wanted, one), ADJUSTMENT_ITEM)
        if line is not None:
            line.nanos += one.nanos
    return _costs(wanted, lines)


def _items(row: BucketSums) -> Iterable[tuple[str, int, int]]:
    """Give the name, the charge and the quantity of each component of a price."""
    count = dict(zip(COST_MEASURES, row.sums, strict=True))
    special = count["cached_input_tokens"] + count["cache_write_tokens"] + count["input_audio_tokens"]
    plain = {
        "input_tokens": max(0, count["input_tokens"] - special),
        "output_tokens": max(0, count["output_tokens"] - count["output_audio_tokens"]),
    }
    for kind, name in LINE_NAMES.items():
        yield name, count[f"{kind.value}_nanos"], plain.get(name, count[name])


def list_cost_items(report: Report) -> Iterable[tuple[int, tuple[str, ...], str, int]]:
    """Give bucket, group, line item and nanos of everything that costs, from ``COST_MEASURES`` by group and model.

    The groups have to be organization, project and key; an adjustment that names no key has an empty one.
    """
    for row in report.rows or ():
        *group, model = row.group
        for name, nanos, _ in _items(row):
            if nanos:
                yield row.bucket_ms, tuple(group), f"{model}, {name}", nanos
    for one in report.adjustments:
        yield one.bucket_ms, (one.organization_id, one.project_id, one.root_key_id or ""), ADJUSTMENT_ITEM, one.nanos


def _group_of(wanted: Wanted, one: AdjustmentSums) -> tuple[str | None, ...]:
    values = {"project_id": one.project_id, "key_id": one.root_key_id}
    return tuple(values.get(column) for column in _columns(wanted.group_by))


def _costs(wanted: Wanted, lines: Mapping[tuple[int, tuple[str | None, ...]], _Line]) -> Results:
    results: dict[int, list[dict[str, Any]]] = defaultdict(list)
    labels: dict[tuple[str | None, ...], dict[str, object]] = {}  # the same in every bucket
    for (bucket_ms, place), line in sorted(lines.items(), key=_order):
        item = place[-1]
        if place not in labels:
            labels[place] = {**_labels(wanted, COSTS_GROUP_NAMES, place[:-1]), "line_item": item}
        has_quantity = item is not None and line.quantity is not None
        results[bucket_ms].append(
            {
                "object": "organization.costs.result",
                # A number of JSON with as many digits as it takes: a float would lose some.
                "amount": {"value": msgspec.Raw(format_usd(line.nanos).encode()), "currency": "usd"},
                "quantity": line.quantity if has_quantity else None,
                "quantity_unit": line.unit if has_quantity else None,
                **labels[place],
            }
        )
    return results


def _order(item: tuple[tuple[int, tuple[str | None, ...]], _Line]) -> tuple[int, tuple[str, ...]]:
    (bucket_ms, group), _ = item
    return bucket_ms, tuple(value or "" for value in group)
