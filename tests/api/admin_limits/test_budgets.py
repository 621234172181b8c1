"""Everybody's budgets and where they stand, from the meter."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from api.asking import Tenant, issue_admin
from fakes.gateway import Gateway
from meterhouse.identity import Role

MODEL = "fake/normal?tokens=7"


def budgets(gateway: Gateway, key: str, query: str = "") -> list[dict[str, Any]]:
    status, _, body = gateway.request("GET", f"/admin/budgets{query}", key=key)
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["data"]
    return found


def test_budgets_say_what_is_spent_reserved_and_free(gateway: Gateway, tenant: Tenant, admin) -> None:
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "1", "4")
    owners = {"organization": tenant.organization_id, "project": tenant.project_id, "key": tenant.key_id}
    for scope, scope_id in owners.items():
        limits = "spend 2 USD/month; requests 99/minute; spend 1 USD/day for fake/normal"
        assert admin("PUT", "/admin/limits", {"scope": scope, "scope_id": scope_id, "limits": limits})[0] == 200
    assert gateway.chat(MODEL, key=tenant.key)[0] == 200
    gateway.settle()
    [charged] = [r["charge_nanos"] for r in gateway.all_records() if r["organization_id"] == tenant.organization_id]
    found = budgets(gateway, gateway.admin_key, f"?organization_id={tenant.organization_id}")
    assert [(one["scope"], one["scope_id"]) for one in found] == [row for row in owners.items() for _ in range(2)]
    for one in found:
        spent = charged if one["window"] == "month" else 0
        amount = 2 * 10**9 if one["window"] == "month" else 10**9
        assert (one["kind"], one["amount"], one["spent"], one["reserved"]) == ("spend", amount, spent, 0)
        assert one["free"] == amount - spent
        assert one["object"] == "budget"
        assert one["organization_id"] == tenant.organization_id
        assert one["name"] in {"Acme", "Search", "a key"}
    [first] = budgets(gateway, gateway.admin_key, f"?organization_id={tenant.organization_id}&limit=1")
    rest = budgets(gateway, gateway.admin_key, f"?organization_id={tenant.organization_id}&after={first['id']}")
    assert [first, *rest] == found


def test_an_owner_and_a_reader_see_their_own(gateway: Gateway, tenant: Tenant, admin) -> None:
    other = Tenant(gateway)
    body = {"scope": "project", "scope_id": tenant.project_id, "limits": "spend 2 USD/month"}
    assert admin("PUT", "/admin/limits", body)[0] == 200
    [mine] = budgets(gateway, gateway.admin_key, f"?organization_id={tenant.organization_id}")
    for role in (Role.OWNER, Role.READER):
        assert budgets(gateway, issue_admin(gateway, role, tenant.organization_id)) == [mine]
        stranger = issue_admin(gateway, role, other.organization_id)
        assert budgets(gateway, stranger) == budgets(gateway, stranger, f"?after={mine['id']}") == []
        path = f"/admin/budgets?organization_id={tenant.organization_id}"
        assert gateway.request("GET", path, key=stranger)[0] == 404


def test_what_the_meter_does_not_know_is_unknown_and_the_rest_is_told(tmp_path: Path) -> None:
    with Gateway(tmp_path / "data") as gateway:
        known, unknown = Tenant(gateway), Tenant(gateway)
        for tenant in (known, unknown):
            body = {"scope": "project", "scope_id": tenant.project_id, "limits": "spend 2 USD/month"}
            assert gateway.request("PUT", "/admin/limits", body, key=gateway.admin_key)[0] == 200
        [met] = budgets(gateway, gateway.admin_key, f"?organization_id={known.organization_id}")
        assert (met["standing"], met["spent"]) == ("known", 0)
        rename(gateway, "usage_hour", "usage_hour_away")  # of what is spent the ledger can tell nobody
        by_owner = {one["organization_id"]: one for one in budgets(gateway, gateway.admin_key)}
        assert by_owner[known.organization_id] == met
        unmet = by_owner[unknown.organization_id]
        assert (unmet["standing"], unmet["amount"], unmet["usd"]) == ("unknown", 2 * 10**9, {"amount": "2"})
        assert [unmet[name] for name in ("spent", "reserved", "free", "resets_at")] == [None] * 4
        rename(gateway, "usage_hour_away", "usage_hour")
        [unmet] = budgets(gateway, gateway.admin_key, f"?organization_id={unknown.organization_id}")
        assert (unmet["standing"], unmet["free"]) == ("known", 2 * 10**9)


def rename(gateway: Gateway, old: str, new: str) -> None:
    with closing(sqlite3.connect(gateway.data / "ledger.db", timeout=10)) as connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
        connection.commit()
