"""Refused requests and budgets, in both databases: added up by several writers, read by hour, group and owner."""

import asyncio

import pytest

from fakes.meter_oracle import FakeClock
from meterhouse.db.budgets import CREDIT_ID, BudgetStore
from meterhouse.db.catalog import Catalog
from meterhouse.db.keys import StoredKey
from meterhouse.db.ledger import Adjustment
from meterhouse.db.organizations import Organization, Project
from meterhouse.db.refusals import RefusalStore, Refused
from meterhouse.db.reports import ReportQuery
from meterhouse.errors import NotFound
from meterhouse.http.refusals import Refusals
from meterhouse.identity import Principal
from meterhouse.metering import Kind, Limit, Scope, Window
from meterhouse.providers.prices import PriceBook
from meterhouse.providers.routes import Routes, Snapshot

HOUR = 3_600_000
NOON = 500_000 * HOUR
PRINCIPAL = Principal("org_1", "proj_1", "key_1", "key_1", frozenset(), None, (), None)
PLACE = Refused("org_1", NOON, "proj_1", "key_1", "gpt", "limit", "rate_limit_exceeded")


def query(start_ms=NOON, end_ms=NOON + HOUR, width_ms=HOUR, **more):
    return ReportQuery(start_ms=start_ms, end_ms=end_ms, width_ms=width_ms, measures=(), **more)


async def read(store, **more):
    return [(row.bucket_ms, row.group, row.sums) for row in await store.read(query(**more))]


@pytest.fixture
def store(engine):
    return RefusalStore(engine)


async def test_counts_of_several_writers_add_up(store):
    other = PLACE._replace(model="", error_owner="caller", error_code="model_not_found")
    writers = [store.add({other: 1, PLACE: 2}), store.add({PLACE: 3}), store.add({other: 4, PLACE: 1})]
    await asyncio.gather(*writers)
    found = sorted(await read(store, group_by=("error_owner",)))
    assert found == [(NOON, ("caller",), (5,)), (NOON, ("limit",), (6,))]


async def test_a_span_has_the_hours_that_it_touches(store):
    places = {PLACE._replace(hour_ms=NOON + n * HOUR): 10 ** (n + 1) for n in range(-1, 3)}
    await store.add(places)
    assert await read(store, start_ms=NOON + 5, end_ms=NOON + HOUR + 5, width_ms=100 * HOUR) == [
        (NOON // (100 * HOUR) * 100 * HOUR, (), (110,))
    ]


async def test_filters_and_what_a_refusal_has_not(store):
    mine = PLACE._replace(key_id="key_1.token")
    await store.add({PLACE: 1, mine: 2, PLACE._replace(organization_id="org_2"): 4, PLACE._replace(key_id="key_2"): 8})
    only = {"key_id": ["key_1"], "project_id": ["proj_1"], "model": ["gpt"]}
    assert await read(store, organization_id="org_1", only=only, group_by=("key_id",)) == [(NOON, ("key_1",), (3,))]
    assert await read(store, only={"key_id": ["key_1.token"]}) == [(NOON, (), (2,))]
    assert await read(store, group_by=("error_owner", "provider")) == []
    assert await RefusalStore(store._engine, max_rows=1).read(query(group_by=("key_id",))) is None


async def test_a_stop_while_it_is_written_does_not_count_it_twice(store):
    """The write is done, and whoever waits for it is cancelled before it hears of that."""

    class Slow(RefusalStore):
        async def add(self, counts):
            await super().add(counts)
            written.set()
            await asyncio.sleep(0.05)

    written = asyncio.Event()
    refusals = Refusals(Slow(store._engine), Routes(Snapshot((), PriceBook(()), {}, 0)), FakeClock(NOON))
    refusals.note(PRINCIPAL, "gpt", NotFound("no"))
    flush = asyncio.create_task(refusals.flush())
    await written.wait()
    flush.cancel()
    await asyncio.gather(flush, return_exceptions=True)
    refusals.note(PRINCIPAL, "gpt", NotFound("no"))
    await refusals.flush()
    assert await read(store) == [(NOON, (), (2,))]


# --- budgets


def key(key_id, project_id="proj_1", **more):
    values = {
        "root_key_id": key_id,
        "organization_id": "org_1",
        "hash": "0" * 64,
        "pepper_version": 1,
        "redacted": "sk-mh-dev-1-...",
        "scopes": frozenset({"inference"}),
        "models": None,
        "ip_ranges": (),
        "service_account": None,
        "expires_at_ms": None,
        "created_at_ms": NOON,
        **more,
    }
    return StoredKey(id=key_id, project_id=project_id, name=f"name of {key_id}", **values)


@pytest.fixture
async def catalog(engine):
    """Two organizations; of the first a project, an archived one, and keys that are good, rotated, expired, revoked."""
    found = Catalog(engine)
    for name in ("org_1", "org_2"):
        await found.organizations.insert_organization(Organization(name, f"name of {name}", NOON))
    projects = [("proj_1", "org_1", None), ("proj_2", "org_2", None), ("proj_3", "org_1", NOON)]
    for name, organization_id, archived in projects:
        await found.organizations.insert_project(Project(name, organization_id, f"name of {name}", NOON, archived))
    for new in (
        key("key_1"),
        key("key_2", expires_at_ms=NOON),
        key("key_3", root_key_id="key_2"),
        key("key_4", expires_at_ms=NOON),
        key("key_5", revoked_at_ms=NOON),
        key("key_6", "proj_3"),
    ):
        await found.keys.insert_key(new)
    owners = [
        *((Scope.ORGANIZATION, f"org_{n}") for n in (1, 2)),
        *((Scope.PROJECT, f"proj_{n}") for n in (1, 2, 3)),
        *((Scope.KEY, f"key_{n}") for n in (1, 2, 4, 5, 6)),
    ]
    for scope, name in owners:
        budget = Limit(scope, name, Kind.SPEND, Window.MONTH, 10**9)
        rate = Limit(scope, name, Kind.REQUESTS, Window.MINUTE, 10)
        await found.limits.set_limits(scope, name, [budget, rate])
    return found


async def list_budgets(store: BudgetStore, organization_id, limit):
    seen, after = [], None
    while True:
        page = await store.page_budgets(organization_id, after, limit, NOON + 1)
        seen += page.rows
        if not page.has_more:
            return seen
        after = page.rows[-1].id


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_budgets_are_paged_by_scope_without_those_that_ended(catalog, limit):
    found = await list_budgets(catalog.budgets, "org_1", limit)
    assert [budget.limit.scope for budget in found] == [Scope.ORGANIZATION, Scope.PROJECT, Scope.KEY, Scope.KEY]
    assert sorted(budget.limit.scope_id for budget in found) == ["key_1", "key_2", "org_1", "proj_1"]
    assert {budget.owner_name for budget in found} == {f"name of {budget.limit.scope_id}" for budget in found}
    assert {(budget.organization_id, budget.limit.kind) for budget in found} == {("org_1", Kind.SPEND)}
    everybodys = await list_budgets(catalog.budgets, None, limit)
    assert {budget.organization_id for budget in everybodys} == {"org_1", "org_2"}
    assert len(everybodys) == 6


async def test_prepaid_credit_comes_first_and_anothers_budget_continues_nothing(catalog):
    await catalog.credits.insert(Adjustment("adj_1", "org_1", "", None, 0, -5, 0, "credit", NOON, "key_a"))
    found = await list_budgets(catalog.budgets, "org_1", 1)
    assert (found[0].id, found[0].limit.amount, found[0].limit.window) == (CREDIT_ID, 5, Window.TOTAL)
    assert len(found) == 5
    foreign = (await list_budgets(catalog.budgets, "org_2", 10))[0].id
    page = await catalog.budgets.page_budgets("org_1", foreign, 10, NOON)
    assert (page.rows, page.has_more) == ([], False)
