"""Usage and costs against ground truth: records at every border, cut in every way, on SQLite and PostgreSQL."""

import itertools
import json
import random
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import msgspec
import pytest
from openai.types.admin.organization import (
    UsageCompletionsResponse,
    UsageCostsResponse,
    UsageEmbeddingsResponse,
    UsageImagesResponse,
    UsageModerationsResponse,
)

from fakes.house import PEPPERS
from fakes.ledger import record
from fakes.store import MovingClock
from meterhouse.admin.report import Wanted, report_completions, report_costs, report_plain
from meterhouse.admin.span import SpanRequest, read_span
from meterhouse.db.catalog import Catalog
from meterhouse.db.ledger import Adjustment, LedgerStore, UsageQuery
from meterhouse.db.records import RecordQuery, RecordStore
from meterhouse.db.reports import RECORDS, ReportQuery, ReportStore
from meterhouse.errors import Malformed
from meterhouse.ids import new_request_id
from meterhouse.keys.service import KeyOrder, KeyService
from meterhouse.usage import Outcome, Usage

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
WIDTHS = {"1m": MINUTE, "1h": HOUR, "1d": DAY}
report_embeddings, report_moderations, report_images = (
    partial(report_plain, name=name) for name in ("embeddings", "moderations", "images")
)
SDK = {
    report_completions: UsageCompletionsResponse,
    report_embeddings: UsageEmbeddingsResponse,
    report_moderations: UsageModerationsResponse,
    report_images: UsageImagesResponse,
}
OPERATIONS = ("chat", "chat", "text_completion", "embeddings", "count_tokens", "moderations", "images")


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


BORDERS = [
    at(text)
    for text in (
        *("2026-01-31T23:00", "2026-02-01T00:00", "2026-02-28T23:59", "2026-03-01T00:00", "2026-03-01T00:01"),
        *("2026-03-01T01:00", "2026-03-01T12:30", "2026-03-02T00:00", "2026-03-08T00:00", "2026-04-01T00:00"),
    )
]


def make_records(seed):
    """Two organizations, records right before, at and right after each border; every number is different."""
    chance = random.Random(seed)
    found = []
    for border in BORDERS:
        for offset_ms in (-1, 0, 1, 59_999):
            moment = border + offset_ms
            for _ in range(2):
                amounts = [chance.randrange(1, 10**6) for _ in range(4)]
                found.append(
                    record(
                        request_id=f"{moment:012x}{new_request_id()[12:]}",
                        admitted_at_ms=moment,
                        organization_id=chance.choice(["org_1", "org_1", "org_2"]),
                        project_id=chance.choice(["proj_1", "proj_2"]),
                        key_id=chance.choice(["key_1", "key_2"]),
                        model=chance.choice(["gpt", "glm"]),
                        operation=chance.choice(OPERATIONS),
                        outcome=chance.choice([Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.UPSTREAM_FAILED]),
                        service_tier=chance.choice(["", "default", "flex"]),
                        error_owner=chance.choice(["", "", "provider"]),
                        requests=chance.choice([1, 1, 0]),
                        usage=Usage(amounts[0] + 10**6, amounts[1] % 1000, amounts[2] % 1000, amounts[3], 7, 50, 60),
                        charges=(("input", amounts[0]), ("output", amounts[1] * 10**7 + 1)),
                        charge_nanos=amounts[0] + amounts[1] * 10**7 + 1,
                    )
                )
    return found


@pytest.fixture
async def records(engine):
    made = make_records(7)
    assert await LedgerStore(engine).insert(made) == len(made)
    return made


@pytest.fixture
def store(engine):
    return ReportStore(engine)


def wanted(start_ms, end_ms, width, *, limit=None, page=None, now=None, **more):
    request = SpanRequest(
        start_time=start_ms // 1000,
        end_time=None if end_ms is None else end_ms // 1000,
        width=width,
        limit=limit,
        page=page,
    )
    most = 180 if limit and limit > 31 and width == "1d" else None
    span = read_span(request, (now or BORDERS[-1] + DAY) // 1000, most)
    return Wanted(span=span, organization_id=more.pop("organization_id", "org_1"), **more)


async def pages(report, store, start_ms, end_ms, width, **more):
    """Follow next_page to the end; every answer is read strictly through the SDK's model."""
    model = SDK.get(report, UsageCostsResponse)
    page, buckets = None, []
    while True:
        body = await report(store, wanted(start_ms, end_ms, width, page=page, **more))
        answer = model.model_validate(json.loads(body), strict=True)
        assert not answer.model_extra
        assert answer.has_more == (answer.next_page is not None)
        for bucket in answer.data:
            assert not bucket.model_extra
            assert all(not result.model_extra for result in bucket.results)
        buckets += json.loads(body, parse_float=Decimal)["data"]
        if answer.next_page is None:
            return buckets
        page = answer.next_page


def expected(records, start_ms, end_ms, width_ms, group, measures):
    sums = {}
    for one in records:
        if start_ms <= one.admitted_at_ms < end_ms:
            place = (one.admitted_at_ms // width_ms * width_ms, *group(one))
            row = sums.setdefault(place, [0] * len(measures))
            for i, measure in enumerate(measures):
                row[i] += measure(one)
    return sums


MEASURES = {
    "num_model_requests": lambda one: one.requests,
    "input_tokens": lambda one: one.usage.input_tokens,
    "output_tokens": lambda one: one.usage.output_tokens,
    "input_cached_tokens": lambda one: one.usage.cached_input_tokens,
    "input_cache_write_tokens": lambda one: one.usage.cache_write_tokens,
    "input_audio_tokens": lambda one: one.usage.input_audio_tokens,
    "output_audio_tokens": lambda one: one.usage.output_audio_tokens,
}
IMAGE_MEASURES = {"images": lambda one: one.requests * (one.outcome is not Outcome.UPSTREAM_FAILED)}
NAMES = {report_completions: list(MEASURES), report_images: ["num_model_requests", "images"]}
SPANS = [
    ("2026-01-01T00:00", "2026-04-02T00:00", "1d"),
    ("2026-02-01T00:00", "2026-03-01T00:00", "1d"),
    ("2026-01-31T23:00", "2026-04-01T00:00", "1d"),
    ("2026-02-28T23:59", "2026-03-01T00:01", "1d"),
    ("2026-02-28T23:00", "2026-03-02T01:00", "1h"),
    ("2026-02-28T23:30", "2026-03-01T01:01", "1h"),
    ("2026-03-01T12:30", "2026-03-01T12:31", "1h"),
    ("2026-02-28T23:58", "2026-03-01T01:02", "1m"),
]


@pytest.mark.parametrize(("start", "end", "width"), SPANS)
async def test_usage_is_what_the_records_say_however_a_span_is_cut(store, records, start, end, width):
    start_ms, end_ms = at(start), at(end)
    mine = [one for one in records if one.organization_id == "org_1"]
    for report, is_it in (
        (report_completions, lambda one: one.operation in {"chat", "text_completion"}),
        (report_embeddings, lambda one: one.operation == "embeddings"),
        (report_moderations, lambda one: one.operation == "moderations"),
        (report_images, lambda one: one.operation == "images"),
    ):
        names = NAMES.get(report, ["num_model_requests", "input_tokens"])
        truth = expected(
            filter(is_it, mine),
            start_ms,
            end_ms,
            WIDTHS[width],
            lambda one: (one.project_id, one.key_id, one.model),
            [(MEASURES | IMAGE_MEASURES)[name] for name in names],
        )
        group_by = ("project_id", "api_key_id", "model")
        limit = 31 if width == "1d" else None
        buckets = await pages(report, store, start_ms, end_ms, width, group_by=group_by, limit=limit)
        found = {}
        for bucket in buckets:
            begin_ms = bucket["start_time"] * 1000 // WIDTHS[width] * WIDTHS[width]
            for result in bucket["results"]:
                place = (begin_ms, *(result[name] for name in group_by))
                found[place] = [result[name] for name in names]
        assert found == truth
        assert buckets[0]["start_time"] * 1000 == start_ms
        assert buckets[-1]["end_time"] * 1000 == end_ms
        assert all(a["end_time"] == b["start_time"] for a, b in itertools.pairwise(buckets))


@pytest.mark.parametrize(("start", "end", "width"), [span for span in SPANS if span[2] == "1d"])
async def test_costs_are_exact_and_count_adjustments(engine, store, records, start, end, width):
    ledger = LedgerStore(engine)
    adjustments = [
        Adjustment("adj_1", "org_1", "proj_1", None, at("2026-03-01T00:00"), -1, 0, "credit", 1),
        Adjustment("adj_2", "org_1", "proj_2", "key_1", at("2026-02-28T23:59"), 123_456_789_000_000_001, 0, "late", 2),
        Adjustment("adj_3", "org_2", "proj_2", "key_1", at("2026-03-01T00:00"), 5, 0, "other", 3),
    ]
    for one in adjustments:
        assert await ledger.insert_adjustment(one)
    start_ms, end_ms = at(start), at(end)
    mine = [one for one in records if one.organization_id == "org_1"]
    truth = expected(mine, start_ms, end_ms, DAY, lambda one: (one.project_id,), [lambda one: one.charge_nanos])
    for one in adjustments[:2]:
        if start_ms <= one.period_start_ms < end_ms:
            truth.setdefault((one.period_start_ms // DAY * DAY, one.project_id), [0])[0] += one.nanos
    for group_by in (("project_id",), ("project_id", "line_item"), ("line_item", "api_key_id", "project_id")):
        found = {}
        for bucket in await pages(report_costs, store, start_ms, end_ms, width, group_by=group_by, limit=180):
            for result in bucket["results"]:
                place = (bucket["start_time"] * 1000 // DAY * DAY, result["project_id"])
                assert result["amount"]["currency"] == "usd"
                nanos = Decimal(result["amount"]["value"]) * 10**9
                assert nanos == int(nanos)
                found[place] = [found.get(place, [0])[0] + int(nanos)]
        assert found == truth


async def test_a_key_answers_for_its_client_tokens_and_for_what_corrects_its_chain(engine, store):
    service = KeyService(Catalog(engine), PEPPERS, MovingClock(), environment="live")
    project = await service.create_project((await service.create_organization("Acme")).id, "web")
    first = (await service.issue(KeyOrder("k", project.id))).key.id
    second = (await service.rotate(first)).key.id
    token = f"{second}.0123456789abcdef"
    moment, owner = at("2026-03-01T00:00"), {"organization_id": project.organization_id, "project_id": project.id}
    spent = {first: 70, second: 3_000, token: 500, f"{second}x": 1}
    ledger = LedgerStore(engine)
    await ledger.insert(
        [
            record(
                request_id=f"{moment:012x}{new_request_id()[12:]}",
                admitted_at_ms=moment,
                key_id=key_id,
                root_key_id=first,
                charge_nanos=nanos,
                charges=(),
                **owner,
            )
            for key_id, nanos in spent.items()
        ]
    )
    await ledger.insert_adjustment(
        Adjustment("adj_1", project.organization_id, project.id, first, moment, -20, 0, "credit", 1)
    )

    async def nanos_by(**more):
        [bucket] = await pages(
            report_costs, store, moment, moment + DAY, "1d", organization_id=project.organization_id, **more
        )
        return {row["api_key_id"]: int(Decimal(row["amount"]["value"]) * 10**9) for row in bucket["results"]}

    assert await nanos_by(api_key_ids=[second]) == {None: 3_000 + 500 - 20}
    assert await nanos_by(api_key_ids=[first]) == {None: 70 - 20}
    assert await nanos_by(api_key_ids=[token]) == {None: 500}
    records = RecordStore(engine)
    page = await records.list_records(RecordQuery(key_id=second), None, 10)
    assert {one.key_id for one in page.rows} == {second, token}
    used = await ledger.usage_by(UsageQuery(("key",), moment, moment + DAY, key_id=second))
    assert [(row.group, row.charge_nanos) for row in used] == [((second,), 3_500)]
    assert await nanos_by(group_by=("api_key_id",)) == {first: 70 - 20, second: 3_500, f"{second}x": 1}


async def test_line_items_name_model_and_component_with_their_quantity(store, records):
    start_ms, end_ms = at("2026-03-01T00:00"), at("2026-03-02T00:00")
    day = [one for one in records if one.organization_id == "org_1" and start_ms <= one.admitted_at_ms < end_ms]
    [bucket] = await pages(report_costs, store, start_ms, end_ms, "1d", group_by=("line_item",))
    lines = {result["line_item"]: result for result in bucket["results"]}
    glm = [one for one in day if one.model == "glm"]
    quantity = sum(one.usage.output_tokens - one.usage.output_audio_tokens for one in glm)
    assert (lines["glm, output_tokens"]["quantity"], lines["glm, output_tokens"]["quantity_unit"]) == (
        quantity,
        "tokens",
    )
    nanos = sum(dict(one.charges)["output"] for one in glm)
    assert lines["glm, output_tokens"]["amount"]["value"] * 10**9 == nanos
    [only] = await pages(report_costs, store, start_ms, end_ms, "1d", line_items=("glm, output_tokens",))
    [result] = only["results"]
    assert (result["amount"]["value"] * 10**9, result["line_item"], result["quantity"]) == (nanos, None, None)


async def test_filters_and_groups_that_are_constant(store, records):
    start_ms, end_ms = BORDERS[0] - 1, BORDERS[-1] + DAY
    mine = [one for one in records if one.organization_id == "org_1" and one.operation in {"chat", "text_completion"}]

    async def requests(**more):
        buckets = await pages(report_completions, store, start_ms // 1000 * 1000, end_ms, "1d", **more)
        return sum(result["num_model_requests"] for bucket in buckets for result in bucket["results"]), buckets

    assert (await requests())[0] == sum(one.requests for one in mine)
    assert (await requests(models=["glm"], project_ids=["proj_1"], api_key_ids=["key_2", "nobody's"]))[0] == sum(
        one.requests for one in mine if (one.model, one.project_id, one.key_id) == ("glm", "proj_1", "key_2")
    )
    assert (await requests(is_nothing=True))[0] == 0
    _, buckets = await requests(group_by=("service_tier", "user_id", "batch", "api_source"))
    results = [result for bucket in buckets for result in bucket["results"]]
    assert {result["service_tier"] for result in results} == {None, "default", "flex"}
    assert {(result["user_id"], result["batch"], result["api_source"]) for result in results} == {
        (None, False, "unlabeled")
    }
    assert {(result["project_id"], result["model"]) for result in results} == {(None, None)}


async def test_everybodys_minutes_are_found_by_the_time_in_their_ids(store, records):
    start_ms, end_ms = at("2026-02-28T23:59"), at("2026-03-01T00:01")
    query = ReportQuery(start_ms=start_ms, end_ms=end_ms, width_ms=MINUTE, measures=("charge_nanos", RECORDS))
    found = (await store.read(query)).rows
    truth = expected(records, start_ms, end_ms, MINUTE, lambda _: (), [lambda one: one.charge_nanos, lambda _: 1])
    assert {(row.bucket_ms,): list(row.sums) for row in found} == truth


async def test_records_are_counted_alike_in_hours_and_in_minutes(store, records):
    counts = []
    for start_ms, end_ms in ((BORDERS[2] - 59 * MINUTE, BORDERS[5]), (BORDERS[2] - 59 * MINUTE + 1, BORDERS[5] - 1)):
        query = ReportQuery(
            start_ms=start_ms, end_ms=end_ms, width_ms=DAY, measures=(RECORDS,), organization_id="org_1"
        )
        counts.append(sum(row.sums[0] for row in (await store.read(query)).rows))
        is_in = [one for one in records if one.organization_id == "org_1" and start_ms <= one.admitted_at_ms < end_ms]
        assert counts[-1] == len(is_in)


async def test_a_page_of_too_many_rows_gets_fewer_buckets_and_nothing_is_lost(engine, records):
    start_ms, end_ms = at("2026-01-01T00:00"), at("2026-04-02T00:00")
    whole = await pages(report_completions, ReportStore(engine), start_ms, end_ms, "1d", group_by=("model",))
    small = ReportStore(engine, max_rows=3)
    assert await pages(report_completions, small, start_ms, end_ms, "1d", group_by=("model",)) == whole
    with pytest.raises(Malformed, match="Group by less"):
        await pages(
            report_completions,
            small,
            start_ms,
            end_ms,
            "1d",
            group_by=("model", "api_key_id", "project_id", "service_tier"),
        )


async def test_late_records_of_a_day_join_what_was_there(engine, store, records):
    more = [msgspec.structs.replace(one, request_id=f"{one.request_id[:12]}{new_request_id()[12:]}") for one in records]
    start_ms, end_ms = at("2026-02-01T00:00"), at("2026-03-02T00:00")
    before = await pages(report_costs, store, start_ms, end_ms, "1d")
    await LedgerStore(engine).insert(more)
    after = await pages(report_costs, store, start_ms, end_ms, "1d")
    amounts = [
        [result["amount"]["value"] for bucket in side for result in bucket["results"]] for side in (before, after)
    ]
    assert [2 * amount for amount in amounts[0]] == amounts[1]
