"""Organizations, projects, usage, costs and the audit log by command; every change has its author, JSON its fields."""

import json
import os
import pwd
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cli import books
from cli.command import complaint, good, run
from fakes.ledger import record
from meterhouse.db.ledger import Adjustment
from meterhouse.ids import new_request_id

USER = pwd.getpwuid(os.getuid()).pw_name
DAY_MS = 86_400_000
REPORTS_MS = 10_000
"""What is asked of reports takes less."""


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("owners")


def rows(data: Path, *arguments: str) -> Any:
    return json.loads(good(data, *arguments, "--json", "--data", "d"))


def test_organizations_and_projects_are_made_listed_renamed_and_archived(data: Path) -> None:
    began_ms = now_ms()
    organization = good(data, "organizations", "create", "--name", "Acme", "--data", "d").strip()
    project = good(data, "projects", "create", "--organization", organization, "--name", "web", "--data", "d").strip()
    assert re.fullmatch(r"org_\w{20}", organization)
    assert re.fullmatch(r"proj_\w{20}", project)
    assert good(data, "organizations", "rename", organization, "--name", "Acme [bold]Inc.", "--data", "d") == ""
    [listed] = rows(data, "organizations", "list")
    assert (listed["id"], listed["name"]) == (organization, "Acme [bold]Inc.")
    assert "Acme [bold]Inc." in good(data, "organizations", "list", "--data", "d")
    assert good(data, "projects", "rename", project, "--name", "Search", "--data", "d") == ""
    assert "is archived" in good(data, "projects", "archive", project, "--data", "d")
    [listed] = rows(data, "projects", "list", "--organization", organization)
    assert (listed["id"], listed["name"], listed["organization_id"]) == (project, "Search", organization)
    assert listed["archived_at_ms"] >= began_ms - 1000
    assert rows(data, "projects", "list", "--organization", "org_x") == []


def test_every_change_by_a_command_is_in_the_audit_log_with_its_user(tmp_path: Path) -> None:
    bootstrapped = good(tmp_path, "bootstrap", "--data", "d")
    organization = re.search(r"org_\w+", bootstrapped)
    assert organization is not None
    key = re.search(r"key_\w+", good(tmp_path, "keys", "create", "--name", "k", "--data", "d"))
    assert key is not None
    good(tmp_path, "keys", "rotate", key[0], "--data", "d")
    good(tmp_path, "keys", "revoke", key[0], "--data", "d")
    good(tmp_path, "keys", "create-admin", "--name", "a", "--data", "d")
    good(tmp_path, "limits", "set", "organization", organization[0], "requests 5/minute", "--data", "d")
    good(tmp_path, "prices", "set", "fake", "m", "--input", "1", "--output", "2", "--data", "d")
    good(tmp_path, "organizations", "create", "--name", "Other", "--data", "d")
    events = rows(tmp_path, "audit")
    assert [event["action"] for event in reversed(events)] == [
        *("organization.created", "project.created", "api_key.created", "admin_api_key.created"),
        *("api_key.created", "api_key.updated", "api_key.created", "api_key.deleted", "admin_api_key.created"),
        *("organization.updated", "price.created", "organization.created"),
    ]
    assert {event["actor"] for event in events} == {f"cli {USER}"}
    assert {event["actor_role"] for event in events} == {"operator"}
    [limits] = [event for event in events if event["action"] == "organization.updated"]
    assert limits["before"] == {"limits": []}
    assert limits["after"]["limits"][0]["amount"] == 5
    assert len(rows(tmp_path, "audit", "--limit", "3")) == 3
    assert {event["target"] for event in rows(tmp_path, "audit", "--target", key[0])} == {key[0]}
    assert rows(tmp_path, "audit", "--actor", "nobody") == []
    assert len(rows(tmp_path, "audit", "--action", "price.created", "--organization", "org_x")) == 0
    assert rows(tmp_path, "audit", "--to", "2020-01-01") == []
    assert "price.created" in complaint(tmp_path, "audit", "--action", "price.make", "--data", "d")
    assert f"cli {USER}" in good(tmp_path, "audit", "--data", "d")
    assert "sk-mh" not in good(tmp_path, "audit", "--json", "--data", "d").replace('"redacted_value": "sk-mh', "")


@pytest.fixture
def house(tmp_path: Path) -> tuple[Path, books.Owners]:
    """What was recorded today and two days ago; it is the same day until all is asked."""
    left_ms = DAY_MS - now_ms() % DAY_MS
    if left_ms < REPORTS_MS:
        time.sleep(left_ms / 1000)
    folder, today_ms = tmp_path, now_ms()
    owners = books.make(folder)
    made = []
    for days, model, nanos in ((0, "gpt", 1_000), (0, "glm", 30), (2, "gpt", 500_000_000)):
        at_ms = today_ms - days * DAY_MS
        made.append(
            record(
                request_id=f"{at_ms:012x}{new_request_id()[12:]}",
                admitted_at_ms=at_ms,
                organization_id=owners.organization,
                project_id=owners.project,
                key_id=owners.key,
                model=model,
                charge_nanos=nanos,
                charges=(("output", nanos),),
            )
        )
    books.insert(folder, *made)
    of = (owners.organization, owners.project, None)
    credit = Adjustment("adj_1", *of, today_ms, -1_000_000_001, 0, "sorry", today_ms)
    books.do(folder, lambda stores: stores.ledger.insert_adjustment(credit))
    return folder, owners


def test_usage_and_costs_add_up(house: tuple[Path, books.Owners]) -> None:
    folder, owners = house
    used = rows(folder, "usage", "--by", "model")
    assert {(one["model"], one["requests"], one["charge_nanos"]) for one in used} == {
        ("gpt", 2, 500_001_000),
        ("glm", 1, 30),
    }
    assert [one["USD"] for one in used] == ["0.00000003", "0.500001"]
    assert rows(folder, "usage", "--by", "model", "--key", "key_x") == []
    for by, groups in (("organization", 1), ("line_item", 3), ("project,day", 2), ("key,line_item,day", 4)):
        owed = rows(folder, "costs", "--by", by)
        assert len(owed) == groups
        assert sum(one["nanos"] for one in owed) == 500_001_030 - 1_000_000_001
    out = good(folder, "costs", "--by", "line_item", "--organization", owners.organization, "--data", "d")
    assert re.search(r"adjustment +-1\.000000001", out)
    assert out.splitlines()[-1] == "-0.499998971 USD"
    assert sum(one["nanos"] for one in rows(folder, "costs", "--days", "1", "--by", "day")) == 1_030 - 1_000_000_001
    assert rows(folder, "costs", "--organization", "org_x") == []


def test_bars_are_as_long_as_what_they_say(house: tuple[Path, books.Owners]) -> None:
    folder, _ = house
    out = good(folder, "usage", "--chart", "--of", "spend", "--days", "4", "--data", "d").splitlines()
    assert out[0] == "spend by day"
    assert len(out) == 5
    assert re.fullmatch(r" \d{4}-\d\d-\d\d  █{40,} 0\.5 USD", out[2])
    assert re.fullmatch(r" \d{4}-\d\d-\d\d  ▏ 0\.00000103 USD", out[4])
    assert re.fullmatch(r" \d{4}-\d\d-\d\d  0 USD", out[3])
    tokens = good(folder, "usage", "--chart", "--days", "1", "--data", "d").splitlines()
    assert tokens[1].endswith(" 220")


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("--days", ["usage", "--days", "999999999"]),
        ("--days", ["usage", "--days", "-1"]),
        ("--days", ["costs", "--days", "soon"]),
        ("--days", ["costs", "--days", "1e3"]),
        ("--by", ["costs", "--by", "colour"]),
        ("--by", ["costs", "--by", ","]),
        ("--of", ["usage", "--chart", "--of", "colour"]),
        ("--chart", ["usage", "--chart", "--days", "36500"]),
        ("--expires-in-days", ["keys", "create", "--name", "x", "--expires-in-days", "inf"]),
        ("--expires-in-days", ["keys", "create", "--name", "x", "--expires-in-days", "nan"]),
        ("--expires-in-days", ["keys", "create", "--name", "x", "--expires-in-days", "-inf"]),
        ("--expires-in-days", ["keys", "create", "--name", "x", "--expires-in-days", "1e308"]),
        ("--overlap-hours", ["keys", "rotate", "key_x", "--overlap-hours", "nan"]),
        ("--name", ["organizations", "create"]),
        ("name", ["organizations", "create", "--name", " "]),
        ("org_x", ["organizations", "rename", "org_x", "--name", "x"]),
        ("org_x", ["projects", "create", "--organization", "org_x", "--name", "x"]),
        ("proj_x", ["projects", "archive", "proj_x"]),
        ("--from", ["audit", "--from", "yesterday"]),
        ("--from", ["audit", "--from", "99999-01-01"]),
        ("--limit", ["audit", "--limit", "0"]),
        ("--colour", ["usage", "--colour", "red"]),
        ("shred", ["organizations", "shred"]),
        ("extra", ["organizations", "list", "extra"]),
        ("dollars", ["prices", "set", "fake", "m", "--input", "1e999", "--output", "1"]),
        ("price", ["prices", "set", "fake", "m", "--input", "nan", "--output", "1"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(data: Path, word: str, arguments: list[str]) -> None:
    assert word.lower() in complaint(data, *arguments, "--data", "d").lower()


@pytest.mark.parametrize(
    "command",
    [
        *("organizations", "organizations create", "organizations list", "organizations rename", "projects"),
        *(
            "projects create",
            "projects list",
            "projects rename",
            "projects archive",
            "usage",
            "costs",
            "audit",
            "providers",
        ),
        *("providers set", "providers list", "providers remove", "routes", "routes set", "routes list"),
        "routes remove",
    ],
)
def test_help_says_what_a_command_is_for(data: Path, command: str) -> None:
    out = good(data, *command.split(), "--help")
    assert f"meterhouse {command}" in out
    assert len(out.splitlines()) > 5


def test_a_group_without_a_command_shows_its_help(data: Path) -> None:
    done = run(data, "organizations")
    assert done.status == 2
    assert "rename" in done.out + done.err
