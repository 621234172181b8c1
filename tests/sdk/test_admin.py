"""``client.admin.organization`` of the official SDK drives the gateway: both clients, on SQLite and PostgreSQL.

Every answer is valid by the SDK's own types, strictly (``fakes.sdk``).
"""

import time
from collections.abc import Iterator

import openai
import pytest

from fakes.fleet import PEPPER
from fakes.gateway import MESSAGES, Gateway, provider_environment
from fakes.sdk import StrictSdk
from fakes.upstream import FakeUpstream
from meterhouse.identity import Role

MONTH = {"currency": "USD", "interval": "month"}
NO_LIMIT = 4 * 10**15


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(
    request: pytest.FixtureRequest, up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    settings = {"METERHOUSE_ADMIN_RATE": "100000/minute"}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        template = request.getfixturevalue("_migrated_template")
        settings["METERHOUSE_DATABASE_URL"] = server.create_database(template)
        settings["METERHOUSE_KEY_PEPPER"] = PEPPER
    environment = provider_environment("fake", up.base_url, **settings)
    with Gateway(tmp_path_factory.mktemp(request.param) / "data", environment) as gateway:
        yield gateway


@pytest.fixture
def sdk(site: Gateway) -> Iterator[StrictSdk]:
    """The client of the owner of an organization of its own: one form on each database, which is enough for most."""
    is_sync = "postgres" not in str(site.environment.get("METERHOUSE_DATABASE_URL"))
    with owners_sdk(site, openai.OpenAI if is_sync else openai.AsyncOpenAI) as made:
        yield made


@pytest.fixture(params=[openai.OpenAI, openai.AsyncOpenAI])
def either_sdk(request: pytest.FixtureRequest, site: Gateway) -> Iterator[StrictSdk]:
    """The same in both forms on each database."""
    with owners_sdk(site, request.param) as made:
        yield made


def owners_sdk(site: Gateway, form: type[openai.OpenAI | openai.AsyncOpenAI]) -> StrictSdk:
    service = site.parts.stores.service
    organization = site.run(lambda: service.create_organization("Acme"))
    issued = site.run(lambda: service.issue_admin("owner", Role.OWNER, organization_id=organization.id))
    return StrictSdk(form(base_url=site.base_url, admin_api_key=issued.value, api_key="none", max_retries=0))


def test_projects(either_sdk: StrictSdk) -> None:
    made = either_sdk.ask(lambda org: org.projects.with_raw_response.create(name="Search"))
    assert (made.name, made.status, made.archived_at) == ("Search", "active", None)
    assert abs(made.created_at - time.time()) < 60
    assert either_sdk.ask(lambda org: org.projects.with_raw_response.retrieve(made.id)) == made
    renamed = either_sdk.ask(lambda org: org.projects.with_raw_response.update(made.id, name="Find"))
    assert (renamed.id, renamed.name) == (made.id, "Find")
    others = [either_sdk.ask(lambda org: org.projects.with_raw_response.create(name="Other")).id for _ in range(3)]
    page = either_sdk.ask(lambda org: org.projects.with_raw_response.list(limit=2))
    assert ([row.id for row in page.data], page.has_more) == ([made.id, others[0]], True)
    assert page.last_id == others[0]
    assert [row.id for row in either_sdk.collect(lambda org: org.projects.list(limit=2))] == [made.id, *others]
    archived = either_sdk.ask(lambda org: org.projects.with_raw_response.archive(made.id))
    assert archived.status == "archived"
    assert archived.archived_at >= archived.created_at
    assert [row.id for row in either_sdk.collect(lambda org: org.projects.list())] == others
    assert made.id in {row.id for row in either_sdk.collect(lambda org: org.projects.list(include_archived=True))}
    with pytest.raises(openai.ConflictError, match="archived"):
        either_sdk.run(either_sdk.client.admin.organization.projects.update(made.id, name="x"))


def test_a_service_account_and_its_keys(either_sdk: StrictSdk, site: Gateway) -> None:
    project = either_sdk.ask(lambda org: org.projects.with_raw_response.create(name="Search"))
    accounts = lambda org: org.projects.service_accounts.with_raw_response  # noqa: E731
    made = either_sdk.ask(lambda org: accounts(org).create(project.id, name="indexer"))
    assert (made.name, made.role) == ("indexer", "member")
    assert site.chat("simulator-instant", key=made.api_key.value)[0] == 200
    found = either_sdk.ask(lambda org: accounts(org).retrieve(made.id, project_id=project.id))
    assert (found.id, found.name, found.role) == (made.id, "indexer", "member")
    changed = either_sdk.ask(
        lambda org: accounts(org).update(made.id, project_id=project.id, name="crawler", role="owner")
    )
    assert (changed.name, changed.role) == ("crawler", "owner")
    alone = either_sdk.ask(lambda org: accounts(org).create(project.id, name="x", create_service_account_only=True))
    assert (alone.role, alone.api_key) == ("none", None)
    more = either_sdk.ask(
        lambda org: org.projects.service_accounts.api_keys.with_raw_response.create(
            made.id, project_id=project.id, name="second", scopes=["inference"], expires_in_seconds=600
        )
    )
    assert (more.name, more.expires_at - more.created_at) == ("second", 600)
    assert site.chat("simulator-instant", key=more.value)[0] == 200
    assert site.request("GET", "/v1/limits", key=more.value)[0] == 403, "it has one scope"
    assert {
        row.id for row in either_sdk.collect(lambda org: org.projects.service_accounts.list(project.id, limit=1))
    } == {
        made.id,
        alone.id,
    }
    gone = either_sdk.ask(lambda org: accounts(org).delete(made.id, project_id=project.id))
    assert (gone.id, gone.deleted) == (made.id, True)
    for value in (made.api_key.value, more.value):
        assert site.chat("simulator-instant", key=value)[0] == 401
    with pytest.raises(openai.NotFoundError):
        either_sdk.run(
            either_sdk.client.admin.organization.projects.service_accounts.retrieve(made.id, project_id=project.id)
        )


def test_the_keys_of_a_project(sdk: StrictSdk, site: Gateway) -> None:
    project = sdk.ask(lambda org: org.projects.with_raw_response.create(name="Search"))
    keys = lambda org: org.projects.api_keys.with_raw_response  # noqa: E731
    made = sdk.ask(lambda org: org.projects.service_accounts.with_raw_response.create(project.id, name="a"))
    plain = site.run(lambda: site.parts.stores.service.issue(_order(project.id)))
    page = sdk.ask(lambda org: keys(org).list(project.id))
    assert [row.id for row in page.data] == [made.api_key.id, plain.key.id]
    assert (page.data[0].owner.type, page.data[0].owner.service_account.id) == ("service_account", made.id)
    assert page.data[1].owner.type is None, "it was issued without an account"
    assert sdk.ask(lambda org: keys(org).list(project.id, owner_project_access="inactive")).data == []
    found = sdk.ask(lambda org: keys(org).retrieve(made.api_key.id, project_id=project.id))
    assert found == page.data[0]
    assert made.api_key.value not in found.model_dump_json()
    changed = sdk.ask(lambda org: keys(org).update(plain.key.id, project_id=project.id, scopes=["usage"]))
    assert changed.id == plain.key.id
    assert site.chat("simulator-instant", key=plain.value)[0] == 403
    sdk.ask(lambda org: keys(org).update(plain.key.id, project_id=project.id, scopes=[], expires_in_seconds=600))
    assert site.chat("simulator-instant", key=plain.value)[0] == 200
    gone = sdk.ask(lambda org: keys(org).delete(made.api_key.id, project_id=project.id))
    assert gone.deleted
    assert site.chat("simulator-instant", key=made.api_key.value)[0] == 401
    assert [row.id for row in sdk.collect(lambda org: org.projects.api_keys.list(project.id))] == [plain.key.id]
    with pytest.raises(openai.NotFoundError):
        sdk.run(sdk.client.admin.organization.projects.api_keys.retrieve(made.api_key.id, project_id=project.id))


def test_the_rate_limits_of_a_project_bind_all_its_keys(sdk: StrictSdk, site: Gateway) -> None:
    project, keys = _project_with_keys(sdk)
    limits = lambda org: org.projects.rate_limits.with_raw_response  # noqa: E731
    rows = {row.model: row for row in sdk.ask(lambda org: limits(org).list_rate_limits(project, limit=1_000)).data}
    assert rows["simulator-instant"].max_requests_per_1_minute == NO_LIMIT
    name = rows["simulator-instant"].id
    changed = sdk.ask(lambda org: limits(org).update_rate_limit(name, project_id=project, max_requests_per_1_minute=3))
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (3, NO_LIMIT)
    statuses = [site.chat("simulator-instant", key=key)[0] for key in (*keys, *keys)]
    assert statuses == [200, 200, 200, 429]
    assert site.chat("simulator", key=keys[0], max_tokens=1)[0] == 200, "another model is not bound"
    sdk.ask(
        lambda org: limits(org).update_rate_limit(
            name, project_id=project, max_requests_per_1_minute=NO_LIMIT, max_tokens_per_1_minute=900_000
        )
    )
    found = sdk.ask(lambda org: limits(org).list_rate_limits(project, after="rl-simulator", limit=1)).data
    assert [(row.id, row.max_requests_per_1_minute, row.max_tokens_per_1_minute) for row in found] == [
        (name, NO_LIMIT, 900_000)
    ]
    assert site.chat("simulator-instant", key=keys[0])[0] == 200
    many = sdk.collect(lambda org: org.projects.rate_limits.list_rate_limits(project, limit=40))
    assert [row.model for row in many] == sorted(rows)


def test_model_permissions_bind_every_key_at_once(sdk: StrictSdk, site: Gateway) -> None:
    project, keys = _project_with_keys(sdk)
    permissions = lambda org: org.projects.model_permissions.with_raw_response  # noqa: E731
    before = sdk.ask(lambda org: permissions(org).retrieve(project))
    assert (before.mode, before.api_model_ids) == ("deny_list", [])
    assert [site.chat("simulator-instant", key=key)[0] for key in keys] == [200, 200]
    sdk.ask(lambda org: permissions(org).update(project, mode="deny_list", model_ids=["simulator/simulator-instant"]))
    assert [site.chat("simulator-instant", key=key)[0] for key in keys] == [403, 403]
    assert site.chat("simulator/simulator-instant", key=keys[0])[0] == 403, "under each of its names"
    listed = _listed(site, keys[0])
    assert "simulator" in listed
    assert "simulator-instant" not in listed
    allowed = sdk.ask(lambda org: permissions(org).update(project, mode="allow_list", model_ids=["simulator-instant"]))
    assert (allowed.mode, allowed.api_model_ids) == ("allow_list", ["simulator-instant"])
    assert [site.chat("simulator-instant", key=key)[0] for key in keys] == [200, 200]
    assert _listed(site, keys[1]) == ["simulator-instant"]
    assert site.chat("fake/normal", key=keys[0])[0] == 403
    assert sdk.ask(lambda org: permissions(org).delete(project)).deleted
    assert site.chat("fake/normal", key=keys[0])[0] == 200
    with pytest.raises(openai.NotFoundError):
        sdk.run(sdk.client.admin.organization.projects.model_permissions.delete(project))


def test_the_spend_limit_of_a_project_is_a_budget(sdk: StrictSdk, site: Gateway) -> None:
    project, keys = _project_with_keys(sdk)
    limits = lambda org: org.projects.spend_limit.with_raw_response  # noqa: E731
    with pytest.raises(openai.NotFoundError):
        sdk.run(sdk.client.admin.organization.projects.spend_limit.retrieve(project))
    made = sdk.ask(lambda org: limits(org).update(project, threshold_amount=2_500, **MONTH))
    assert (made.threshold_amount, made.enforcement.status) == (2_500, "inactive")
    (limit,) = site.limits(keys[0])
    assert (limit["limit"], limit["scope"]) == ("spend 25 USD/month", "project")
    assert {site.chat("simulator-instant", key=key)[0] for key in keys * 3} == {200}
    site.settle()
    # Less than what has been spent by now, and more than the next request would hold.
    site.run(lambda: site.parts.stores.service.set_limits(*_tiny_budget(project)))
    found = sdk.ask(lambda org: limits(org).retrieve(project))
    assert (found.threshold_amount, found.enforcement.status) == (0, "enforcing"), "whole cents, rounded down"
    with site.client(keys[1]) as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="simulator-instant", messages=MESSAGES, max_tokens=1)
    assert caught.value.code == "insufficient_quota"
    raised = sdk.ask(lambda org: limits(org).update(project, threshold_amount=1, **MONTH))
    assert raised.enforcement.status == "inactive"
    assert site.chat("simulator-instant", key=keys[1])[0] == 200
    assert sdk.ask(lambda org: limits(org).delete(project)).deleted
    assert site.limits(keys[0]) == []


def test_admin_keys(sdk: StrictSdk, site: Gateway) -> None:
    keys = lambda org: org.admin_api_keys.with_raw_response  # noqa: E731
    made = sdk.ask(lambda org: keys(org).create(name="CI", expires_in_seconds=600))
    assert (made.name, made.owner.role, made.expires_at - made.created_at) == ("CI", "owner", 600)
    reader = sdk.ask(lambda org: keys(org).create(name="Auditor", extra_body={"role": "reader"}))
    with openai.OpenAI(base_url=site.base_url, admin_api_key=reader.value, api_key="none") as theirs:
        assert list(theirs.admin.organization.projects.list()) == []
        with pytest.raises(openai.PermissionDeniedError, match="reader"):
            theirs.admin.organization.projects.create(name="x")
    listed = sdk.ask(lambda org: keys(org).list(order="desc", limit=2))
    assert [row.id for row in listed.data] == [reader.id, made.id]
    assert made.value not in listed.model_dump_json()
    found = sdk.ask(lambda org: keys(org).retrieve(made.id))
    assert (found.id, found.redacted_value) == (made.id, made.redacted_value)
    assert sdk.ask(lambda org: keys(org).delete(made.id)).deleted
    assert site.request("GET", "/v1/organization/projects", key=made.value)[0] == 401
    with pytest.raises(openai.NotFoundError):
        sdk.run(sdk.client.admin.organization.admin_api_keys.retrieve(made.id))
    with pytest.raises(openai.PermissionDeniedError, match="operator"):
        sdk.run(sdk.client.admin.organization.admin_api_keys.create(name="x", extra_body={"role": "operator"}))


def test_the_audit_log(sdk: StrictSdk) -> None:
    project, _ = _project_with_keys(sdk)
    sdk.ask(lambda org: org.projects.with_raw_response.update(project, name="Find"))
    sdk.ask(
        lambda org: org.projects.rate_limits.with_raw_response.update_rate_limit(
            "rl-simulator", project_id=project, max_requests_per_1_minute=5
        )
    )
    logs = lambda org: org.audit_logs.with_raw_response  # noqa: E731
    page = sdk.ask(lambda org: logs(org).list(project_ids=[project]))
    assert [row.type for row in page.data] == [
        "rate_limit.updated",
        "project.updated",
        *(["api_key.created", "service_account.created"] * 2),
        "project.created",
    ]
    limited, renamed, key, account, *_, created = page.data
    assert limited.rate_limit_updated.id == "rl-simulator"
    assert limited.rate_limit_updated.changes_requested.max_requests_per_1_minute == 5
    assert (renamed.project.id, renamed.project_updated.changes_requested.title) == (project, "Find")
    assert key.api_key_created.data.scopes == ["inference", "usage"]
    assert account.service_account_created.data.role == "member"
    assert created.project_created.data.title == "Search"
    assert created.actor.type == "api_key"
    everything = sdk.collect(lambda org: org.audit_logs.list(limit=2))
    assert len(everything) == len(page.data) + 1, "the admin key of this test was made before"

    def types(**conditions: object) -> set[str]:
        return {row.type for row in sdk.ask(lambda org: logs(org).list(**conditions)).data}

    assert types(event_types=["project.created", "project.updated"]) == {"project.created", "project.updated"}
    assert types(actor_ids=[created.actor.api_key.id]) == {row.type for row in page.data}
    assert types(actor_ids=["key_x"]) == set()
    assert types(resource_ids=[project], event_types=["project.updated"]) == {"project.updated"}
    assert types(effective_at={"gte": created.effective_at, "lte": int(time.time()) + 1}) >= {"project.created"}
    assert types(effective_at={"lt": created.effective_at - 100}) == set()
    assert types(effective_at={"gt": int(time.time()) + 100}) == set()
    before = sdk.ask(lambda org: logs(org).list(before=renamed.id)).data
    assert [row.id for row in before] == [limited.id]


def test_what_is_not_here_is_not_found(sdk: StrictSdk) -> None:
    for resource in ("users", "invites", "certificates", "groups", "roles", "external_keys"):
        with pytest.raises(openai.NotFoundError) as caught:
            sdk.run(getattr(sdk.client.admin.organization, resource).list())
        assert caught.value.code == "unknown_url"


def test_an_operator_chooses_the_organization_and_sets_its_spend_limit(site: Gateway) -> None:
    service = site.parts.stores.service
    acme = site.run(lambda: service.create_organization("Acme"))
    options = {"base_url": site.base_url, "admin_api_key": site.admin_key, "api_key": "none", "max_retries": 0}
    with StrictSdk(openai.OpenAI(organization=acme.id, **options)) as sdk:
        project, keys = _project_with_keys(sdk)
        limits = lambda org: org.spend_limit.with_raw_response  # noqa: E731
        made = sdk.ask(lambda org: limits(org).update(threshold_amount=100, **MONTH))
        assert made.threshold_amount == 100
        assert sdk.ask(lambda org: limits(org).retrieve()) == made
        assert [row["limit"] for row in site.limits(keys[0])] == ["spend 1 USD/month"]
        assert sdk.ask(lambda org: limits(org).delete()).deleted
        assert site.limits(keys[0]) == []
        assert [row.id for row in sdk.collect(lambda org: org.projects.list())] == [project]
    with StrictSdk(openai.OpenAI(**options)) as oldest:
        assert project not in {row.id for row in oldest.collect(lambda org: org.projects.list())}
    with StrictSdk(openai.OpenAI(organization="org_x", **options)) as nobody, pytest.raises(openai.NotFoundError):
        nobody.client.admin.organization.projects.list()


def _listed(site: Gateway, key: str) -> list[str]:
    with site.client(key) as client:
        return [row.id for row in client.models.list()]


def _project_with_keys(sdk: StrictSdk) -> tuple[str, list[str]]:
    project = sdk.ask(lambda org: org.projects.with_raw_response.create(name="Search"))
    accounts = [
        sdk.ask(lambda org: org.projects.service_accounts.with_raw_response.create(project.id, name="a"))
        for _ in range(2)
    ]
    return project.id, [account.api_key.value for account in accounts]


def _order(project_id: str):
    from meterhouse.keys.service import KeyOrder  # noqa: PLC0415 - only here

    return KeyOrder(name="plain", project_id=project_id)


def _tiny_budget(project_id: str):
    from meterhouse.limits.limit import parse_limits  # noqa: PLC0415 - only here
    from meterhouse.metering import Scope  # noqa: PLC0415 - only here

    return Scope.PROJECT, project_id, parse_limits("spend 0.0001 USD/month", Scope.PROJECT, project_id)
