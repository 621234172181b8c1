"""A file that is sent to be verified may say anything; only what its signed statement covers is looked up."""

import json
from typing import Any

from api.asking import Tenant, issue_admin
from fakes.gateway import Gateway
from meterhouse.identity import Role
from meterhouse.ledger.seal import COLUMNS

MODEL = "fake/normal?tokens=3"


def line(organization_id: str, sequence: int, **row: Any) -> bytes:
    entry = {
        "kind": "usage",
        "organization_id": organization_id,
        "sequence": sequence,
        "previous_hash": "",
        "hash": "1:x",
        "sealed_at_ms": 0,
        "row": dict.fromkeys(COLUMNS["usage"], "x") | row,
    }
    return json.dumps(entry).encode() + b"\n"


def test_rows_of_another_organization_are_not_looked_up(gateway: Gateway) -> None:
    """They were: a row of one's own making, in front of one's own statement, had the database say what stands there."""
    tenant, stranger = Tenant(gateway), Tenant(gateway)
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "1", "2")
    ids = [gateway.chat(MODEL, key=tenant.key)[1]["x-request-id"].removeprefix("req_") for _ in range(3)]
    gateway.chat(MODEL, key=stranger.key)
    gateway.settle()
    owner = issue_admin(gateway, Role.OWNER, stranger.organization_id)
    status, _, body = gateway.request("GET", "/admin/ledger/export", key=owner)
    assert status == 200, body
    *mine, statement, signature = body.splitlines(keepends=True)

    def verify(*rows: bytes) -> dict[str, Any]:
        status, _, answer = gateway.request(
            "POST", "/admin/ledger/verify", b"".join([*rows, statement, signature]), key=owner
        )
        assert status == 200, answer
        found: dict[str, Any] = json.loads(answer)
        assert found["is_compared"]
        return found

    assert verify(*mine)["is_good"]
    known = ids[0]
    for rows in (
        [line(tenant.organization_id, 1, request_id="00" * 16, attempt=1)],
        [line(tenant.organization_id, 1, request_id=known, attempt=1)],
        [line(tenant.organization_id, 3, request_id="00" * 16, attempt=1), *mine],
        # A gap of the stranger's own chain, and a row that stands in the chain of somebody else.
        [line(stranger.organization_id, 5, request_id=known, attempt=1)],
    ):
        found = verify(*rows)
        assert not found["is_good"]
        text = "\n".join(found["findings"]).replace("-", "")
        assert tenant.key_id not in text
        assert not any(one in text for one in ids if one != known), text
        said = [one for one in found["findings"] if one.endswith("(database)")]
        assert not any(tenant.organization_id in one for one in said), said
