"""The pictures of the README, from a gateway of its own with ordinary names and a day of traffic in it."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from fakes.console_process import PHONE, ConsoleProcess, Visitor
from fakes.fleet import ServeProcess, run_apart
from fakes.gateway import provider_environment
from fakes.ledger import record
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import LedgerStore
from meterhouse.ids import new_request_id
from meterhouse.usage import Outcome, Usage, UsageRecord

pytestmark = pytest.mark.slow_fault
PLACE = Path(__file__).parents[2] / "infra" / "console"
MOST_BYTES = 150_000
WIDE = {"width": 1200, "height": 1000}
LOW = {"width": 1100, "height": 700}
REQUESTS = 4_000
HOURS = 24
MODELS = {"gpt-5.5": 6_000, "claude-sonnet-4.6": 9_000, "qwen3-32b": 700, "glm-4.6": 1_500}
"""The nanos of an output token, for the charges of the records."""
PROJECTS = {"Search": "spend 40 USD/month", "Support desk": "spend 15 USD/month", "Research": "spend 5 USD/day"}


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
    postgres_server: PostgresServer,
    up: FakeUpstream,
) -> Iterator[ServeProcess]:
    environment = provider_environment("fake", up.base_url, METERHOUSE_PROVIDER_FAKE_MODELS=",".join(MODELS))
    data = tmp_path_factory.mktemp("pictures") / "data"
    url = postgres_server.create_database()
    with ServeProcess(data, redis_url=redis_server.url, database_url=url, environment=environment) as fleet:
        run_apart(fill(fleet))
        yield fleet


async def fill(fleet: ServeProcess) -> None:
    """Write a day of records, before anybody asks what is spent."""
    chance = random.Random(11)
    organization = fleet.admin("GET", "/admin/organizations")["data"][0]["id"]
    keys = []
    for name, limits in PROJECTS.items():
        project = fleet.admin("POST", "/admin/projects", {"organization_id": organization, "name": name})["id"]
        fleet.admin("PUT", "/admin/limits", {"scope": "project", "scope_id": project, "limits": limits})
        for purpose in ("web", "batch"):
            body = {"name": f"{name.lower()} {purpose}", "project_id": project, "limits": "requests 600/minute"}
            keys.append((project, fleet.admin("POST", "/admin/keys", body)["id"]))
    engine = open_engine(str(fleet.database_url))
    now_ms = int(time.time() * 1000)
    made = [one(chance, organization, *chance.choice(keys), now_ms) for _ in range(REQUESTS)]
    await LedgerStore(engine).insert(made)
    await close(engine)


def one(chance: random.Random, organization: str, project: str, key: str, now_ms: int) -> UsageRecord:
    """Return a record of some moment of the day, busier around its middle."""
    at_ms = now_ms - int(chance.triangular(0.01, HOURS, HOURS / 2) * 3_600_000)
    model = chance.choices(list(MODELS), [5, 3, 4, 2])[0]
    tokens = int(chance.triangular(20, 1_500, 200))
    charge = tokens * MODELS[model]
    has_failed = chance.random() < 0.02
    return record(
        request_id=f"{at_ms:012x}{new_request_id()[12:]}",
        admitted_at_ms=at_ms,
        organization_id=organization,
        project_id=project,
        key_id=key,
        root_key_id=key,
        model=model,
        provider="fake",
        outcome=Outcome.UPSTREAM_FAILED if has_failed else Outcome.COMPLETED,
        error_owner="provider" if has_failed else "",
        usage=Usage(input_tokens=tokens * 3, output_tokens=tokens),
        charge_nanos=charge,
        charges=(("output", charge),),
        time_to_first_token_ms=int(chance.triangular(60, 900, 180)),
        duration_ms=tokens * 12,
    )


def take(visitor: Visitor, name: str, file: str) -> None:
    """Make a picture of what the browser's window shows."""
    page = visitor.go(name)
    expect(page.locator(".busy")).to_have_count(0)
    path = PLACE / file
    page.screenshot(path=path)
    assert path.stat().st_size < MOST_BYTES


def test_the_pictures_of_the_readme(browser: Browser, house: ServeProcess, tmp_path: Path):
    with ConsoleProcess(house.url, tmp_path / "console.log") as console:
        for options, name, file in (
            ({"viewport": WIDE, "color_scheme": "dark"}, "overview", "overview-dark.png"),
            ({"viewport": LOW, "color_scheme": "light"}, "ledger", "ledger-light.png"),
            ({"viewport": PHONE, "has_touch": True}, "keys", "keys-phone.png"),
        ):
            with Visitor(browser, console, **options) as visitor:
                visitor.sign_in(house.admin_key)
                take(visitor, name, file)
                assert not visitor.faults
