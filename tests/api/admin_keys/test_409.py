"""Keys and projects in a state that does not allow it."""

from api.asking import Tenant, error_of
from fakes.gateway import Gateway


def assert_conflict(gateway: Gateway, path: str, body: object) -> None:
    status, headers, answer = gateway.request("POST", path, body, key=gateway.admin_key)
    assert (status, error_of(answer)["code"]) == (409, "conflict")
    assert headers["x-should-retry"] == "false", "the SDK would retry a 409"


def test_a_revoked_key_cannot_be_rotated(gateway: Gateway, tenant: Tenant) -> None:
    gateway.request("DELETE", f"/admin/keys/{tenant.key_id}", key=gateway.admin_key)
    assert_conflict(gateway, f"/admin/keys/{tenant.key_id}/rotate", {})


def test_an_archived_project_gets_no_keys(gateway: Gateway, tenant: Tenant) -> None:
    gateway.request("POST", f"/admin/projects/{tenant.project_id}/archive", key=gateway.admin_key)
    assert_conflict(gateway, "/admin/keys", {"name": "k", "project_id": tenant.project_id})
    assert_conflict(gateway, f"/admin/keys/{tenant.key_id}/rotate", {})
