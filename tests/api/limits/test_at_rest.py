"""However a request ends, nothing of it stays reserved, and what is spent is what the ledger says."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.asking import Tenant
from api.limits.arrange import OUTPUT_NANOS, Bench, hold_nanos
from fakes.files import FaultyFiles
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

SHORT = {
    "METERHOUSE_ADMIN_RATE": "100000/minute",
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "0.4",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "0.4",
    "METERHOUSE_TAIL_SECONDS": "0.3",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "2",
    "METERHOUSE_HEAD_SECONDS": "0.3",
}
ROOMY = (
    "requests 9000/hour; tokens 900000/hour; concurrent 90; requests 900/day; tokens 9000000 total; spend 90 USD/month"
)
STREAMS = (
    "normal",
    "error-400",
    "error-429",
    "error-500",
    "error-first",
    "error-mid",
    "html-200",
    "never-answers",
    "never-begins",
    "stall",
    "comments-forever-mid",
    "reset-before-head",
    "reset",
    "eof-early",
    "garbage-not-json",
    "finish-then-hang",
    "finish-missing-eof",
    "usage-missing",
    "usage-huge",
    "infinite",
)
BODIES = ("normal", "error-400", "error-500", "reset-before-head", "eof-mid-event", "html-200", "usage-missing")
REFUSALS = (
    {"model": "nothing/like-it"},
    {"model": "fake/never-priced"},
    {"temperature": 9},
    {"max_tokens": 2**31, "n": 128, "messages": [{"role": "user", "content": "x" * 20_000_000}]},
)


@pytest.fixture(scope="module")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment("fake", up.base_url, **SHORT)
    with Gateway(tmp_path_factory.mktemp("rest") / "data", environment) as running:
        yield running


def leave(bench: Bench, tenant: Tenant, script: str, read_bytes: int) -> None:
    """Ask for a stream, read so much of it, and hang up."""
    bench.price(script)
    connection = http.client.HTTPConnection(bench.gateway.url.removeprefix("http://"), timeout=60)
    body = {"model": f"fake/{script}", "messages": [{"role": "user", "content": "marker=leaver"}], "stream": True}
    headers = {"authorization": f"Bearer {tenant.key}", "content-type": "application/json"}
    before = len(bench.up.truth.by_marker("leaver"))
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    if read_bytes:
        connection.getresponse().read(read_bytes)
    else:
        bench.up.wait_for(lambda truth: len(truth.by_marker("leaver")) > before)
    connection.close()


def test_nothing_stays_reserved_after_any_kind_of_end(bench: Bench) -> None:
    tenant = bench.tenant(organization=ROOMY, project=ROOMY, key=ROOMY)
    for script in {*STREAMS, *BODIES}:
        bench.price(script)
    with ThreadPoolExecutor(len(STREAMS) + len(BODIES)) as threads:
        ends = [threads.submit(bench.chat, tenant, script, stream=True) for script in STREAMS]
        ends += [threads.submit(bench.chat, tenant, script) for script in BODIES]
        ends += [threads.submit(leave, bench, tenant, "infinite", size) for size in (1, 2_000)]
        ends.append(threads.submit(leave, bench, tenant, "never-begins", 0))
        for end in ends:
            end.result(60)
    for fields in REFUSALS:
        request = {"messages": [{"role": "user", "content": "Hello"}], "model": "fake/normal", **fields}
        status, _, _ = bench.gateway.request("POST", "/v1/chat/completions", request, key=tenant.key)
        assert 400 <= status < 500
    bench.gateway.settle()

    rows = bench.charges(tenant)
    sent = [row for row in rows if row["attempt"] > 0]
    assert {"completed", "upstream_failed", "refused", "client_gone"} <= {row["outcome"] for row in sent}
    totals = {
        "requests 900/day": sum(row["requests"] for row in rows),
        "tokens 9000000 total": sum(row["input_tokens"] + row["output_tokens"] for row in rows),
        "spend 90 USD/month": sum(row["charge_nanos"] for row in rows),
        "concurrent 90": 0,
    }
    assert totals["requests 900/day"] == len(STREAMS) + len(BODIES) + 3
    for (scope, text), (spent, reserved) in bench.standing(tenant).items():
        assert reserved == 0, (scope, text)
        assert spent == totals.get(text, spent), (scope, text)
    requests = {spent for (_, text), (spent, _) in bench.standing(tenant).items() if text == "requests 9000/hour"}
    assert requests == {len(STREAMS) + len(BODIES) + 3}


def test_a_request_that_reaches_no_provider_gives_everything_back(up: FakeUpstream, tmp_path: Path) -> None:
    files = FaultyFiles()
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url), files=files) as gateway:
        bench = Bench(gateway, up)
        tenant = bench.tenant(key="requests 9/day; concurrent 2; spend 1 USD/month")
        bench.price("normal")
        files.fail_writes()
        answer = bench.chat(tenant, "normal", text="marker=unwritable")
        files.heal()
        assert (answer.status, answer.error["code"]) == (503, "ledger_unavailable")
        assert up.truth.by_marker("unwritable") == []
        assert set(bench.standing(tenant).values()) == {(0, 0)}
        bench.close()


# --- leases


@pytest.fixture
def leased(request: pytest.FixtureRequest, up: FakeUpstream, tmp_path: Path) -> Iterator[Bench]:
    """A gateway whose leases last so long and are renewed so often as the parameter says."""
    lease_seconds, renew_seconds = request.param
    settings = {**SHORT, "METERHOUSE_LEASE_SECONDS": lease_seconds, "METERHOUSE_RENEW_SECONDS": renew_seconds}
    settings |= {"METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "60", "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "60"}
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url, **settings)) as gateway:
        made = Bench(gateway, up)
        yield made
        made.close()


def look(bench: Bench, tenant: Tenant) -> tuple[int, int]:
    """Let the meter reap, as every request does, and return what the budget has spent and reserved."""
    other = bench.chat(tenant, "error-400")
    assert other.status == 400
    ((spent, reserved),) = bench.standing(tenant).values()
    return spent, reserved


@pytest.mark.parametrize("leased", [("1.5", "0.1")], indirect=True)
def test_a_long_stream_keeps_its_hold_as_long_as_it_is_renewed(leased: Bench) -> None:
    tenant = leased.tenant(organization="spend 5 USD/month")
    held = leased.open(tenant, "gate?tokens=5", stream=True, max_tokens=100)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert look(leased, tenant) == (0, hold_nanos(held.text, 100))
        time.sleep(0.05)
    leased.up.release()
    (record,) = leased.gateway.records(held.result().request_id)
    assert look(leased, tenant) == (record.charge_nanos, 0)


@pytest.mark.parametrize("leased", [("0.5", "600")], indirect=True)
def test_without_renewal_a_hold_comes_back_and_its_late_end_is_charged_once(leased: Bench) -> None:
    tenant = leased.tenant(organization="spend 5 USD/month")
    held = leased.open(tenant, "gate?tokens=5", stream=True, max_tokens=100)
    leased.wait(lambda: look(leased, tenant) == (0, 0))
    leased.up.release()
    answer = held.result()
    assert answer.status == 200
    (record,) = leased.gateway.records(answer.request_id)
    assert record.charge_nanos > 5 * OUTPUT_NANOS
    assert look(leased, tenant) == (record.charge_nanos, 0)
