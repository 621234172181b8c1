"""Routes that an operator writes down, and what the list of routes shows of how deployments fare."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from api.asking import Tenant, error_of, marked
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment("one", up.base_url) | provider_environment("two", up.base_url)
    with Gateway(
        tmp_path_factory.mktemp("routes") / "data", {**environment, "METERHOUSE_SHIP_SECONDS": "0.01"}
    ) as found:
        yield found


@pytest.fixture
def ask(gateway: Gateway) -> Ask:
    def send(method: str, path: str, body: object = None) -> tuple[int, Any]:
        status, _, answer = gateway.request(method, path, body, key=gateway.admin_key)
        return status, Tenant.decode(answer) if answer else None

    return send


def target(provider: str, upstream_model: str = "normal", **fields: int) -> dict[str, Any]:
    return {"provider": provider, "upstream_model": upstream_model, **fields}


def conditions(ask: Ask, model: str) -> dict[str, dict[str, Any]]:
    (route,) = ask("GET", f"/admin/routes?model={model}")[1]["data"]
    return {deployment["id"]: deployment for deployment in route["deployments"]}


def test_a_written_route_is_served_listed_and_removed(gateway: Gateway, ask: Ask) -> None:
    status, route = ask("PUT", "/admin/routes/team/fast", {"deployments": [target("two"), target("one", order=1)]})
    assert (status, route["model"], route["limited_as"]) == (200, "team/fast", "team/fast")
    assert [deployment["id"] for deployment in route["deployments"]] == ["two/normal", "one/normal"]
    assert "team/fast" in [model["id"] for model in Tenant.decode(gateway.request("GET", "/v1/models")[2])["data"]]
    _, headers, _ = gateway.chat("team/fast")
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.model, record.provider, record.upstream_model) == ("team/fast", "two", "normal")
    assert ask("DELETE", "/admin/routes/team/fast")[0] == 204
    assert gateway.chat("team/fast")[0] == 404
    assert ask("DELETE", "/admin/routes/team/fast")[0] == 404


def test_a_deployment_is_switched_off_and_on_again(gateway: Gateway, ask: Ask) -> None:
    def providers(model: str, times: int = 6) -> set[str]:
        answers = [gateway.chat(model) for _ in range(times)]
        assert {status for status, _, _ in answers} == {200}
        return {gateway.records(headers["x-request-id"])[0].provider for _, headers, _ in answers}

    both = [target("one"), target("two", order=1)]
    ask("PUT", "/admin/routes/switched", {"deployments": [{**both[0], "is_on": False}, both[1]]})
    (route,) = ask("GET", "/admin/routes?model=switched")[1]["data"]
    shown = [(one["id"], one["is_on"], one["state"]) for one in route["deployments"]]
    assert shown == [("two/normal", True, "closed"), ("one/normal", False, "off")]
    assert providers("switched") == {"two"}
    fields = ("provider", "upstream_model", "order", "weight")
    again = [{name: one[name] for name in fields} for one in route["deployments"]]
    ask("PUT", "/admin/routes/switched", {"deployments": again})
    assert providers("switched") == {"one"}


def test_what_is_left_of_a_route_that_is_off_is_nothing_and_it_can_be_switched_on(gateway: Gateway, ask: Ask) -> None:
    off = [{**target("one"), "is_on": False}]
    status, route = ask("PUT", "/admin/routes/alone", {"deployments": off})
    assert (status, [one["state"] for one in route["deployments"]]) == (200, ["off"])
    assert gateway.chat("alone")[0] == 404
    assert "alone" not in [model["id"] for model in Tenant.decode(gateway.request("GET", "/v1/models")[2])["data"]]
    assert conditions(ask, "alone")["one/normal"]["is_on"] is False
    ask("PUT", "/admin/routes/alone", {"deployments": [target("one")]})
    assert gateway.chat("alone")[0] == 200


def test_requests_are_spread_by_weight(gateway: Gateway, ask: Ask) -> None:
    ask("PUT", "/admin/routes/spread", {"deployments": [target("one", weight=3), target("two", weight=1)]})
    for _ in range(40):
        assert gateway.chat("spread", max_tokens=1)[0] == 200
    counts = Counter(row["provider"] for row in gateway.all_records() if row["model"] == "spread")
    assert sum(counts.values()) == 40
    assert 18 <= counts["one"] <= 39, "three of four on average"


def test_a_failing_deployment_is_passed_over_and_shown(gateway: Gateway, ask: Ask) -> None:
    first, second = "one/error-500?tokens=9", "two/normal"
    ask("PUT", "/admin/routes/failing", {"deployments": [target(*first.split("/", 1)), target("two", order=1)]})
    for _ in range(5):
        gateway.chat("failing")
    found = conditions(ask, "failing")
    assert found[first]["failures"] >= 3
    assert (found[second]["state"], found[second]["reason"]) == ("closed", "")


def test_an_exhausted_account_takes_its_deployment_out_and_tells_operators_not_tenants(
    gateway: Gateway, up: FakeUpstream, ask: Ask
) -> None:
    script = "insufficient-quota?tokens=8"
    ask("PUT", "/admin/routes/empty", {"deployments": [target("one", script), target("two", order=1)]})
    markers = []
    for _ in range(3):
        marker, messages = marked()
        markers.append(marker)
        status, _, body = gateway.chat("empty", messages=messages)
        assert status == 200, body
    asked = [[attempt.request["model"] for attempt in up.truth.by_marker(marker)] for marker in markers]
    assert asked == [[script, "normal"], ["normal"], ["normal"]], "it is asked once, and not again"
    shown = conditions(ask, "empty")[f"one/{script}"]
    assert shown["state"] == "account"
    assert "insufficient_quota" in shown["reason"]
    assert 50 < shown["retry_in_seconds"] <= 60
    metrics = gateway.request("GET", "/metrics", key="")[2].decode()
    (count,) = re.findall(r'^meterhouse_deployments_without_account{provider="one"} (\d)', metrics, re.MULTILINE)
    assert int(count) >= 1
    assert 'meterhouse_attempts_total{outcome="upstream_failed",provider="one"}' in metrics
    assert "meterhouse_extra_attempts_total" in metrics
    lines = [line for line in gateway.log_lines() if line["event"] == "deployment.opened"]
    (line,) = [line for line in lines if line["deployment"] == f"one/{script}"]
    assert (line["level"], line["state"]) == ("error", "account")


def test_where_nobody_else_can_answer_the_tenant_learns_that_it_is_not_their_fault(gateway: Gateway) -> None:
    for _ in range(2):
        status, headers, body = gateway.chat("one/error-402?tokens=7")
        assert (status, error_of(body)["code"], headers["x-should-retry"]) == (502, "upstream_account", "false")
    records = gateway.records(headers["x-request-id"])
    assert [(record.attempt, record.outcome, record.charge_nanos) for record in records] == [(0, "not_sent", 0)]


def test_what_is_under_way_is_counted_and_given_back(gateway: Gateway, up: FakeUpstream, ask: Ask) -> None:
    ask("PUT", "/admin/routes/busy", {"deployments": [target("one", "gate?gate=3"), target("two", "gate?gate=3")]})
    client = gateway.client()
    streams = [
        client.chat.completions.create(model="busy", stream=True, messages=[{"role": "user", "content": "x"}])
        for _ in range(4)
    ]
    for stream in streams:
        next(iter(stream))
    assert [deployment["in_flight"] for deployment in conditions(ask, "busy").values()] == [2, 2], "least busy first"
    up.wait_for(lambda _: up.release(4, name="gate") or True)
    for stream in streams:
        list(stream)
    client.close()
    gateway.settle()
    assert [deployment["in_flight"] for deployment in conditions(ask, "busy").values()] == [0, 0]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("x", {"deployments": []}, "deployments"),
        ("x", {"deployments": [target("nobody")]}, "deployments[0].provider"),
        ("x", {"deployments": [target("one"), target("two", "a b")]}, "deployments[1].upstream_model"),
        ("x", {"deployments": [target("one", weight=0)]}, "deployments.0.weight"),
        ("a%20b", {"deployments": [target("one")]}, "model"),
    ],
)
def test_a_route_that_cannot_work_is_refused(path: str, body: dict[str, Any], param: str, ask: Ask) -> None:
    status, answer = ask("PUT", f"/admin/routes/{path}", body)
    assert (status, answer["error"]["param"]) == (400, param)
