"""The ledger's records one by one, receipts with price and seal, exports and their check; who may see whose."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from api.asking import Tenant, error_of, issue_admin
from fakes.gateway import Gateway
from meterhouse.exports import load_signing_key
from meterhouse.identity import Role
from meterhouse.ledger.export import ExportReader, check_export

MODEL = "fake/normal?tokens=3"


@pytest.fixture
def requests(gateway: Gateway, tenant: Tenant) -> list[str]:
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "1", "2")
    ids = [gateway.chat(MODEL, key=tenant.key)[1]["x-request-id"] for _ in range(5)]
    gateway.settle()
    return ids


def get(gateway: Gateway, path: str, key: str | None = None) -> Any:
    status, _, body = gateway.request("GET", path, key=key or gateway.admin_key)
    assert status == 200, body
    return json.loads(body)


def test_records_are_listed_page_by_page_the_newest_first(
    gateway: Gateway, tenant: Tenant, requests: list[str]
) -> None:
    today = datetime.now(UTC).date().isoformat()
    owner = issue_admin(gateway, Role.OWNER, tenant.organization_id)
    for key, path in (
        (gateway.admin_key, f"organization_id={tenant.organization_id}"),
        (gateway.admin_key, f"key_id={tenant.key_id}&day={today}"),
        (gateway.admin_key, f"project_id={tenant.project_id}&start_time={int(time.time()) - 300}"),
        (owner, f"end_time={int(time.time()) + 5}"),
    ):
        seen, after = [], ""
        while True:
            page = get(gateway, f"/admin/ledger/records?{path}&limit=2{after}", key)
            seen += [one["request_id"] for one in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert seen == requests[::-1]
    everybody = get(gateway, "/admin/ledger/records?limit=100")["data"]
    ids = [one["request_id"] for one in everybody]
    assert set(requests) <= set(ids)
    assert ids == sorted(ids, reverse=True)
    more = get(gateway, f"/admin/ledger/records?limit=100&after={everybody[2]['id']}&start_time=1000")["data"]
    assert [one["id"] for one in more[:90]] == [one["id"] for one in everybody[3:93]]


def test_a_record_is_shown_as_it_was_recorded(gateway: Gateway, tenant: Tenant, requests: list[str]) -> None:
    [shown] = get(gateway, f"/admin/ledger/records?request_id={requests[0]}")["data"]
    [stored] = gateway.records(requests[0])
    assert (shown["id"], shown["object"]) == (f"{requests[0]}_1", "usage_record")
    assert (shown["key_id"], shown["outcome"], shown["exactness"]) == (tenant.key_id, "completed", "reported")
    assert shown["usage"]["output_tokens"] == 3
    assert shown["charge_nanos"] == stored.charge_nanos == sum(shown["charges"].values())
    assert float(shown["charge_usd"]) == pytest.approx(stored.charge_nanos / 1e9)


def test_a_receipt_has_price_and_seal(gateway: Gateway, tenant: Tenant, requests: list[str]) -> None:
    get_export(gateway, gateway.admin_key, f"organization_id={tenant.organization_id}")  # seals what has no seal yet
    receipt = get(gateway, f"/admin/ledger/receipts/{requests[-1]}")
    [attempt] = receipt["attempts"]
    assert (receipt["organization_id"], receipt["model"]) == (tenant.organization_id, MODEL)
    assert receipt["charge_nanos"] == attempt["charge_nanos"] > 0
    assert attempt["price"]["id"] == attempt["price_id"]
    assert {line["kind"] for line in attempt["price"]["components"]} == {"input", "output"}
    assert attempt["seal"]["sequence"] == 5
    assert attempt["seal"]["hash"] != attempt["seal"]["previous_hash"]


def get_export(gateway: Gateway, key: str, query: str = "") -> bytes:
    status, headers, body = gateway.request("GET", f"/admin/ledger/export?{query}", key=key)
    assert (status, headers["content-type"]) == (200, "application/jsonl")
    assert headers["content-disposition"].startswith("attachment")
    return body


def verify(gateway: Gateway, body: bytes, key: str | None = None) -> dict[str, Any]:
    status, _, answer = gateway.request("POST", "/admin/ledger/verify", body, key=key or gateway.admin_key)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    return found


def test_an_export_is_signed_and_verifies_here_and_offline(
    gateway: Gateway, tenant: Tenant, requests: list[str], tmp_path: Path
) -> None:
    owner = issue_admin(gateway, Role.OWNER, tenant.organization_id)
    body = get_export(gateway, owner)
    rows = [json.loads(line) for line in body.splitlines()]
    assert len(rows) == len(requests) + 2
    assert {row["organization_id"] for row in rows[:-2]} == {tenant.organization_id}
    for key in (owner, gateway.admin_key):
        found = verify(gateway, body, key)
        assert (found["is_good"], found["is_compared"], found["findings"]) == (True, True, [])
        assert found["totals"]["usage_rows"] == len(requests)
    path = tmp_path / "export.jsonl"
    path.write_bytes(body)
    public = load_signing_key(gateway.data).public_key()
    assert list(check_export(ExportReader(path), public)) == []
    pem = gateway.request("GET", "/admin/ledger/public-key", key=owner)[2]
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----")


def test_a_changed_export_is_found_out_and_not_compared(gateway: Gateway, tenant: Tenant, requests: list[str]) -> None:
    owner = issue_admin(gateway, Role.OWNER, tenant.organization_id)
    body = get_export(gateway, owner)
    lines = body.splitlines(keepends=True)
    for changed in (
        body.replace(b'"outcome":"completed"', b'"outcome":"cut"', 1),
        b"".join(lines[1:]),
        b"".join(lines[:-2]),
        b"".join([*lines[:-1], b'{"signature":"AAAA"}\n']),
        b"not an export",
    ):
        found = verify(gateway, changed, owner)
        assert not found["is_good"]
        assert found["findings"]
    assert not verify(gateway, b"".join([*lines[:-1], b'{"signature":"AAAA"}\n']), owner)["is_compared"]


def test_nobody_sees_what_is_anothers(gateway: Gateway, tenant: Tenant, requests: list[str]) -> None:
    stranger_organization = Tenant(gateway).organization_id
    stranger = issue_admin(gateway, Role.OWNER, stranger_organization)
    assert get(gateway, "/admin/ledger/records", stranger)["data"] == []
    mine = get(gateway, f"/admin/ledger/records?request_id={requests[0]}")["data"][0]["id"]
    assert get(gateway, f"/admin/ledger/records?after={mine}", stranger)["data"] == []
    assert get(gateway, f"/admin/ledger/records?request_id={requests[0]}", stranger)["data"] == []
    assert get(gateway, f"/admin/ledger/records?project_id={tenant.project_id}", stranger)["data"] == []
    for path in (
        f"/admin/ledger/records?organization_id={tenant.organization_id}",
        f"/admin/ledger/records?key_id={tenant.key_id}",
        f"/admin/ledger/receipts/{requests[0]}",
        f"/admin/ledger/export?organization_id={tenant.organization_id}",
    ):
        status, _, body = gateway.request("GET", path, key=stranger)
        assert (status, error_of(body)["code"]) == (404, "not_found"), path
    body = get_export(gateway, gateway.admin_key, f"organization_id={tenant.organization_id}")
    found = verify(gateway, body, stranger)
    assert (found["is_good"], found["is_compared"]) == (True, False)
    assert len(get_export(gateway, stranger).splitlines()) == 2


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("records?after=x", "after"),
        ("records?request_id=x", "request_id"),
        ("records?day=tomorrow", "day"),
        ("records?day=2026-11-28&start_time=5", "day"),
        ("records?limit=0", "limit"),
        ("records?project_id=" + "x" * 257, "project_id"),
        ("export?organization_id=" + "x" * 257, "organization_id"),
        ("export?organization_id=%0E", "organization_id"),
        ("export?organization_id=x%22;y%0D%0Aset-cookie:z", "organization_id"),
        ("records?models=x", "models"),
        ("export?start_time=-1", "start_time"),
    ],
)
def test_what_cannot_be_asked_is_a_400_that_names_it(gateway: Gateway, path: str, param: str) -> None:
    status, _, body = gateway.request("GET", f"/admin/ledger/{path}", key=gateway.admin_key)
    assert (status, error_of(body)["param"]) == (400, param)


def test_a_check_of_nothing_is_a_400(gateway: Gateway) -> None:
    status, _, body = gateway.request("POST", "/admin/ledger/verify", b"", key=gateway.admin_key)
    assert (status, error_of(body)["code"]) == (400, "invalid_value")
