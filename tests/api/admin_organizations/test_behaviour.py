"""Organizations and projects."""

from api.asking import Tenant
from fakes.gateway import Gateway


def test_an_organization_and_a_project_are_made_and_listed(tenant: Tenant, admin) -> None:
    status, organizations = admin("GET", "/admin/organizations?limit=100")
    assert (status, organizations["object"]) == (200, "list")
    assert all(row["object"] == "organization" for row in organizations["data"])
    status, projects = admin("GET", f"/admin/projects?organization_id={tenant.organization_id}")
    (project,) = projects["data"]
    assert (status, project["id"], project["object"]) == (200, tenant.project_id, "project")
    assert (project["name"], project["archived_at"]) == ("Search", None)


def test_organizations_are_paged(gateway: Gateway, admin) -> None:
    made = [Tenant(gateway).organization_id for _ in range(3)]
    seen: list[str] = []
    after = ""
    while True:
        _, page = admin("GET", f"/admin/organizations?limit=2{after}")
        seen += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert len(seen) == len(set(seen))
    assert set(made) <= set(seen)


def test_the_keys_of_an_archived_project_stop(gateway: Gateway, tenant: Tenant, admin) -> None:
    other = Tenant(gateway)
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200
    status, archived = admin("POST", f"/admin/projects/{tenant.project_id}/archive")
    assert status == 200
    assert archived["archived_at"] is not None
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 401
    assert gateway.request("GET", "/v1/models", key=tenant.key)[0] == 401
    assert gateway.chat("fake/normal", key=other.key)[0] == 200
    assert admin("POST", f"/admin/projects/{tenant.project_id}/archive") == (200, archived)


def test_an_unknown_field_is_refused(admin) -> None:
    for path, body in (
        ("/admin/organizations", {"name": "x", "id": "org_mine"}),
        ("/admin/projects", {"name": "x", "organization_id": "org_x", "archived_at": 1}),
    ):
        status, answer = admin("POST", path, body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert answer["error"]["param"] in {"id", "archived_at"}
