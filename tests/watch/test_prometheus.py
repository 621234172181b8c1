"""Every expression of every rule and panel has a value in a real Prometheus that scrapes real workers."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from architecture.tree import ROOT
from fakes.daemon import find_program
from fakes.fleet import ServeProcess
from fakes.prometheus_server import SCRAPE_SECONDS, PrometheusServer

RULES = ROOT / "infra" / "prometheus" / "rules.yml"
DASHBOARDS = sorted((ROOT / "infra" / "grafana" / "dashboards").glob("*.json"))
COMPARISON = re.compile(r"(meterhouse:[a-z0-9_:]+) ([<>]) ([0-9.e+]+)")
PROMISES = {f"P{number}" for number in range(1, 9)}
PRICED = "fake/normal?tokens=20&duration_ms=200"


@pytest.fixture(scope="module")
def prometheus(fleet: ServeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    with PrometheusServer(tmp_path_factory.mktemp("prometheus"), fleet.bind, RULES) as server:
        server.wait_for('up{job="meterhouse"}', "== 1")
        yield server


def panels() -> Iterator[tuple[str, str]]:
    """Give every panel's title and expression, with an interval in place of Grafana's own."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "15s")


def cause_everything(fleet: ServeProcess) -> None:
    """Cause what the figures are about: answers, failures of each owner, refusals, a limit of each kind."""
    fleet.set_price("fake", "normal", "1", "4")
    keys = [fleet.new_key(limits)[1] for limits in ("requests 1/hour", "tokens 31 total", "spend 0.00001 USD/day")]
    asks: list[tuple[str, dict[str, Any]]] = [("fake/normal", {"key": key, "max_tokens": 10}) for key in keys * 2]
    asks += [(PRICED, {"stream": True})] * 6 + [("fake/normal", {})] * 4
    asks += [("fake/error-500", {})] * 6 + [("fake/eof-early", {"stream": True})] * 2
    asks += [("fake/normal", {"key": "sk-mh-live-nobody"}), ("nothing/here", {})]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda ask: fleet.chat(ask[0], **ask[1]), asks))
    fleet.request("GET", "/made/up")


def test_every_rule_and_panel_has_a_value(fleet: ServeProcess, prometheus: PrometheusServer) -> None:
    cause_everything(fleet)
    prometheus.wait_for('sum(meterhouse_requests_total{owner="provider"})', "> 0")
    cause_everything(fleet)  # a rate needs two scrapes that differ
    prometheus.wait_for("meterhouse:failed_by_provider:ratio5m", "> 0")
    prometheus.wait_for("sum(rate(meterhouse_refusals_total[15s]))", "> 0")
    prometheus.wait_for("sum(rate(meterhouse_charge_nanos_total[15s]))", "> 0")
    rules = prometheus.rules()
    assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]
    figures = [rule["name"] for rule in rules if rule["type"] == "recording"]
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    assert (len(figures), len(alerts)) == (35, 31)
    expressions = {name: name for name in figures}
    expressions |= {f"{title}: {expression}": expression for title, expression in panels()}
    for alert in alerts:
        compared = COMPARISON.fullmatch(alert["query"])
        assert compared, f"{alert['name']} compares more than one figure with one number: {alert['query']}"
        assert compared[1] in figures
        # On the other side of every number the alert is there.
        expressions[alert["name"]] = f"{compared[1]} > -1" if compared[2] == ">" else f"{compared[1]} < 1e18"
    empty = set(expressions)
    for _ in range(12):
        # What is there for a moment only, like a deployment that is out, is caused until it was seen.
        empty = {name for name in empty if not prometheus.query(expressions[name])}
        if not empty:
            break
        cause_everything(fleet)
        time.sleep(2 * SCRAPE_SECONDS)
    assert empty == set()


def test_alerts_say_what_was_caused_and_nothing_else(fleet: ServeProcess, prometheus: PrometheusServer) -> None:
    fleet.chat("fake/error-500")
    prometheus.wait_for('sum(meterhouse_attempts_total{outcome="upstream_failed"})', "> 0")
    for number in range(60):
        # Fifteen of each model: a deployment that failed five times in a row at a worker is not asked.
        fleet.chat(f"fake/error-500?tokens={1 + number // 15}")
    prometheus.wait_for('meterhouse:failed_attempts_by_provider:ratio5m{provider="fake"}', "> 0.1")
    prometheus.wait_for("meterhouse:deployments_out", "> 0")
    for name in ("DeploymentsOut", "ProviderFails"):
        prometheus.wait_for(f'ALERTS{{alertname="{name}"}}', "> 0")
    calm = {"BudgetOverrun", "BarrierFails", "JournalIsAway", "MeterIsAway", "LedgerIsAway", "RequestsAreShed"}
    calm |= {"MeterhouseIsDown", "StrayRecords", "RevocationIsSlow", "AccountRefused", "LogLinesAreLost"}
    found = set(prometheus.alerts())
    assert {"ProviderFails", "DeploymentsOut"} <= found
    assert not calm & found


def test_every_promise_has_an_alert_and_every_alert_says_what_to_do() -> None:
    text = RULES.read_text()
    alerts = text.split("- alert: ")[1:]
    assert {promise for alert in alerts for promise in re.findall(r"promise: (P\d)", alert)} == PROMISES
    for alert in alerts:
        assert re.search(r"severity: (page|warn)\b", alert), alert
        assert re.search(r'summary: ".+", action: ".+"', alert), alert
    readme = (ROOT / "README.md").read_text()
    named = {name for alert in alerts for name in re.findall(r"README, Runbook: ([a-z ]+)", alert, re.IGNORECASE)}
    for name in named:
        heading = name.strip().removeprefix("a ")
        assert f"**{heading[0].upper()}{heading[1:]}.**" in readme, name


def test_the_files_are_what_their_programs_read(tmp_path: Path) -> None:
    promtool = find_program("promtool", "prometheus")
    for words in (["check", "config", RULES.parent / "prometheus.yml"], ["check", "rules", RULES]):
        done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = json.loads(path.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert board["uid"] == f"meterhouse-{path.stem}"
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "prometheus"
            assert panel["targets"]
            assert panel["fieldConfig"]["defaults"]["unit"]
