"""Requests are seen as they run: begun, how far, how they ended; by whom they may be, and by nobody else."""

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from api.asking import Tenant, error_of, marked
from api.live.watcher import Watcher
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.identity import Role

HEAD = {"type", "at", "request_id", "organization_id", "project_id", "key_id", "model"}
PACED = "fake/normal?tokens=30&duration_ms=1500"


def test_a_key_sees_its_own_requests_run(gateway: Gateway, tenant: Tenant) -> None:
    gateway.set_price("fake", PACED.removeprefix("fake/"), "1", "4")
    with Watcher(gateway.url, "/v1/live", tenant.key) as watcher:
        other = gateway.chat("fake/normal", key=Tenant(gateway).key)[1]["x-request-id"]
        request_id = gateway.chat(PACED, key=tenant.key, stream=True)[1]["x-request-id"]
        started, *progress, finished = watcher.wait_finished(request_id)
        seen = {event.get("request_id") for event in watcher.events}
    assert started["type"] == "request.started"
    assert set(started) == HEAD | {"operation", "is_streamed"}
    assert (started["organization_id"], started["key_id"]) == (tenant.organization_id, tenant.key_id)
    assert progress
    last = progress[-1]
    assert last["type"] == "request.progress"
    assert set(last) == HEAD | {
        *("provider", "attempt", "elapsed_ms", "output_tokens", "time_to_first_token_ms", "tokens_per_second"),
        "charge_nanos",
    }
    assert 0 < last["charge_nanos"] - last["output_tokens"] * 4_000 < 1_000 * 1_000, "and the input, by its length"
    assert 0 < last["output_tokens"] < 60, "an estimate: a token per event, or four bytes"
    assert 0 < last["tokens_per_second"] < 100
    (record,) = gateway.records(request_id)
    assert (finished["outcome"], finished["status"]) == ("completed", 200)
    assert (finished["output_tokens"], finished["charge_nanos"]) == (30, record.charge_nanos)
    assert (finished["provider"], finished["model"]) == ("fake", PACED)
    assert "error_detail" not in finished
    assert seen == {request_id}
    assert other not in seen


def test_an_operator_sees_all_organizations_or_one(gateway: Gateway) -> None:
    mine, other = Tenant(gateway), Tenant(gateway)
    with ExitStack() as stack:
        everybody = stack.enter_context(Watcher(gateway.url, "/admin/live", gateway.admin_key))
        path = f"/admin/live?organization_id={mine.organization_id}"
        one = stack.enter_context(Watcher(gateway.url, path, gateway.admin_key))
        ids = [gateway.chat("fake/normal", key=tenant.key)[1]["x-request-id"] for tenant in (mine, other)]
        for request_id in ids:
            kinds = [event["type"] for event in everybody.wait_finished(request_id)]
            assert (kinds[0], kinds[-1]) == ("request.started", "request.finished")
        one.wait_finished(ids[0])
        assert {event["organization_id"] for event in one.events} == {mine.organization_id}


def test_an_owner_and_a_reader_see_their_own_organization_and_no_other(gateway: Gateway) -> None:
    mine, other = Tenant(gateway), Tenant(gateway)
    service = gateway.parts.stores.service
    for role in (Role.OWNER, Role.READER):
        issued = gateway.run(partial(service.issue_admin, role, role, organization_id=mine.organization_id))
        path = f"/admin/live?organization_id={other.organization_id}"
        assert gateway.request("GET", path, key=issued.value)[0] == 404
        with Watcher(gateway.url, "/admin/live", issued.value) as watcher:
            ids = [gateway.chat("fake/normal", key=tenant.key)[1]["x-request-id"] for tenant in (other, mine)]
            watcher.wait_finished(ids[1])
            assert {event["request_id"] for event in watcher.events} == {ids[1]}


def test_failures_and_refusals_are_seen_too(gateway: Gateway) -> None:
    tenant = Tenant(gateway, limits="requests 2/hour")
    with Watcher(gateway.url, "/v1/live", tenant.key) as watcher:
        failed = gateway.chat("fake/error-500", key=tenant.key)[1]["x-request-id"]
        broken = gateway.chat("fake/eof-early", key=tenant.key, stream=True)[1]["x-request-id"]
        refused = gateway.chat("fake/normal", key=tenant.key)[1]["x-request-id"]
        ends = [watcher.wait_finished(request_id)[-1] for request_id in (failed, broken, refused)]
    assert [end["error_code"] for end in ends] == [
        *("upstream_unavailable", "upstream_stream_ended", "rate_limit_exceeded")
    ]
    assert [end.get("outcome") for end in ends] == ["upstream_failed", "upstream_failed", None]
    assert [end["status"] for end in ends] == [502, 200, 429]


def test_who_comes_late_sees_what_runs(gateway: Gateway, tenant: Tenant, up: FakeUpstream) -> None:
    marker, messages = marked()
    with gateway.client(tenant.key).with_streaming_response.chat.completions.create(
        model="fake/normal?gate=2", messages=messages, stream=True
    ) as answer:
        up.wait_for(lambda truth: any(attempt.is_held for attempt in truth.by_marker(marker)))
        with Watcher(gateway.url, "/v1/live", tenant.key) as watcher:
            seen = watcher.wait_for(lambda events: events)[0]
            up.release()
            answer.read()
            watcher.wait_finished(seen["request_id"])
    assert (seen["type"], seen["model"]) == ("request.progress", "fake/normal?gate=2")


def test_nothing_is_made_while_nobody_listens(gateway: Gateway, tenant: Tenant) -> None:
    live = gateway.parts.live.live
    with Watcher(gateway.url, "/v1/live", tenant.key):
        assert live.is_on
    gateway.call(lambda: live._wanted.update(dict.fromkeys(live._wanted, 0.0)))
    deadline = time.monotonic() + 60
    while live.is_on or gateway.parts.inference.checkpointer._on_watched is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    gateway.chat("fake/normal", key=tenant.key)
    assert (live._outbox, live._waiting, live.listeners) == ({}, 0, set())


def test_a_revoked_key_stops_watching(gateway: Gateway, tenant: Tenant) -> None:
    with Watcher(gateway.url, "/v1/live", tenant.key) as watcher:
        gateway.request("DELETE", f"/admin/keys/{tenant.key_id}", key=gateway.admin_key)
        assert watcher.has_ended.wait(60)
        assert watcher.events[-1]["error"]["code"] == "invalid_api_key"


def test_who_may_not_watch(gateway: Gateway, tenant: Tenant) -> None:
    asked = [
        ("/v1/live", "", 401, "invalid_api_key"),
        ("/v1/live", gateway.admin_key, 403, "permission_denied"),
        ("/admin/live", tenant.key, 403, "permission_denied"),
        ("/admin/live", "sk-mh-admin-nobody", 401, "invalid_api_key"),
    ]
    for path, key, expected, code in asked:
        status, _, body = gateway.request("GET", path, key=key)
        assert (status, error_of(body)["code"]) == (expected, code)


def test_a_key_can_only_watch_so_often(gateway: Gateway, tenant: Tenant) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Watcher(gateway.url, "/v1/live", tenant.key))
        status, headers, body = gateway.request("GET", "/v1/live", key=tenant.key)
        assert (status, error_of(body)["code"]) == (429, "rate_limit_exceeded")
        assert headers["retry-after"]
        stack.enter_context(Watcher(gateway.url, "/v1/live", Tenant(gateway).key))


def test_a_server_that_stops_ends_those_who_watch_and_does_not_wait_for_them(tmp_path: Path) -> None:
    with (
        Gateway(tmp_path / "data", {"METERHOUSE_SHUTDOWN_SECONDS": "600"}) as gateway,
        Watcher(gateway.url, "/admin/live", gateway.admin_key) as watcher,
    ):
        gateway.stop()  # which waits for half a minute at most
        assert watcher.has_ended.wait(60)
    assert not [line for line in gateway.log_lines() if line["level"] == "error"]
