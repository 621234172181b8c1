"""Issuing and rotating keys."""

import json
import time

import pytest

from api.asking import Tenant, marked
from fakes.gateway import Gateway
from meterhouse.keys.secret import parse


def test_a_key_is_issued_with_all_that_was_asked(gateway: Gateway, tenant: Tenant) -> None:
    issued = tenant.issue(
        name="Search backend",
        expires_in_seconds=3_600,
        models=["simulator-instant", "fake/normal"],
        limits="requests 600/minute; tokens 200000/minute; concurrent 20; spend 25 USD/month",
        ip_ranges=["127.0.0.1", "192.0.2.0/24"],
        service_account="indexer",
    )
    assert issued["object"] == "key"
    assert (issued["name"], issued["project_id"]) == ("Search backend", tenant.project_id)
    assert issued["organization_id"] == tenant.organization_id
    assert issued["models"] == ["fake/normal", "simulator-instant"]
    assert sorted(issued["limits"]) == sorted(
        ["requests 600/minute", "tokens 200000/minute", "concurrent 20", "spend 25 USD/month"]
    )
    assert issued["ip_ranges"] == ["127.0.0.1/32", "192.0.2.0/24"]
    assert issued["service_account"] == "indexer"
    assert issued["expires_at"] - issued["created_at"] in {3_600, 3_601}
    assert abs(issued["created_at"] - time.time()) < 60
    assert issued["revoked_at"] is None
    parsed = parse(issued["value"])
    assert parsed is not None
    assert parsed.key_id == issued["id"]
    assert gateway.chat("simulator-instant", key=issued["value"])[0] == 200


def test_the_value_is_shown_this_once(tenant: Tenant, admin) -> None:
    issued = tenant.issue()
    status, found = admin("GET", f"/admin/keys/{issued['id']}")
    assert status == 200
    assert issued.pop("value").startswith("sk-mh-dev-")
    assert found == issued


def test_both_keys_of_a_rotation_work_and_count_on_one_meter(gateway: Gateway) -> None:
    tenant = Tenant(gateway, limits="requests 3/hour")
    status, _, body = gateway.request(
        "POST", f"/admin/keys/{tenant.key_id}/rotate", {"overlap_seconds": 600}, key=gateway.admin_key
    )
    successor = json.loads(body)
    assert status == 201
    assert successor["id"] != tenant.key_id
    assert successor["limits"] == ["requests 3/hour"]
    statuses = [gateway.chat("fake/normal", key=key)[0] for key in (tenant.key, successor["value"]) * 2]
    assert statuses == [200, 200, 200, 429]
    assert [limit["spent"] for limit in gateway.limits(successor["value"])] == [3]


def test_after_the_overlap_only_the_successor_works(gateway: Gateway, tenant: Tenant) -> None:
    _, _, body = gateway.request(
        "POST", f"/admin/keys/{tenant.key_id}/rotate", {"overlap_seconds": 0}, key=gateway.admin_key
    )
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 401
    assert gateway.chat("fake/normal", key=json.loads(body)["value"])[0] == 200


def test_a_rotation_without_a_body_field_takes_the_default_overlap(gateway: Gateway, tenant: Tenant) -> None:
    status, _, _ = gateway.request("POST", f"/admin/keys/{tenant.key_id}/rotate", {}, key=gateway.admin_key)
    assert status == 201
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200


@pytest.mark.parametrize("scopes", [["usage"], ["inference"], ["inference", "usage"]])
def test_a_key_has_the_scopes_that_were_asked(tenant: Tenant, scopes: list[str]) -> None:
    assert tenant.issue(scopes=scopes)["scopes"] == scopes


def test_no_secret_is_in_the_log_or_the_database(gateway: Gateway, tenant: Tenant) -> None:
    _, messages = marked()
    gateway.chat("fake/normal", key=tenant.key, messages=messages)
    gateway.settle()
    secret = tenant.key.rpartition("-")[2]
    for path in [gateway.log_path, *gateway.data.rglob("*")]:
        if path.is_file() and path.name != "dev.env":
            assert secret.encode() not in path.read_bytes(), path
