"""Keys and projects that do not exist."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/admin/keys/key_doesnotexist", None),
        ("DELETE", "/admin/keys/key_doesnotexist", None),
        ("POST", "/admin/keys/key_doesnotexist/rotate", {}),
        ("POST", "/admin/keys", {"name": "k", "project_id": "proj_doesnotexist"}),
        ("POST", "/admin/projects", {"name": "p", "organization_id": "org_doesnotexist"}),
        ("POST", "/admin/projects/proj_doesnotexist/archive", None),
        ("PUT", "/admin/limits", {"scope": "key", "scope_id": "key_doesnotexist", "limits": "requests 1/minute"}),
        ("GET", "/admin/limits?scope=project&scope_id=proj_doesnotexist", None),
    ],
)
def test_what_does_not_exist_is_not_found(gateway: Gateway, method: str, path: str, body: object) -> None:
    status, _, answer = gateway.request(method, path, body, key=gateway.admin_key)
    error = error_of(answer)
    assert (status, error["type"], error["code"]) == (404, "invalid_request_error", "not_found")
    assert "doesnotexist" in error["message"]
