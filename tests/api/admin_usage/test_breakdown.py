"""A span added up by model, project, key and provider: errors by owner, refused requests and percentiles with it."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api.asking import Tenant, error_of, issue_admin
from fakes.gateway import Gateway
from fakes.ledger import record
from meterhouse.db.refusals import RefusalStore, Refused
from meterhouse.db.tables import HOUR_MS
from meterhouse.identity import Role
from meterhouse.ids import new_request_id

MODEL = "fake/normal?tokens=5"
LONG_AGO = 1_790_000_000 // 3_600 * 3_600
Read = Callable[..., dict[str, Any]]


@pytest.fixture
def read(gateway: Gateway, tenant: Tenant) -> Read:
    def ask(path: str = "/admin/breakdown", **more: object) -> dict[str, Any]:
        words = {"start_time": int(time.time()) - 60, "organization_id": tenant.organization_id, **more}
        query = "&".join(f"{name}={value}" for name, value in words.items() if value is not None)
        status, _, body = gateway.request("GET", f"{path}?{query}", key=gateway.admin_key)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    return ask


def errors(line: dict[str, Any]) -> tuple[int, int, int, int]:
    found = line["errors"]
    return found["caller"], found["limit"], found["provider"], found["us"]


def wait_for_refusals(read: Read, count: int) -> dict[str, Any]:
    """They are written each second."""
    deadline = time.monotonic() + 30
    while (found := read(by="model"))["total"]["refused"] < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_errors_have_owners_also_where_nothing_was_recorded(gateway: Gateway, tenant: Tenant, read: Read) -> None:
    limited = tenant.issue(limits=f"requests 1/hour for {MODEL}")
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "1", "4")
    assert [gateway.chat(MODEL, key=limited["value"])[0] for _ in range(3)] == [200, 429, 429]
    assert gateway.chat("nobody-serves-this", key=tenant.key)[0] == 404
    assert gateway.chat(MODEL, key=tenant.key, temperature=9)[0] == 400
    assert gateway.chat("fake/error-500?tokens=3", key=tenant.key)[0] == 502
    gateway.settle()
    found = wait_for_refusals(read, 4)
    attempts = found["total"]["attempts"]
    assert (found["total"]["requests"], found["total"]["refused"]) == (2, 4)
    assert errors(found["total"]) == (2, 2, attempts - 1, 0)
    lines = {line["name"]: line for line in found["lines"]}
    assert errors(lines[MODEL])[1] == 0, "what is not listed has no name: whoever makes names up makes no rows"
    assert errors(lines[""]) == (2, 2, 0, 0)
    keys = {line["name"]: errors(line) for line in read(by="key")["lines"]}
    assert keys == {limited["id"]: (0, 2, 0, 0), tenant.key_id: (2, 0, attempts - 1, 0)}
    assert [line["name"] for line in read(by="project")["lines"]] == [tenant.project_id]
    providers = read(by="provider")
    assert [errors(line)[1] for line in providers["lines"]] == [0]
    assert errors(providers["total"]) == errors(found["total"])
    plotted = {line["name"]: sum(line["errors"]) for line in read("/admin/series", by="owner")["lines"]}
    assert plotted == {"": 0, "caller": 2, "limit": 2, "provider": attempts - 1}


def test_lines_and_total_agree_while_requests_are_refused(gateway: Gateway, tenant: Tenant, read: Read) -> None:
    store = RefusalStore(gateway.parts.stores.engine)
    hour_ms = int(time.time()) // 3_600 * HOUR_MS
    place = Refused(tenant.organization_id, hour_ms, tenant.project_id, tenant.key_id, "", "caller", "")

    async def refuse_on() -> None:
        for _ in range(100):
            await store.add({place: 1})

    with ThreadPoolExecutor(1) as pool:
        refusing = pool.submit(gateway.run, refuse_on)
        answers = []
        while not refusing.done():
            answers.append(read(by="model"))
        refusing.result()
    assert len({found["total"]["refused"] for found in answers}) > 1
    for found in answers:
        assert sum(line["refused"] for line in found["lines"]) == found["total"]["refused"]


def test_percentiles_are_of_the_whole_span(gateway: Gateway, tenant: Tenant, read: Read) -> None:
    """A thousand records over ten hours, read from the projection, and by the minute from the records."""
    made = [
        record(
            request_id=f"{at_ms:012x}{new_request_id()[12:]}",
            admitted_at_ms=at_ms,
            organization_id=tenant.organization_id,
            project_id=tenant.project_id,
            model="fast" if n % 2 else "slow",
            time_to_first_token_ms=80 if n % 2 else 8_000,
            duration_ms=90_000,
        )
        for n in range(1_000)
        if (at_ms := (LONG_AGO + n * 36) * 1_000)
    ]
    gateway.run(lambda: gateway.parts.stores.ledger.insert(made))
    for start, end, count in ((LONG_AGO, LONG_AGO + 36_000, 1_000), (LONG_AGO + 1, LONG_AGO + 35_990, 999)):
        found = read(start_time=start, end_time=end, by="model")
        assert found["total"]["first_token"]["count"] == found["total"]["duration"]["count"] == count
        lines = {line["name"]: line["first_token"] for line in found["lines"]}
        assert 50 < lines["fast"]["p50_ms"] <= lines["fast"]["p95_ms"] <= 100
        assert 7_500 < lines["slow"]["p50_ms"] <= lines["slow"]["p95_ms"] <= 10_000
        assert 7_500 < found["total"]["first_token"]["p95_ms"] <= 10_000
        assert 60_000 < found["total"]["duration"]["p50_ms"] <= 120_000
    first = read(start_time=LONG_AGO, end_time=LONG_AGO + 36_000, by="model", top=1)
    assert (len(first["lines"]), first["more_lines"]) == (1, 1)
    nothing = read(start_time=LONG_AGO - 7_200, end_time=LONG_AGO - 3_600)
    assert nothing["lines"] == []
    assert nothing["total"]["first_token"] == {"count": 0, "p50_ms": None, "p95_ms": None}


def test_an_owner_and_a_reader_see_their_own(gateway: Gateway, tenant: Tenant) -> None:
    gateway.chat(MODEL, key=tenant.key)
    gateway.settle()
    other = Tenant(gateway)
    start = int(time.time()) - 60
    for role in (Role.OWNER, Role.READER):
        for organization_id, expected in ((tenant.organization_id, 1), (other.organization_id, 0)):
            key = issue_admin(gateway, role, organization_id)
            _, _, body = gateway.request("GET", f"/admin/breakdown?start_time={start}", key=key)
            assert json.loads(body)["total"]["requests"] == expected
        path = f"/admin/breakdown?start_time={start}&organization_id={tenant.organization_id}"
        assert gateway.request("GET", path, key=key)[0] == 404


def test_a_key_reads_what_it_used_itself(gateway: Gateway, tenant: Tenant) -> None:
    other = tenant.issue()["value"]
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "1", "4")
    for key, times in ((tenant.key, 2), (other, 1)):
        for _ in range(times):
            assert gateway.chat(MODEL, key=key)[0] == 200
    gateway.settle()
    for key, times in ((tenant.key, 2), (other, 1)):
        status, _, body = gateway.request("GET", "/v1/usage", key=key)
        found = json.loads(body)
        assert (status, found["object"]) == (200, "usage")
        assert [(line["name"], line["requests"]) for line in found["breakdown"]["lines"]] == [(MODEL, times)]
        [line] = found["series"]["lines"]
        assert sum(line["charge_nanos"]) == found["breakdown"]["total"]["charge_nanos"] > 0
        assert sum(line["requests"]) == times


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/admin/breakdown", "start_time"),
        ("/admin/breakdown?start_time=5&end_time=4", "end_time"),
        ("/admin/breakdown?start_time=5&by=secret", "by"),
        ("/admin/breakdown?start_time=5&top=101", "top"),
        ("/v1/usage?start_time=5", "start_time"),
        ("/v1/usage?start_time=99999999999999999999", "start_time"),
        ("/v1/usage?key_ids=key_x", "key_ids"),
    ],
)
def test_what_cannot_be_asked_is_a_400_that_names_it(gateway: Gateway, tenant: Tenant, path: str, param: str) -> None:
    key = gateway.admin_key if path.startswith("/admin") else tenant.key
    status, _, body = gateway.request("GET", path, key=key)
    assert (status, error_of(body)["param"]) == (400, param)


def test_a_key_that_asks_without_end_is_put_off_and_no_other(gateway: Gateway, tenant: Tenant) -> None:
    other = Tenant(gateway)
    # A report of a time that cannot be asked counts too, and costs nothing.
    asked = [gateway.request("GET", "/v1/usage?start_time=5", key=tenant.key) for _ in range(61)]
    assert [status for status, _, _ in asked[:60]] == [400] * 60
    status, headers, body = asked[60]
    assert (status, error_of(body)["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(headers["retry-after"]) <= 60
    assert gateway.request("GET", "/v1/usage", key=other.key)[0] == 200
