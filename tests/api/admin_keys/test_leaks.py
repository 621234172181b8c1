"""Reporting keys that leaked ends them, at once and for good, and never shows them again."""

import json

from api.asking import Tenant, error_of
from fakes.gateway import Gateway
from meterhouse.identity import Role
from meterhouse.keys.secret import make, parse


def report(gateway: Gateway, *values: str, key: str | None = None) -> list[tuple[str, str | None]]:
    status, _, body = gateway.request(
        "POST", "/admin/keys/leaks", {"values": list(values)}, key=key or gateway.admin_key
    )
    assert status == 200, body
    for value in values:
        assert value.encode() not in body
    return [(row["result"], row["key_id"]) for row in json.loads(body)["data"]]


def test_a_leaked_key_is_revoked_and_named_by_its_id_alone(gateway: Gateway, tenant: Tenant, admin) -> None:
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200
    assert report(gateway, "sk-proj-of-somebody-else", f" {tenant.key}\n") == [
        ("unknown", None),
        ("revoked", tenant.key_id),
    ]
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 401
    assert report(gateway, tenant.key) == [("ended", tenant.key_id)]
    _, events = admin("GET", f"/admin/audit?resource_ids={tenant.key_id}")
    assert [(row["action"], row["after"].get("reason")) for row in events["data"]] == [
        ("api_key.deleted", "leaked"),
        ("api_key.created", None),
    ]


def test_an_id_without_its_secret_ends_nothing(gateway: Gateway, tenant: Tenant) -> None:
    forged = make("dev").value
    stolen_id = tenant.key.split("-")[3]
    parts = forged.split("-")
    assert report(gateway, forged, "-".join([*parts[:3], stolen_id, parts[4]])) == [("unknown", None)] * 2
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200


def test_a_leaked_admin_key_ends_too_even_that_of_the_reporter(gateway: Gateway, tenant: Tenant) -> None:
    issue = gateway.parts.stores.service.issue_admin
    owner = gateway.run(lambda: issue("owner", Role.OWNER, organization_id=tenant.organization_id))
    assert report(gateway, owner.value, tenant.key, key=owner.value) == [
        ("revoked", owner.key.id),
        ("revoked", tenant.key_id),
    ]
    assert gateway.request("GET", "/admin/audit", key=owner.value)[0] == 401


def test_what_is_sent_is_bounded_and_not_shown_in_the_refusal(gateway: Gateway, tenant: Tenant) -> None:
    long = tenant.key + "x" * 1_000
    for values in ([], [long], [tenant.key] * 101, "x", [1], [[tenant.key]], {"a": tenant.key}):
        status, _, body = gateway.request("POST", "/admin/keys/leaks", {"values": values}, key=gateway.admin_key)
        assert (status, error_of(body)["type"]) == (400, "invalid_request_error")
        assert tenant.key.encode() not in body
    assert tenant.key.encode() not in gateway.log_path.read_bytes()
    assert parse(tenant.key) is not None
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200
