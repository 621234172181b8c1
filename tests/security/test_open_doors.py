"""Open doors (CVE-2023-48022): what answers without a key, and what a key of the wrong kind opens.

Every operation that the OpenAPI page describes is asked, so that one which is added later is asked too.
"""

import json
import re

import pytest

from api.asking import error_of
from fakes.gateway import Gateway
from meterhouse.keys.secret import make

OPEN = {
    "GET /",
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
}
"""What says nothing of anybody, changes nothing, and costs nothing."""
WRONG = {
    "no key": {},
    "a key that was never made": {"authorization": f"Bearer {make('dev').value}"},
    "a key of the administration that was never made": {"authorization": f"Bearer {make('admin').value}"},
}
WRONG_SIDE = {"a key that was never made", "a key of the administration that was never made"}


def operations(gateway: Gateway) -> list[tuple[str, str]]:
    described = json.loads(gateway.request("GET", "/openapi.json", key=gateway.admin_key)[2])
    found = [(method.upper(), path) for path, entry in described["paths"].items() for method in entry]
    assert len(found) > 60
    return found


@pytest.mark.parametrize("name", WRONG)
def test_no_operation_answers_who_has_no_good_key(gateway: Gateway, name: str) -> None:
    for method, path in operations(gateway):
        if f"{method} {path}" in OPEN:
            continue
        target = re.sub(r"\{[^}]+\}", "x", path)
        body = None if method == "GET" else {}
        status, _, answer = gateway.request(method, target, body, key="", headers=WRONG[name])
        # A key for the other side of the house is told so before it is looked up.
        assert status == 401 or (status == 403 and name in WRONG_SIDE), (method, path, status, answer)
        if not path.startswith("/v1/messages"):
            codes = {"invalid_api_key", "missing_api_key"} if status == 401 else {"permission_denied"}
            assert error_of(answer)["code"] in codes, (method, path, answer)


def test_what_is_open_changes_nothing(gateway: Gateway) -> None:
    for operation in OPEN:
        method, path = operation.split()
        assert method == "GET"
        assert gateway.request(method, path, key="")[0] in {200, 401, 403}, path
