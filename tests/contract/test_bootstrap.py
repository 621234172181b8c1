"""Several commands that make the first organization at once make one, on SQLite and on PostgreSQL."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import exc

from fakes.fleet import PEPPER
from meterhouse.bootstrap import FirstKeys, bootstrap, find_first_project
from meterhouse.db.audit import AuditQuery
from meterhouse.db.engine import writing
from meterhouse.db.paging import PageQuery
from meterhouse.errors import StoreDown
from meterhouse.identity import Actor, ActorKind, Author, Role
from meterhouse.settings import Environment, SettingsError
from meterhouse.stores import open_stores

AUTHOR = Author(Actor(ActorKind.CLI, "alice", Role.OPERATOR))
PROCESSES = 4


@pytest.fixture
async def houses(store_url, is_postgres, tmp_path):
    """The stores as so many processes open them."""
    values = {"METERHOUSE_DATA": str(tmp_path), "METERHOUSE_KEY_PEPPER": PEPPER}
    if is_postgres:
        values["METERHOUSE_DATABASE_URL"] = store_url
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_stores(Environment(values).settings())) for _ in range(PROCESSES)]


async def test_only_one_of_several_bootstraps_makes_anything(houses):
    done = await asyncio.gather(*[bootstrap(stores, AUTHOR) for stores in houses], return_exceptions=True)
    [made] = [one for one in done if isinstance(one, FirstKeys)]
    refused = [one for one in done if isinstance(one, SettingsError)]
    assert len(refused) == PROCESSES - 1, done
    catalog = houses[0].catalog
    assert [one.id for one in await catalog.organizations.list_organizations()] == [made.organization_id]
    assert [one.id for one in await catalog.organizations.list_projects()] == [made.project_id]
    assert len(await catalog.keys.list_keys()) == 1
    assert (await houses[1].keyring.verify(f"Bearer {made.key}", None)).project_id == made.project_id
    assert (await houses[1].keyring.verify_admin(f"Bearer {made.admin_key}")).role == Role.OPERATOR
    events = (await catalog.audit.list_events(AuditQuery(), PageQuery())).rows
    assert {(event.actor_kind, event.actor_id) for event in events} == {("cli", "alice")}
    assert sorted(event.action for event in events) == [
        "admin_api_key.created",
        "api_key.created",
        "organization.created",
        "project.created",
    ]


async def test_a_first_project_is_made_once(houses):
    found = await asyncio.gather(*[find_first_project(stores, AUTHOR) for stores in houses])
    assert len(set(found)) == 1
    assert len(await houses[0].catalog.organizations.list_organizations()) == 1


async def test_what_fails_on_the_way_leaves_nothing(houses, is_postgres):
    stores = houses[0]
    refusal = (
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        if is_postgres
        else "BEGIN SELECT RAISE(ABORT, 'no admin key today'); END"
    )
    async with writing(stores.engine) as connection:
        await connection.exec_driver_sql(f"CREATE TRIGGER no_admin_key BEFORE INSERT ON admin_key {refusal}")
    with pytest.raises((StoreDown, exc.DBAPIError)):
        await bootstrap(stores, AUTHOR)
    async with writing(stores.engine) as connection:
        await connection.exec_driver_sql(f"DROP TRIGGER no_admin_key{' ON admin_key' if is_postgres else ''}")
    assert await stores.catalog.organizations.list_organizations() == []
    assert await stores.catalog.keys.list_keys() == []
    assert await bootstrap(stores, AUTHOR)
