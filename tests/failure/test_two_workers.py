"""What one of all workers does: an alert is told once, an export is made once, also when who had the turn is killed.

What is sent arrives at least once, under the same id when it is sent again, which no worker does unless it was killed
or has logged why: an answer that was late, a database that did not take that it came. Two real ``serve`` workers on
PostgreSQL and Redis; they wait for seals and turns, which takes a minute. Not here: the same with the stores alone
(``tests/contract``).
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.fleet import ServeProcess
from fakes.receiver import Receiver, receiver_apart
from fakes.servers import PostgresServer, RedisServer

MODEL = "simulator-instant"
pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(300)]


class Site:
    """Two workers, where their alerts and events arrive, and the folder of their exports."""

    def __init__(self, fleet: ServeProcess, alerts: Receiver, events: Receiver, folder: Path) -> None:
        self.fleet = fleet
        self.alerts = alerts
        self.events = events
        self.folder = folder

    def watch(self, *cents: int) -> str:
        """Make an organization with a webhook and so many alerts; returns a key of it."""
        key_id, key = self.fleet.new_key()
        found = self.fleet.admin("GET", f"/admin/keys/{key_id}")
        organization, project = found["organization_id"], found["project_id"]
        self.fleet.admin("POST", f"/admin/organizations/{organization}/webhooks", {"url": self.alerts.url})
        headers = {"openai-organization": organization}
        for amount in cents:
            channel = {"type": "email", "recipients": []}
            wish = {"threshold_amount": amount, "currency": "USD", "interval": "month", "notification_channel": channel}
            path = f"/v1/organization/projects/{project}/spend_alerts"
            status, _, answer = self.fleet.request("POST", path, wish, key=self.fleet.admin_key, headers=headers)
            assert status == 200, answer
        return key

    def use(self, key: str, times: int) -> None:
        """Send requests on connections of their own, so that both workers get some."""
        assert {self.fleet.chat(MODEL, key=key)[0] for _ in range(times)} == {200}

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Wait until something is over; longer than a turn that nobody goes on with."""
        self.fleet.wait_for(is_over, 200)

    def told(self) -> list[int]:
        """Return the thresholds that were told, in cents; what was told again under its id counts once."""
        received = [(one.headers["webhook-id"], one.json) for one in list(self.alerts.received)]
        told = dict(received)
        self._judge_repeats(len(received) - len(told), "delivery.failed")
        assert all(event == told[name] for name, event in received)
        return sorted(event["data"]["threshold_amount"] for event in told.values())

    def sent(self) -> list[str]:
        """Return the id of the request of every event that arrived; what was sent again under its id counts once."""
        batches = [one.json for one in list(self.events.received)]
        sent: dict[str, Any] = {}
        repeats = 0
        for batch in batches:
            repeats += any(event["id"] in sent for event in batch)
            sent.update((event["id"], event) for event in batch)
        self._judge_repeats(repeats, "export.failed")
        assert all(event == sent[event["id"]] for batch in batches for event in batch)
        return [name.rpartition("-")[0].replace("-", "") for name in sent]

    def _judge_repeats(self, repeats: int, failed: str) -> None:
        reasons = self.fleet.kills + len(self.fleet.events(failed, "store.failed"))
        assert repeats <= reasons, "something was sent again without a reason"

    def spans(self) -> list[list[str]]:
        """Return from when to when each exported file reaches, the oldest first."""
        return [path.stem.split("-")[1:] for path in sorted(self.folder.glob("ledger-*.jsonl"))]


@pytest.fixture(scope="module")
def site(
    redis_server: RedisServer, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("site")
    with receiver_apart() as alerts, receiver_apart() as events:
        environment = {
            "METERHOUSE_SIMULATOR": "true",
            "METERHOUSE_PRIVATE_WEBHOOKS": "true",
            "METERHOUSE_ALERT_SECONDS": "0.1",
            "METERHOUSE_CLOUDEVENTS_URL": events.url,
            "METERHOUSE_CLOUDEVENTS_SECONDS": "0.1",
            "METERHOUSE_EXPORT_FOLDER": str(folder / "exports"),
            "METERHOUSE_EXPORT_SECONDS": "1",
        }
        fleet = ServeProcess(
            folder / "data",
            redis_url=redis_server.url,
            database_url=postgres_server.create_database(),
            environment=environment,
        )
        with fleet as running:
            running.set_price("simulator", MODEL, "1000", "1000")
            yield Site(running, alerts, events, folder / "exports")
        redis_server.flush()


def test_an_alert_is_told_once_and_an_export_is_made_once(site: Site) -> None:
    told, fired = site.told(), len(site.fleet.events("alert.fired"))
    key = site.watch(1, 2, 3, 1_000_000)
    site.use(key, 6)
    ids = {row["request_id"] for row in site.fleet.wait_ledger(lambda rows: len(rows) >= 6)}
    site.wait(lambda: len(site.told()) >= len(told) + 3 and set(site.sent()) >= ids and len(site.spans()) >= 2)
    # Every further file is a time in which everything was looked at again, and could have been repeated.
    looks = len(site.spans())
    site.wait(lambda: len(site.spans()) >= looks + 3)
    assert site.told() == sorted([*told, 1, 2, 3])
    assert len(site.fleet.events("alert.fired")) == fired + 3
    assert all(before[1] == after[0] for before, after in itertools.pairwise(site.spans())), site.spans()
    assert not list(site.folder.glob(".*"))


def test_who_takes_over_from_a_killed_worker_repeats_nothing(site: Site) -> None:
    told, key = len(site.told()), site.watch(1)
    for pid in site.fleet.pids():
        others = set(site.fleet.pids())
        site.fleet.kill(pid)
        site.fleet.wait_workers(but={pid})
        assert set(site.fleet.pids()) != others
    site.use(key, 4)
    ids = {row["request_id"] for row in site.fleet.wait_ledger(lambda rows: len(rows) >= 4)}
    looks = len(site.spans())
    # The turns of those who were killed last for a minute.
    site.wait(lambda: len(site.told()) > told and set(site.sent()) >= ids and len(site.spans()) >= looks + 3)
    assert len(site.told()) == told + 1
    assert all(before[1] == after[0] for before, after in itertools.pairwise(site.spans())), site.spans()
