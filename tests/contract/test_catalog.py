from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from fakes.store import opened_store, taken_away
from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import writing
from meterhouse.db.keys import StoredAdminKey, StoredKey
from meterhouse.db.organizations import Organization, Project
from meterhouse.errors import StoreDown
from meterhouse.metering import Kind, Limit, Scope, Window
from meterhouse.money import Component, Meterable, Price

NOW_MS = 1_800_000_000_000

ORGANIZATION = Organization("org_1", "Acme", NOW_MS)
PROJECT = Project("proj_1", "org_1", "Search", NOW_MS)
KEY = StoredKey(
    id="key_1",
    root_key_id="key_1",
    project_id="proj_1",
    organization_id="org_1",
    name="ci",
    hash="0" * 64,
    pepper_version=1,
    redacted="sk-mh-dev-1-...",
    scopes=frozenset({"inference", "usage"}),
    models=frozenset({"b", "a"}),
    ip_ranges=("192.0.2.0/24",),
    service_account="robot",
    expires_at_ms=NOW_MS + 1,
    created_at_ms=NOW_MS,
)
ADMIN_KEY = StoredAdminKey(
    id="key_a",
    name="root",
    role="operator",
    hash="0" * 64,
    pepper_version=1,
    redacted="sk-mh-admin-a-...",
    expires_at_ms=None,
    created_at_ms=NOW_MS,
)


def limit(scope, scope_id, amount=10, **changes):
    return replace(Limit(scope, scope_id, Kind.SPEND, Window.MONTH, amount), **changes)


@pytest.fixture
async def catalog(engine):
    return await filled(engine)


async def filled(engine):
    catalog = Catalog(engine)
    await catalog.organizations.insert_organization(ORGANIZATION)
    await catalog.organizations.insert_project(PROJECT)
    return catalog


# --- organizations and projects


async def test_organizations_and_projects_come_back_as_written(catalog):
    assert await catalog.organizations.find_organization("org_1") == ORGANIZATION
    assert await catalog.organizations.find_organization("org_2") is None
    assert await catalog.organizations.find_project("proj_1") == PROJECT
    assert await catalog.organizations.find_project("proj_2") is None


async def test_lists_are_paged_oldest_first_without_loss_even_within_a_millisecond(catalog):
    made = [Organization(f"org_{i}", "x", NOW_MS + i // 3) for i in range(2, 12)]
    for new in reversed(made):
        await catalog.organizations.insert_organization(new)
    seen: list[Organization] = []
    while page := await catalog.organizations.list_organizations(after=seen[-1].id if seen else None, limit=4):
        seen += page
    assert seen == sorted([ORGANIZATION, *made], key=lambda one: (one.created_at_ms, one.id))
    assert await catalog.organizations.list_organizations(after="unknown") == []


async def test_projects_are_listed_by_organization(catalog):
    await catalog.organizations.insert_organization(replace(ORGANIZATION, id="org_2"))
    await catalog.organizations.insert_project(replace(PROJECT, id="proj_2", organization_id="org_2"))
    assert [p.id for p in await catalog.organizations.list_projects("org_2")] == ["proj_2"]
    assert [p.id for p in await catalog.organizations.list_projects()] == ["proj_1", "proj_2"]


async def test_a_project_of_nobody_is_refused(catalog):
    with pytest.raises(exc.IntegrityError):
        await catalog.organizations.insert_project(replace(PROJECT, id="proj_2", organization_id="org_9"))


async def test_a_project_is_archived_once(catalog):
    await catalog.keys.insert_key(KEY)
    assert await catalog.organizations.archive_project("proj_1", NOW_MS + 5)
    assert not await catalog.organizations.archive_project("proj_1", NOW_MS + 9)
    assert not await catalog.organizations.archive_project("proj_9", NOW_MS)
    assert (await catalog.organizations.find_project("proj_1")).archived_at_ms == NOW_MS + 5
    assert (await catalog.keys.find_key("key_1")).project_archived_at_ms == NOW_MS + 5


# --- keys


async def test_a_key_comes_back_with_its_organization_and_all_limits_that_bind_it(catalog):
    own = limit(Scope.KEY, "key_1", model="gpt")
    await catalog.keys.insert_key(replace(KEY, limits=(own, limit(Scope.PROJECT, "proj_1", 99))))
    await catalog.limits.set_limits(Scope.PROJECT, "proj_1", [limit(Scope.PROJECT, "proj_1", 20)])
    await catalog.limits.set_limits(
        Scope.ORGANIZATION,
        "org_1",
        [
            Limit(Scope.ORGANIZATION, "org_1", Kind.REQUESTS, Window.MINUTE, 5, multiple=2),
            Limit(Scope.ORGANIZATION, "org_1", Kind.CONCURRENT, Window.NONE, 3),
        ],
    )
    await catalog.limits.set_limits(Scope.PROJECT, "key_1", [limit(Scope.PROJECT, "key_1", 1)])
    found = await catalog.keys.find_key("key_1")
    assert replace(found, limits=()) == KEY
    assert found.limits == (
        own,
        limit(Scope.PROJECT, "proj_1", 20),
        Limit(Scope.ORGANIZATION, "org_1", Kind.CONCURRENT, Window.NONE, 3),
        Limit(Scope.ORGANIZATION, "org_1", Kind.REQUESTS, Window.MINUTE, 5, multiple=2),
    )
    assert await catalog.keys.list_keys() == [found]


async def test_a_key_may_allow_every_model_and_every_address_forever(catalog, engine):
    plain = replace(KEY, models=None, ip_ranges=(), service_account=None, expires_at_ms=None)
    await catalog.keys.insert_key(plain)
    assert await catalog.keys.find_key("key_1") == plain
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT models IS NULL FROM key"))).scalar() == 1


async def test_an_unknown_key_is_not_found(catalog):
    assert await catalog.keys.find_key("key_1") is None
    assert await catalog.keys.find_key("' OR '1'='1") is None
    assert await catalog.keys.find_admin_key("key_1") is None


async def test_keys_are_listed_by_project_in_pages(catalog):
    await catalog.organizations.insert_project(replace(PROJECT, id="proj_2"))
    keys = [replace(KEY, id=f"key_{i}", project_id=f"proj_{1 + i % 2}", created_at_ms=NOW_MS + i) for i in range(6)]
    for new in keys:
        await catalog.keys.insert_key(new)
    assert await catalog.keys.list_keys("proj_1", limit=2) == [keys[0], keys[2]]
    assert await catalog.keys.list_keys("proj_1", after="key_2", limit=2) == [keys[4]]
    assert await catalog.keys.list_keys(limit=10**9) == keys


async def test_a_key_of_no_project_is_refused_with_its_limits(catalog):
    with pytest.raises(exc.IntegrityError):
        await catalog.keys.insert_key(replace(KEY, project_id="proj_9", limits=(limit(Scope.KEY, "key_1"),)))
    assert await catalog.limits.list_limits(Scope.KEY, "key_1") == []


async def test_a_revocation_happens_once_and_keeps_its_time(catalog):
    await catalog.keys.insert_key(KEY)
    assert await catalog.keys.revoke_key("key_1", NOW_MS + 5)
    assert not await catalog.keys.revoke_key("key_1", NOW_MS + 9)
    assert not await catalog.keys.revoke_key("key_9", NOW_MS)
    assert (await catalog.keys.find_key("key_1")).revoked_at_ms == NOW_MS + 5


@pytest.mark.parametrize(("expiry", "expected"), [(None, 500), (NOW_MS, 500), (100, 100)])
async def test_a_rotated_key_ends_with_the_overlap_or_sooner(catalog, expiry, expected):
    await catalog.keys.insert_key(replace(KEY, expires_at_ms=expiry, limits=(limit(Scope.KEY, "key_1"),)))
    assert await catalog.keys.rotate_key("key_1", replace(KEY, id="key_2"), 500)
    assert (await catalog.keys.find_key("key_1")).expires_at_ms == expected
    sibling = await catalog.keys.find_key("key_2")
    assert (sibling.root_key_id, sibling.limits) == ("key_1", (limit(Scope.KEY, "key_1"),))


async def test_a_revoked_key_is_not_rotated(catalog):
    await catalog.keys.insert_key(KEY)
    await catalog.keys.revoke_key("key_1", NOW_MS)
    assert not await catalog.keys.rotate_key("key_1", replace(KEY, id="key_2"), 500)
    assert await catalog.keys.find_key("key_2") is None


async def test_the_last_use_only_moves_forward(catalog):
    await catalog.keys.insert_key(KEY)
    await catalog.keys.insert_key(replace(KEY, id="key_2"))
    for uses in ({"key_1": 5, "key_2": 7}, {"key_1": 3, "key_2": 9, "key_gone": 1}, {}):
        await catalog.keys.touch_last_used(uses)
    assert [key.last_used_at_ms for key in await catalog.keys.list_keys()] == [5, 9]


async def test_admin_keys_are_kept_like_keys_but_apart(catalog):
    await catalog.keys.insert_admin_key(ADMIN_KEY)
    assert await catalog.keys.find_admin_key("key_a") == ADMIN_KEY
    assert await catalog.keys.find_key("key_a") is None
    await catalog.keys.touch_admin_last_used({"key_a": 5})
    assert await catalog.keys.revoke_admin_key("key_a", 7)
    assert not await catalog.keys.revoke_admin_key("key_a", 8)
    assert await catalog.keys.list_admin_keys() == [replace(ADMIN_KEY, last_used_at_ms=5, revoked_at_ms=7)]


async def test_no_repr_shows_a_hash():
    assert KEY.hash not in repr(KEY) + repr(ADMIN_KEY)


# --- limits


async def test_setting_limits_replaces_those_of_the_scope_alone(catalog):
    other = limit(Scope.PROJECT, "org_1", 7)
    await catalog.limits.set_limits(Scope.PROJECT, "org_1", [other])
    await catalog.limits.set_limits(Scope.ORGANIZATION, "org_1", [limit(Scope.ORGANIZATION, "org_1", 1)])
    await catalog.limits.set_limits(Scope.ORGANIZATION, "org_1", [limit(Scope.ORGANIZATION, "ignored", 2)])
    assert await catalog.limits.list_limits(Scope.ORGANIZATION, "org_1") == [limit(Scope.ORGANIZATION, "org_1", 2)]
    await catalog.limits.set_limits(Scope.ORGANIZATION, "org_1", [])
    assert await catalog.limits.list_limits(Scope.ORGANIZATION, "org_1") == []
    assert await catalog.limits.list_limits(Scope.PROJECT, "org_1") == [other]


@pytest.mark.parametrize("model", [None, "gpt"])
async def test_the_same_limit_twice_is_refused_and_leaves_the_old_ones(catalog, model):
    await catalog.limits.set_limits(Scope.KEY, "key_1", [limit(Scope.KEY, "key_1", 1)])
    twice = [limit(Scope.KEY, "key_1", amount, model=model) for amount in (5, 6)]
    with pytest.raises(exc.IntegrityError):
        await catalog.limits.set_limits(Scope.KEY, "key_1", twice)
    assert await catalog.limits.list_limits(Scope.KEY, "key_1") == [limit(Scope.KEY, "key_1", 1)]


async def test_limits_that_differ_in_model_or_window_stand_side_by_side(catalog):
    several = [
        limit(Scope.KEY, "key_1"),
        limit(Scope.KEY, "key_1", model="a"),
        limit(Scope.KEY, "key_1", window=Window.TOTAL),
    ]
    await catalog.limits.set_limits(Scope.KEY, "key_1", several)
    assert await catalog.limits.list_limits(Scope.KEY, "key_1") == several


# --- prices and meta

PRICE = Price(
    id="price_1",
    provider="openai",
    model="gpt",
    components=(
        Component(Meterable.INPUT, 2_500_000_000),
        Component(Meterable.OUTPUT, 10**10, 200_000, (990, 30), "flex", (0, 6)),
    ),
    effective_from_ms=NOW_MS,
    source="genai-prices",
)


async def test_prices_come_back_as_written_and_are_added_once(catalog):
    later = Price("price_0", "openai", "gpt", (), NOW_MS + 1, "operator")
    assert await catalog.prices.insert_prices([later, PRICE]) == 2
    assert await catalog.prices.insert_prices([Price("price_1", "x", "y", (), 0, ""), PRICE]) == 0
    assert await catalog.prices.insert_prices([]) == 0
    assert await catalog.prices.list_prices() == [PRICE, later]


@pytest.mark.parametrize("change", ["UPDATE price SET source = ''", "DELETE FROM price"])
async def test_prices_are_never_edited(catalog, engine, change):
    await catalog.prices.insert_prices([PRICE])
    with pytest.raises(exc.IntegrityError, match="append-only"):
        async with writing(engine) as connection:
            await connection.execute(sa.text(change))
    assert await catalog.prices.list_prices() == [PRICE]


async def test_a_meta_value_is_what_was_put_last(catalog):
    assert await catalog.meta.find_value("seeded") is None
    await catalog.meta.put_value("seeded", "1")
    await catalog.meta.put_value("seeded", "2")
    assert await catalog.meta.find_value("seeded") == "2"


async def test_without_a_database_every_method_is_store_down(tmp_path):
    path = tmp_path / "catalog.db"
    async with opened_store(path) as engine:
        catalog = await filled(engine)
        await assert_down_while_away(catalog, engine, path)
        assert await catalog.organizations.find_project("proj_1") == PROJECT


async def assert_down_while_away(catalog, engine, path):
    async with taken_away(engine, path):
        for call in (
            catalog.organizations.find_organization("org_1"),
            catalog.organizations.archive_project("proj_1", 1),
            catalog.keys.find_key("key_1"),
            catalog.keys.insert_key(KEY),
            catalog.keys.find_admin_key("key_a"),
            catalog.limits.list_limits(Scope.KEY, "key_1"),
            catalog.prices.list_prices(),
            catalog.meta.find_value("x"),
        ):
            with pytest.raises(StoreDown):
                await call
