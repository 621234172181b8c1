"""Changes of one organization that come at once: none is lost, and each audit event has the state right before it."""

import asyncio
from dataclasses import replace

import pytest

from fakes.house import PEPPERS
from fakes.store import MovingClock
from meterhouse.db.audit import AuditQuery
from meterhouse.db.catalog import Catalog
from meterhouse.db.paging import PageQuery
from meterhouse.keys.accounts import AccountOrder
from meterhouse.keys.limit_changes import LimitChange
from meterhouse.keys.service import KeyOrder, KeyService
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import Kind, Limit, Scope, Window

AT_ONCE = 4


@pytest.fixture
async def service(engine):
    return KeyService(Catalog(engine), PEPPERS, MovingClock(), environment="live")


@pytest.fixture
async def project(service):
    organization = await service.create_organization("Acme")
    return await service.create_project(organization.id, "Search")


async def test_changes_of_some_limits_at_once_are_all_there(engine, service, project):
    def add(number):
        new = Limit(Scope.PROJECT, "", Kind.REQUESTS, Window.MINUTE, 5, model=f"model-{number}")
        return service.change_limits(LimitChange(Scope.PROJECT, project.id, lambda old: [*old, new]))

    await asyncio.gather(*(add(number) for number in range(AT_ONCE)))
    limits = await service.list_limits(Scope.PROJECT, project.id)
    assert {limit.model for limit in limits} == {f"model-{number}" for number in range(AT_ONCE)}
    query = AuditQuery(actions=["project.updated"])
    events = (await Catalog(engine).audit.list_events(query, PageQuery())).rows
    sizes = sorted((len(event.before["limits"]), len(event.after["limits"])) for event in events)
    assert sizes == [(number, number + 1) for number in range(AT_ONCE)]


async def test_whole_sets_of_limits_at_once_replace_one_another(service, project):
    texts = [f"requests {number + 1}/minute; concurrent 5" for number in range(AT_ONCE)]
    sets = [parse_limits(text, Scope.PROJECT, project.id) for text in texts]
    await asyncio.gather(*(service.set_limits(Scope.PROJECT, project.id, limits) for limits in sets))
    assert set(await service.list_limits(Scope.PROJECT, project.id)) in [set(limits) for limits in sets]


async def test_no_key_of_a_service_account_outlives_it(service, project):
    account, _ = await service.create_account(AccountOrder("indexer", project.id), None)
    order = KeyOrder("k", project.id, service_account=account.id)
    issuing = [service.issue(replace(order, name=f"k{n}")) for n in range(AT_ONCE)]
    await asyncio.gather(*issuing, service.delete_account(project.id, account.id), return_exceptions=True)
    assert all(key.revoked_at_ms is not None for key in await service.list_keys(project.id))


class Interrupted(KeyService):
    """Somebody else changes something right after the first look, and before the transaction."""

    meanwhile = None

    async def get(self, key_id, *, within=None):
        found = await super().get(key_id, within=within)
        await self._interrupt()
        return found

    async def get_project(self, project_id, *, within=None):
        found = await super().get_project(project_id, within=within)
        await self._interrupt()
        return found

    async def _interrupt(self):
        change, self.meanwhile = self.meanwhile, None
        if change is not None:
            await change


@pytest.fixture
def interrupted(engine):
    return Interrupted(Catalog(engine), PEPPERS, MovingClock(), environment="live")


async def states_of(engine, action):
    events = (await Catalog(engine).audit.list_events(AuditQuery(actions=[action]), PageQuery())).rows
    return [(event.before, event.after) for event in events]


async def test_a_rotation_undoes_no_restriction_that_came_meanwhile(engine, service, interrupted, project):
    old = (await service.issue(KeyOrder("k", project.id))).key
    usage = frozenset({"usage"})
    interrupted.meanwhile = service.update_key(old.id, scopes=usage, expires_in_seconds=60)
    new = (await interrupted.rotate(old.id)).key
    assert (new.scopes, new.expires_at_ms) == (usage, new.created_at_ms + 60_000)
    changes = await states_of(engine, "api_key.updated")
    restricted = next(after for before, after in changes if len(before["scopes"]) > 1)
    assert (restricted, restricted) in changes, "the rotation's event has the state right before it"


async def test_a_change_of_a_service_account_undoes_none_that_came_meanwhile(engine, service, interrupted, project):
    account, _ = await service.create_account(AccountOrder("indexer", project.id), None)
    interrupted.meanwhile = service.update_account(project.id, account.id, name="crawler", role=None)
    changed = await interrupted.update_account(project.id, account.id, name=None, role="owner")
    assert (changed.name, changed.role) == ("crawler", "owner")
    assert await service.get_account(project.id, account.id) == changed
    changes = await states_of(engine, "service_account.updated")
    assert ({"name": "crawler", "role": "member"}, {"name": "crawler", "role": "owner"}) in changes
