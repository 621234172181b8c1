"""The audit log and the pages of it, on SQLite and on PostgreSQL."""

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from meterhouse.audit import Action, Change
from meterhouse.db.audit import AuditQuery
from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import writing
from meterhouse.db.organizations import Organization, Project
from meterhouse.db.paging import PageQuery
from meterhouse.identity import COMMAND_LINE, Actor, ActorKind, Author, Role

OWNER = Author(Actor(ActorKind.ADMIN_KEY, "key_o", Role.OWNER, "org_1"), "192.0.2.7", "req_1")


@pytest.fixture
def catalog(engine):
    return Catalog(engine)


async def events(catalog, **conditions):
    return (await catalog.audit.list_events(AuditQuery(**conditions), PageQuery())).rows


async def test_an_event_says_who_did_what_from_where(catalog):
    change = Change(Action.PROJECT_UPDATED, "proj_1", "org_1", "proj_1", {"name": "a"}, {"name": "b"})
    written = await catalog.audit.write(OWNER, change)
    assert await events(catalog) == [written]
    assert (written.action, written.target_id, written.project_id) == ("project.updated", "proj_1", "proj_1")
    assert (written.actor_kind, written.actor_id, written.actor_role) == ("admin_key", "key_o", "owner")
    assert (written.address, written.request_id) == ("192.0.2.7", "req_1")
    assert (written.before, written.after) == ({"name": "a"}, {"name": "b"})


async def test_a_change_and_its_event_are_committed_together_or_not_at_all(catalog):
    organization = Organization("org_1", "Acme", 5)

    async def go_halfway():
        async with catalog.changing("org_1") as inside:
            await inside.organizations.insert_organization(organization)
            await inside.audit.write(OWNER, Change(Action.ORGANIZATION_CREATED, "org_1", "org_1"))
            assert await inside.organizations.find_organization("org_1") == organization
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        await go_halfway()
    assert await events(catalog) == []
    assert await catalog.organizations.list_organizations() == []


@pytest.mark.parametrize("statement", ["UPDATE audit_event SET actor_id = 'x'", "DELETE FROM audit_event"])
async def test_an_event_is_never_changed(catalog, engine, statement):
    await catalog.audit.write(COMMAND_LINE, Change(Action.PRICE_CREATED, "price_1"))
    with pytest.raises(exc.IntegrityError, match="append-only"):
        async with writing(engine) as connection:
            await connection.execute(sa.text(statement))


async def test_events_are_found_by_what_they_are_about(catalog):
    for action, target, organization, project in (
        (Action.PROJECT_CREATED, "proj_1", "org_1", "proj_1"),
        (Action.API_KEY_CREATED, "key_1", "org_1", "proj_1"),
        (Action.PROJECT_CREATED, "proj_2", "org_2", "proj_2"),
        (Action.PRICE_CREATED, "price_1", None, None),
    ):
        author = OWNER if organization == "org_1" else COMMAND_LINE
        await catalog.audit.write(author, Change(action, target, organization, project))

    async def targets(**conditions):
        return {event.target_id for event in await events(catalog, **conditions)}

    assert await targets() == {"proj_1", "key_1", "proj_2", "price_1"}
    assert await targets(organization_id="org_1") == {"proj_1", "key_1"}
    assert await targets(project_ids=["proj_2", "proj_3"]) == {"proj_2"}
    assert await targets(actions=["project.created"]) == {"proj_1", "proj_2"}
    assert await targets(actor_ids=["key_o"], actions=["project.created"]) == {"proj_1"}
    assert await targets(target_ids=["price_1"]) == {"price_1"}
    assert await targets(from_ms=2**50) == set()
    assert await targets(until_ms=1) == set()


async def fill(catalog, count=7):
    for organization_id in ("org_1", "org_2"):
        await catalog.organizations.insert_organization(Organization(organization_id, "Acme", 1))
    for number in range(count):
        # Two at a time share their moment, so that the id decides.
        await catalog.organizations.insert_project(Project(f"proj_{number}", "org_1", "p", 10 + number // 2))
    await catalog.organizations.insert_project(Project("proj_other", "org_2", "p", 10))


async def ids(catalog, page, **options):
    found = await catalog.organizations.page_projects("org_1", page, **options)
    return [project.id.removeprefix("proj_") for project in found.rows], found.has_more


async def test_pages_go_forth_and_back_in_both_orders(catalog):
    await fill(catalog)
    assert await ids(catalog, PageQuery(3)) == (["0", "1", "2"], True)
    assert await ids(catalog, PageQuery(3, after="proj_2")) == (["3", "4", "5"], True)
    assert await ids(catalog, PageQuery(3, after="proj_5")) == (["6"], False)
    assert await ids(catalog, PageQuery(3, before="proj_5")) == (["2", "3", "4"], True)
    assert await ids(catalog, PageQuery(3, before="proj_2")) == (["0", "1"], False)
    assert await ids(catalog, PageQuery(9, after="proj_1", before="proj_4")) == (["2", "3"], False)
    falling = {"is_newest_first": True}
    assert await ids(catalog, PageQuery(3, **falling)) == (["6", "5", "4"], True)
    assert await ids(catalog, PageQuery(3, after="proj_4", **falling)) == (["3", "2", "1"], True)
    assert await ids(catalog, PageQuery(3, before="proj_4", **falling)) == (["6", "5"], False)


async def test_a_page_goes_on_behind_a_row_that_is_listed_no_more(catalog):
    await fill(catalog)
    await catalog.organizations.archive_project("proj_2", 99)
    assert await ids(catalog, PageQuery(3, after="proj_2"), has_archived=False) == (["3", "4", "5"], True)


@pytest.mark.parametrize("anchor", ["proj_other", "proj_x", "'; --"])
async def test_nothing_is_behind_a_row_that_is_not_there_or_anothers(catalog, anchor):
    await fill(catalog)
    assert await ids(catalog, PageQuery(3, after=anchor)) == ([], False)
    assert await ids(catalog, PageQuery(3, before=anchor)) == ([], False)
