"""Usage and costs as the official SDK asks for them, over real requests; who may see whose."""

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest

from api.asking import Tenant, error_of, issue_admin
from fakes.gateway import Gateway
from fakes.ledger import record
from meterhouse.identity import Role
from meterhouse.ids import new_request_id

MODEL = "fake/normal?tokens=5"
DAY = 86_400


def admin_client(gateway: Gateway, key: str, organization: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=gateway.base_url, api_key="unused", admin_api_key=key, organization=organization, max_retries=0
    )


@pytest.fixture
def sdk(gateway: Gateway, tenant: Tenant) -> Iterator[openai.OpenAI]:
    with admin_client(gateway, gateway.admin_key, tenant.organization_id) as client:
        yield client


def ask_provider(gateway: Gateway, tenant: Tenant, count: int) -> int:
    """Send requests; returns the tokens that went in."""
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "1.5", "4")
    used = [json.loads(gateway.chat(MODEL, key=tenant.key)[2])["usage"]["prompt_tokens"] for _ in range(count)]
    gateway.settle()
    return sum(used)


def test_the_sdk_reads_what_was_used(gateway: Gateway, tenant: Tenant, sdk: openai.OpenAI) -> None:
    tokens = ask_provider(gateway, tenant, 3)
    now = int(time.time())
    usage = sdk.admin.organization.usage
    for width in ("1m", "1h", "1d"):
        found = usage.completions(
            start_time=now - 60,
            end_time=now + 60,
            bucket_width=width,
            group_by=["project_id", "api_key_id", "model", "service_tier", "batch"],
            project_ids=[tenant.project_id],
            api_key_ids=[tenant.key_id, "key_of_nobody"],
            models=[MODEL],
            limit=10,
        )
        results = [result for bucket in found.data for result in bucket.results]
        assert sum(result.num_model_requests for result in results) == 3
        assert sum(result.input_tokens for result in results) == tokens
        assert sum(result.output_tokens for result in results) == 15
        assert {(one.project_id, one.api_key_id, one.model) for one in results} == {
            (tenant.project_id, tenant.key_id, MODEL)
        }
        assert found.data[0].start_time == now - 60
        assert found.data[-1].end_time == now + 60
    assert [bucket.results for bucket in usage.embeddings(start_time=now - 60).data] == [[]]
    batches = usage.completions(start_time=now - 60, batch=True)
    assert [bucket.results for bucket in batches.data] == [[]]


def test_the_sdk_reads_what_was_drawn_said_heard_and_moderated(
    gateway: Gateway, tenant: Tenant, sdk: openai.OpenAI
) -> None:
    model = "fake/normal?usage=always"
    with gateway.client(tenant.key) as client:
        for count in (1, 3):
            client.images.generate(model=model, prompt="A cat", n=count)
        client.moderations.create(model="fake/normal", input="one two three")
        client.audio.speech.create(model="fake/normal", input="Hello", voice="alloy")
        client.audio.transcriptions.create(model=model, file=("a.mp3", b"sound"))
        with pytest.warns(DeprecationWarning, match="deprecated"):  # of the SDK, not of ours
            client.audio.translations.create(model=model, file=("a.mp3", b"sound"))
        with pytest.raises(openai.InternalServerError):
            client.images.generate(model="fake/error-500?tokens=77", prompt="A cat")
    gateway.settle()
    since, usage = int(time.time()) - 60, sdk.admin.organization.usage

    def only(report: Any, **asked: Any) -> Any:
        (result,) = [one for bucket in report(start_time=since, **asked).data for one in bucket.results]
        return result

    drawn = only(usage.images, group_by=["source", "size", "project_id"], sources=["image.generation"])
    assert (drawn.num_model_requests, drawn.images) == (3, 2), "one for each answer"
    assert (drawn.source, drawn.size, drawn.project_id) == ("image.generation", None, tenant.project_id)
    edited = usage.images(start_time=since, sources=["image.edit"])
    assert [bucket.results for bucket in edited.data] == [[]]
    with pytest.raises(openai.BadRequestError, match="sizes of images"):
        usage.images(start_time=since, sizes=["256x256"])
    moderated = only(usage.moderations, group_by=["model"], models=["normal"])
    assert (moderated.num_model_requests, moderated.input_tokens, moderated.model) == (1, 3, "normal")
    said = only(usage.audio_speeches, group_by=["api_key_id"], api_key_ids=[tenant.key_id])
    assert (said.num_model_requests, said.characters, said.api_key_id) == (1, None, tenant.key_id)
    heard = only(usage.audio_transcriptions)
    assert (heard.num_model_requests, heard.seconds) == (2, None)
    for report in (usage.completions, usage.embeddings):
        assert [bucket.results for bucket in report(start_time=since).data] == [[]]
    with pytest.raises(openai.NotFoundError):
        usage.vector_stores(start_time=since)


def test_the_sdk_reads_what_it_costs(gateway: Gateway, tenant: Tenant, sdk: openai.OpenAI) -> None:
    tokens = ask_provider(gateway, tenant, 2)
    start = int(time.time()) // DAY * DAY
    costs = sdk.admin.organization.usage.costs(start_time=start, group_by=["line_item"], limit=180)
    lines = {one.line_item: one for bucket in costs.data for one in bucket.results}
    assert set(lines) == {f"{MODEL}, input_tokens", f"{MODEL}, output_tokens"}
    line = lines[f"{MODEL}, input_tokens"]
    assert (line.amount.value, line.amount.currency) == (pytest.approx(tokens * 1.5e-6), "usd")
    assert line.quantity == tokens
    assert lines[f"{MODEL}, output_tokens"].amount.value == pytest.approx(10 * 4e-6)
    query = f"start_time={start}&group_by[]=project_id&group_by[]=api_key_id&project_ids[]={tenant.project_id}"
    status, headers, body = gateway.request(
        "GET",
        f"/v1/organization/costs?{query}",
        key=gateway.admin_key,
        headers={"openai-organization": tenant.organization_id},
    )
    assert (status, headers["content-type"]) == (200, "application/json")
    answer = json.loads(body, parse_float=Decimal)
    [result] = answer["data"][0]["results"]
    assert result["amount"]["value"] * 10**9 == tokens * 1500 + 10 * 4000
    assert (result["project_id"], result["api_key_id"], result["line_item"]) == (
        tenant.project_id,
        tenant.key_id,
        None,
    )


def test_pages_follow_each_other(gateway: Gateway, tenant: Tenant, sdk: openai.OpenAI) -> None:
    start = 1_790_000_000 // DAY * DAY
    days = [start + i * DAY for i in range(10)]
    made = [
        record(
            request_id=f"{day * 1000:012x}{new_request_id()[12:]}",
            admitted_at_ms=day * 1000,
            organization_id=tenant.organization_id,
            project_id=tenant.project_id,
        )
        for day in days
    ]
    gateway.run(lambda: gateway.parts.stores.ledger.insert(made))
    seen, page = [], openai.omit
    while True:
        found = sdk.admin.organization.usage.completions(start_time=start, end_time=days[-1] + 1, limit=4, page=page)
        seen += [(bucket.start_time, sum(one.num_model_requests for one in bucket.results)) for bucket in found.data]
        if not found.has_more:
            break
        page = found.next_page
    assert seen == [(day, 1) for day in days]


def test_an_owner_and_a_reader_see_their_own_and_no_other(gateway: Gateway, tenant: Tenant) -> None:
    ask_provider(gateway, tenant, 1)
    other = Tenant(gateway)
    now = int(time.time())
    for role in (Role.OWNER, Role.READER):
        for organization_id, expected in ((tenant.organization_id, 1), (other.organization_id, 0)):
            key = issue_admin(gateway, role, organization_id)
            with admin_client(gateway, key) as client:
                usage = client.admin.organization.usage
                # Whatever is filtered by, it is filtered within one's own.
                for filters in ({}, {"project_ids": [tenant.project_id]}, {"api_key_ids": [tenant.key_id]}):
                    found = usage.completions(start_time=now - 60, **filters)
                    assert sum(one.num_model_requests for b in found.data for one in b.results) == expected
                    costs = usage.costs(start_time=now - 60, **filters)
                    assert sum(bool(one.amount.value) for b in costs.data for one in b.results) == expected
            status, _, body = gateway.request("GET", f"/admin/series?start_time={now - 60}", key=key)
            assert status == 200
            assert sum(json.loads(body)["lines"][0]["requests"]) == expected
        stranger = issue_admin(gateway, role, other.organization_id)
        with admin_client(gateway, stranger, tenant.organization_id) as client, pytest.raises(openai.NotFoundError):
            client.admin.organization.usage.completions(start_time=now - 60)
        path = f"/admin/series?start_time={now - 60}&organization_id={tenant.organization_id}"
        assert gateway.request("GET", path, key=stranger)[0] == 404


@pytest.mark.parametrize(
    ("path", "param", "said"),
    [
        ("usage/completions", "start_time", "Missing required parameter"),
        ("usage/completions?start_time=yesterday", "start_time", "Invalid value for 'start_time'"),
        ("usage/completions?start_time=5&end_time=5", "end_time", "after 'start_time'"),
        ("usage/completions?start_time=5&bucket_width=2h", "bucket_width", "Invalid value"),
        ("usage/completions?start_time=5&limit=32", "limit", "from 1 to 31"),
        ("usage/completions?start_time=5&limit=169&bucket_width=1h", "limit", "from 1 to 168"),
        ("usage/completions?start_time=5&limit=1441&bucket_width=1m", "limit", "from 1 to 1440"),
        ("usage/completions?start_time=5&group_by[]=key", "group_by.0", "Invalid value"),
        ("usage/embeddings?start_time=5&group_by=batch", "group_by.0", "Invalid value"),
        ("usage/moderations?start_time=5&group_by=size", "group_by.0", "Invalid value"),
        ("usage/images?start_time=5&sizes=1x1", "sizes", "does not know"),
        ("usage/images?start_time=5&sources=image", "sources.0", "Invalid value"),
        ("usage/completions?start_time=5&page=page_x", "page", "'next_page'"),
        ("usage/completions?start_time=5&project_id=a", "project_id", "Extra inputs"),
        ("usage/completions?start_time=5&" + "&".join(["models[]=x"] * 101), "models", "at most 100"),
        ("usage/completions?start_time=5&models=" + "x" * 257, "models.0", "Invalid value"),
        ("usage/completions?start_time=5&models=a%00b", None, "U+0000"),
        ("costs?start_time=5&limit=181", "limit", "from 1 to 180"),
        ("costs?start_time=5&bucket_width=1h", "bucket_width", "Invalid value"),
        ("costs?start_time=5&group_by[]=model", "group_by.0", "Invalid value"),
        ("costs?start_time=99999999999999999999", "start_time", "Unix seconds"),
    ],
)
def test_what_cannot_be_asked_is_a_400_that_names_it(gateway: Gateway, path: str, param: str | None, said: str) -> None:
    status, _, body = gateway.request("GET", f"/v1/organization/{path}", key=gateway.admin_key)
    error = error_of(body)
    assert (status, error["param"]) == (400, param)
    assert said in error["message"]


def test_the_description_names_every_field_of_an_answer(gateway: Gateway, tenant: Tenant) -> None:
    ask_provider(gateway, tenant, 1)
    schemas: dict[str, Any] = json.loads(gateway.request("GET", "/openapi.json", key="")[2])["components"]["schemas"]
    image = {"model": "fake/normal", "prompt": "A cat"}
    for path, body in (("images/generations", image), ("moderations", {"model": "fake/normal", "input": "a"})):
        assert gateway.request("POST", f"/v1/{path}", body, key=tenant.key)[0] == 200
    gateway.settle()
    for path, name in (
        ("usage/completions", "CompletionsUsageResult"),
        ("usage/images", "ImagesUsageResult"),
        ("usage/moderations", "ModerationsUsageResult"),
        ("costs", "CostsResult"),
    ):
        body = gateway.request(
            "GET",
            f"/v1/organization/{path}?start_time={int(time.time()) - 60}",
            key=gateway.admin_key,
            headers={"openai-organization": tenant.organization_id},
        )[2]
        [result] = json.loads(body)["data"][-1]["results"]
        assert set(result) == set(schemas[name]["properties"])


def test_series_are_lines_over_the_same_sums(gateway: Gateway, tenant: Tenant) -> None:
    tokens = ask_provider(gateway, tenant, 2)
    gateway.chat("fake/status?code=500", key=tenant.key)
    gateway.settle()
    now = int(time.time())

    def series(**more: object) -> dict[str, Any]:
        query = "&".join(
            f"{name}={value}"
            for name, value in {"start_time": now - 60, "organization_id": tenant.organization_id, **more}.items()
        )
        status, _, body = gateway.request("GET", f"/admin/series?{query}", key=gateway.admin_key)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    whole = series()
    [line] = whole["lines"]
    assert len(whole["times"]) == len(line["requests"]) == len(line["errors"])
    records = [one for one in gateway.all_records() if one["organization_id"] == tenant.organization_id]
    assert sum(line["requests"]) == sum(one["requests"] for one in records)
    assert sum(line["charge_nanos"]) == sum(one["charge_nanos"] for one in records) == tokens * 1500 + 10 * 4000
    assert sum(line["errors"]) == sum(one["error_owner"] != "" for one in records) > 0
    owners = {line["name"]: sum(line["errors"]) for line in series(by="owner", bucket_width="1m")["lines"]}
    assert owners[""] == 0
    assert sum(owners.values()) == sum(line["errors"])
    models = series(by="model", top=1)["lines"]
    assert [one["name"] for one in models] == [MODEL, None]
    assert sum(map(sum, (one["requests"] for one in models))) == sum(line["requests"])
    only = series(by="key", key_ids=tenant.key_id, models=MODEL)["lines"]
    assert [(one["name"], sum(one["requests"])) for one in only] == [(tenant.key_id, 2)]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start_time=0&bucket_width=1m", "bucket_width"),
        ("start_time=0", "bucket_width"),
        ("start_time=5&by=secret", "by"),
        ("start_time=5&top=0", "top"),
        ("start_time=5&end_time=4", "end_time"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_a_400(gateway: Gateway, query: str, param: str) -> None:
    status, _, body = gateway.request("GET", f"/admin/series?{query}", key=gateway.admin_key)
    assert (status, error_of(body)["param"]) == (400, param)
