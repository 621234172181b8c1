"""A real Prometheus on a free port of 127.0.0.1 that scrapes one address and evaluates the rules that are shipped.

Invariant: it does not outlive the process that started it (daemon). Not here: what the rules are to say (watch).
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from fakes.daemon import Daemon, find_program, free_port, wait_until

SCRAPE_SECONDS = 0.3
CONFIG = """\
global: {{scrape_interval: 300ms, scrape_timeout: 300ms, evaluation_interval: 300ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: meterhouse
    static_configs: [{{targets: ["{target}"]}}]
"""


class PrometheusServer:
    """``with PrometheusServer(folder, "127.0.0.1:8000", rules) as server:``; scraping when it begins."""

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(rules=rules, target=target))
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [
            find_program("prometheus", "prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self._daemon = Daemon(command, folder / "prometheus.log")

    def __enter__(self) -> Self:
        self._daemon.start(self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression; raises AssertionError for one that is none."""
        answer = self._get("/api/v1/query", query=expression)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """Evaluate an expression that has one value."""
        (sample,) = self.query(expression)
        return float(sample["value"][1])

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its state."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self) -> dict[str, str]:
        """Return the alerts that are pending or firing, by name."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self._get("/api/v1/alerts")["data"]["alerts"]}

    def wait_for(self, expression: str, is_enough: str, seconds: float = 20) -> None:
        """Wait until an expression compares as said: ``wait_for("up", "> 0")``."""
        wait_until(lambda: self.query(f"({expression}) {is_enough}"), f"{expression} {is_enough}", seconds)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        address = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                found: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        return found
