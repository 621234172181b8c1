"""A deploy that nobody notices: reloads, recycled workers, a reloaded proxy and a migration under load, over TLS.

The ordinary run is short. ``infra/test --deploy`` takes ten minutes for each test: 200 requests a second, of which
about 2,400 are open, SIGHUP every 20 s; ``METERHOUSE_TEST_DEPLOY_RATE`` asks for fewer, on a machine that has no room
for them beside their clients. Rows 2, 31 and 36 of the fault matrix.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from failure.deploy.asked import Asked
from failure.deploy.load import QUICK, Order, stream_models
from failure.schema import migrate_again
from fakes.fleet import ServeProcess
from fakes.gateway import provider_environment
from fakes.nginx_server import NginxServer
from fakes.plan import read_plan
from fakes.prices import set_prices
from fakes.process import TESTS, UpstreamProcess
from fakes.servers import PostgresServer, RedisServer
from fakes.truth import Attempt
from fakes.words import answer_text
from meterhouse.keys.secret import parse

VARIABLE = "METERHOUSE_TEST_DEPLOY"
RATE_VARIABLE = "METERHOUSE_TEST_DEPLOY_RATE"
LIMITS = "spend 100000 USD total; requests 100000000 total; concurrent 5000"
TENANTS = 8
LEDGER_SECONDS = 60


@dataclass(frozen=True)
class Course:
    """How much is asked, and how often what happens; seconds."""

    per_second: float = 25
    seconds: float = 4.5
    longest_seconds: float = 3
    reload: float = 1.5
    nginx_reload: float = 2
    migration: float = 1
    kill: float = 2
    worker_requests: int = 12
    lease: float = 4


# A worker counts requests when they end, which few of the streams do between two reloads.
FULL = Course(200, 600, 60, reload=20, nginx_reload=67, migration=300, kill=30, worker_requests=1000, lease=60)


@pytest.fixture(scope="module")
def course() -> Course:
    if os.environ.get(VARIABLE) != "full":
        return Course()
    rate = float(os.environ.get(RATE_VARIABLE, FULL.per_second))
    # As many workers wear out at a lower rate.
    requests = round(FULL.worker_requests * rate / FULL.per_second)
    return replace(FULL, per_second=rate, worker_requests=requests)


class Site:
    """Everything that a deploy touches."""

    def __init__(self, folder: Path, course: Course) -> None:
        self.course = course
        self.folder = folder
        self.up = UpstreamProcess(folder / "upstream.log")
        self.redis = RedisServer(folder / "redis", appendonly=True)
        self.postgres = PostgresServer(folder / "postgres")
        self.loads = 0

    @contextmanager
    def open(self) -> Iterator["Site"]:
        with self.up, self.redis, self.postgres:
            socket = self.folder / "gateway.sock"
            self.database_url = self.postgres.create_database()
            self.fleet = ServeProcess(
                self.folder / "data",
                redis_url=self.redis.url,
                database_url=self.database_url,
                bind=f"unix:{socket}",
                environment=provider_environment(
                    "fake",
                    self.up.base_url,
                    METERHOUSE_SHUTDOWN_SECONDS="120",
                    METERHOUSE_LEASE_SECONDS=str(self.course.lease),
                    METERHOUSE_RENEW_SECONDS=str(self.course.lease / 4),
                    METERHOUSE_WORKER_REQUESTS=str(self.course.worker_requests),
                ),
            )
            self.fleet.set_up()
            models = (QUICK, *stream_models(self.course.longest_seconds))
            set_prices(self.fleet.environment, [("fake", model) for model in models])
            with self.fleet, NginxServer(self.folder / "nginx", socket=socket) as self.edge:
                self.keys = [self._new_key() for _ in range(TENANTS)]
                yield self

    def _new_key(self) -> str:
        """Issue a key in an organization of its own."""
        organization = self._admin("/admin/organizations", {"name": "A tenant"})
        project = self._admin("/admin/projects", {"organization_id": organization["id"], "name": "A project"})
        order = {"name": "a key", "project_id": project["id"], "limits": LIMITS}
        return str(self._admin("/admin/keys", order)["value"])

    def _admin(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, _, answer = self.edge.request("POST", path, body, key=self.fleet.admin_key)
        assert status == 201, answer
        made: dict[str, Any] = json.loads(answer)
        return made

    def trouble_with(self, key: str, rows: list[dict[str, Any]]) -> str:
        """Say which limit of a key holds something, or says something else than the ledger; empty when none does."""
        status, _, body = self.edge.request("GET", "/v1/limits", key=key)
        if status != 200:
            return f"status {status}"
        secret = parse(key)
        assert secret is not None
        mine = [row for row in rows if row["key_id"] == secret.key_id]
        truth = {"spend": "charge_nanos", "requests": "requests"}
        for limit in json.loads(body)["data"]:
            if limit["reserved"]:
                return f"{limit['limit']} holds {limit['reserved']}"
            spent = sum(row[truth[limit["kind"]]] for row in mine) if limit["kind"] in truth else 0
            if limit["spent"] != spent:
                return f"{limit['limit']}: the meter says {limit['spent']}, the ledger {spent}"
        return ""

    def load(self) -> list[Asked]:
        """Run the clients to their end; returns what they asked."""
        course = self.course
        self.loads += 1
        order = Order(
            f"load{self.loads}",
            self.edge.port,
            str(self.edge.ca),
            self.keys,
            course.per_second,
            course.seconds,
            course.longest_seconds,
        )
        paths = [self.folder / name for name in ("order.json", "result.json")]
        paths[0].write_text(json.dumps(asdict(order)))
        command = [sys.executable, "-m", "failure.deploy.load", *map(str, paths)]
        subprocess.run(command, cwd=TESTS, check=True, timeout=course.seconds + course.longest_seconds + 120)
        result = json.loads(paths[1].read_text())
        self.most_open = result["most_open"]
        return [Asked.from_json(asked) for asked in result["asked"]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, course: Course) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), course).open() as site:
        yield site


class Operator:
    """Does again and again what operators do, while the load runs."""

    def __init__(self, site: Site, **every: tuple[float, Callable[[], Any]]) -> None:
        self._site = site
        self._every = every
        self.done: Counter[str] = Counter()

    def run(self, name: str) -> None:
        """Do one of them until the load has all been sent."""
        seconds, work = self._every[name]
        due = time.monotonic() + seconds
        end = time.monotonic() + self._site.course.seconds
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            due += seconds
            work()
            self.done[name] += 1

    def run_under_load(self) -> list[Asked]:
        """Do all of them beside each other; returns what the clients asked."""
        with ThreadPoolExecutor(1 + len(self._every)) as pool:
            loading = pool.submit(self._site.load)
            for working in [pool.submit(self.run, name) for name in self._every]:
                working.result()
            return loading.result()


def migrate_up_and_down(site: Site) -> None:
    assert "was brought to" in migrate_again(site.fleet.environment, site.database_url, "0002")


def check_ledger(site: Site, asked: list[Asked]) -> None:
    """Each attempt that the provider saw is in the ledger once, and what its client saw the end of is exact."""
    truth: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in site.up.truth().attempts:
        truth[attempt.marker].append(attempt)
    markers = {one.marker for one in asked}
    total = sum(len(attempts) for marker, attempts in truth.items() if marker in markers)
    traces = {one.trace_id for one in asked}
    rows = site.fleet.wait_ledger(
        lambda rows: sum(row["attempt"] > 0 and row["trace_id"] in traces for row in rows) >= total,
        wait_seconds=LEDGER_SECONDS,
    )
    by_trace = defaultdict(list)
    for row in rows:
        by_trace[row["trace_id"]].append(row)
    faults = []
    for one in asked:
        attempts, mine = truth[one.marker], [row for row in by_trace[one.trace_id] if row["attempt"]]
        if not attempts:  # a worker may die between its intent and the connection
            mine = [row for row in mine if row["outcome"] != "worker_lost" or row["charge_nanos"]]
        if len(attempts) > 1:
            faults.append(f"{one.marker}: {len(attempts)} attempts of one request")
        if len(mine) != len(attempts):
            faults.append(f"{one.marker}: {len(attempts)} attempts, {len(mine)} rows: {one.error}")
        if one.is_good:
            tokens = read_plan(one.model).tokens
            found = [(row["outcome"], row["exactness"], row["output_tokens"]) for row in mine]
            if found != [("completed", "reported", tokens)] or one.text != answer_text(one.marker, tokens):
                faults.append(f"{one.marker}: {found} for {tokens} tokens")
    assert not faults, faults[:10]
    for key in site.keys:
        rest_seconds = site.course.lease + LEDGER_SECONDS
        site.fleet.wait_for(lambda key=key: not site.trouble_with(key, rows), rest_seconds)  # type: ignore[misc]


def errors_of(site: Site) -> list[dict[str, Any]]:
    """What was logged as an error, but for what looks at a schema that the migrating operator has taken back."""
    lacking = "The database lacks"  # as nobody does beneath code that needs it: it makes the migration that follows
    return [line for line in site.fleet.events() if line["level"] == "error" and lacking not in json.dumps(line)]


def report(site: Site, operator: Operator, asked: list[Asked], figures: Callable[..., None]) -> None:
    figures(
        deploy_requests=len(asked),
        deploy_streams=sum(one.is_streamed for one in asked),
        deploy_most_open=site.most_open,
        deploy_warm=sum(one.was_warm for one in asked),
        deploy_failed=sum(not one.is_good for one in asked),
        deploy_sent_again=sum(one.sent_again for one in asked),
        **{f"deploy_{name}": count for name, count in operator.done.items()},
    )


def test_a_deploy_that_nobody_notices(site: Site, figures: Callable[..., None]) -> None:
    course = site.course
    first, errors_before = set(site.fleet.serving()), len(errors_of(site))
    operator = Operator(
        site,
        reload=(course.reload, site.fleet.reload),
        nginx_reload=(course.nginx_reload, site.edge.signal_reload),
        migration=(course.migration, lambda: migrate_up_and_down(site)),
    )
    asked = operator.run_under_load()
    report(site, operator, asked, figures)
    assert min(operator.done[name] for name in ("reload", "nginx_reload", "migration")) >= 1
    assert site.fleet.events("worker.worn")
    failed = [one for one in asked if not one.is_good]
    assert not failed, [(one.marker, one.is_http2, one.is_streamed, one.status, one.error) for one in failed[:10]]
    assert len(set(site.fleet.serving()) - first) >= site.fleet.workers
    check_ledger(site, asked)
    assert not errors_of(site)[errors_before:]


def test_a_killed_worker_takes_only_its_own_requests_along(site: Site, figures: Callable[..., None]) -> None:
    course = site.course
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.time())
        site.fleet.kill(site.fleet.serving()[-1])

    operator = Operator(site, reload=(course.reload, site.fleet.reload), kill=(course.kill, kill))
    asked = operator.run_under_load()
    report(site, operator, asked, figures)
    assert killed
    for one in asked:
        # Under way when a worker died, or sent to it in the moment before the system closed its socket.
        was_hit = any(one.began_at - 1 <= at <= one.ended_at + 1 for at in killed)
        assert one.is_good or was_hit, (one.marker, one.status, one.error)
    assert any(one.is_good for one in asked if any(one.began_at < at < one.ended_at for at in killed))
    check_ledger(site, asked)
