"""Listing, reading and revoking keys: no secret is in any of it."""

import json
import threading

from api.asking import Tenant, error_of, events_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream


def test_a_list_has_no_secret(gateway: Gateway, tenant: Tenant) -> None:
    values = [tenant.key, *(tenant.issue()["value"] for _ in range(2))]
    status, _, body = gateway.request("GET", f"/admin/keys?project_id={tenant.project_id}", key=gateway.admin_key)
    listing = json.loads(body)
    assert status == 200
    assert [key["object"] for key in listing["data"]] == ["key"] * 3
    stored = gateway.run(lambda: gateway.parts.stores.service.list_keys(tenant.project_id))
    for key in listing["data"]:
        assert not {"value", "hash", "pepper_version", "secret"} & set(key)
    for value in values:
        assert value.encode() not in body
        assert value.rpartition("-")[2][:8].encode() not in body
    assert len(stored) == 3
    for key in stored:
        assert key.hash.encode() not in body


def test_a_list_is_paged(tenant: Tenant, admin) -> None:
    ids = {tenant.key_id, *(tenant.issue()["id"] for _ in range(4))}
    seen: list[str] = []
    after = ""
    for expected in (2, 2, 1):
        _, page = admin("GET", f"/admin/keys?project_id={tenant.project_id}&limit=2{after}")
        assert len(page["data"]) == expected
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        assert page["has_more"] is (expected == 2)
        seen += [key["id"] for key in page["data"]]
        after = f"&after={page['last_id']}"
    assert len(seen) == 5
    assert set(seen) == ids


def test_a_revoked_key_stops_at_once(gateway: Gateway, tenant: Tenant, admin) -> None:
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200
    status, revoked = admin("DELETE", f"/admin/keys/{tenant.key_id}")
    assert status == 200
    assert revoked["revoked_at"] is not None
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 401
    assert admin("DELETE", f"/admin/keys/{tenant.key_id}") == (200, revoked), "a second time changes nothing"


def test_a_running_stream_of_a_revoked_key_is_cut(gateway: Gateway, up: FakeUpstream, tenant: Tenant, admin) -> None:
    marker, messages = marked()
    answers: list[tuple[int, dict[str, str], bytes]] = []

    def ask() -> None:
        answers.append(gateway.chat("fake/infinite?pace_ms=10", key=tenant.key, messages=messages, stream=True))

    asking = threading.Thread(target=ask)
    asking.start()
    up.wait_for(lambda truth: any(attempt.tokens >= 5 for attempt in truth.by_marker(marker)))
    admin("DELETE", f"/admin/keys/{tenant.key_id}")
    asking.join(60)
    assert not asking.is_alive(), "the stream goes on"
    ((status, headers, body),) = answers
    assert status == 200
    *chunks, last = events_of(body)
    assert chunks
    assert error_of(last)["code"] == "key_revoked"
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.outcome, record.exactness) == ("cut", "counted")
    assert record.usage.output_tokens >= 5
    up.wait_for(lambda truth: truth.by_marker(marker)[0].ended_by == "client_gone")


def test_the_last_use_is_noted_without_a_secret(gateway: Gateway, tenant: Tenant, admin) -> None:
    gateway.chat("fake/normal", key=tenant.key)
    gateway.run(gateway.parts.stores.keyring.flush_last_used)
    _, found = admin("GET", f"/admin/keys/{tenant.key_id}")
    assert found["last_used_at"] >= found["created_at"]
