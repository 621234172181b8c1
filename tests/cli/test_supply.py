"""Providers and routes by command: the same as over HTTP, without a credential in any argument, list or log."""

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from cli.command import complaint, good
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

CANARY = "sk-credential-canary-of-a-command"
PRIVATE = {"METERHOUSE_PRIVATE_PROVIDERS": "true"}
USER = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def up() -> Any:
    with FakeUpstream() as upstream:
        yield upstream


def rows(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(good(folder, *arguments, "--json", "--data", "d", environment=PRIVATE))
    return found


def do(folder: Path, *arguments: str) -> str:
    return good(folder, *arguments, "--data", "d", environment=PRIVATE)


def test_what_is_set_by_command_answers_on_a_server_that_is_started_later(tmp_path: Path, up: FakeUpstream) -> None:
    (tmp_path / "key.txt").write_text(f"{CANARY}\n")
    set_one = ("providers", "set", "mine", "--base-url", up.base_url, "--credential-file", "key.txt")
    more = ("--shows-all-output", "--forwards-trace", "--tool-call-format", "hermes", "--tools", "prompt")
    assert do(tmp_path, *set_one, "--model", "small=normal?tokens=3", *more) == "mine is on.\n"
    assert do(tmp_path, "routes", "set", "fast", "--to", "mine/normal?tokens=2 order=1 weight=3") == (
        "fast is answered by 1 deployments.\n"
    )
    [mine] = [one for one in rows(tmp_path, "providers", "list") if one["name"] == "mine"]
    assert (mine["source"], mine["is_on"], mine["has_credential"], mine["base_url"]) == (
        "operator",
        True,
        True,
        up.base_url,
    )
    [route] = rows(tmp_path, "routes", "list", "--model", "fast")
    assert (route["provider"], route["upstream_model"], route["order"], route["weight"]) == (
        "mine",
        "normal?tokens=2",
        1,
        3,
    )
    with Gateway(tmp_path / "d", PRIVATE) as gateway:
        assert gateway.chat("small")[0] == 200
        assert gateway.chat("fast")[0] == 200
    # An address that changes needs its credential again; one that stays does not.
    assert do(tmp_path, *set_one[:5], "--model", "small=normal?tokens=3") == "mine is on.\n"
    moved = complaint(tmp_path, *set_one[:4], "http://127.0.0.1:9", "--data", "d", environment=PRIVATE)
    assert "credential must be given again" in moved
    assert do(tmp_path, "routes", "remove", "fast") == "The route of fast is removed.\n"
    assert do(tmp_path, "providers", "remove", "mine") == "mine is removed.\n"
    assert rows(tmp_path, "routes", "list", "--model", "fast") == []
    events = rows(tmp_path, "audit")
    mine_only = [event["action"] for event in reversed(events) if event["actor"] == f"cli {USER}"]
    assert mine_only == [
        *("provider.updated", "route.updated", "provider.updated", "route.deleted", "provider.deleted"),
    ]
    first = [event["after"] for event in events if event["action"] == "provider.updated"][-1]
    assert (first["forwards_trace"], first["tool_call_format"], first["tools"]) == (True, "hermes", "prompt")
    assert CANARY not in json.dumps([events, rows(tmp_path, "providers", "list")])
    wrong = complaint(tmp_path, *set_one, "--tools", "hide", "--data", "d", environment=PRIVATE)
    assert "tools" in wrong
    database = (tmp_path / "d" / "ledger.db").read_bytes()
    assert CANARY.encode() not in database


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("supply")


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("credential or a base URL", ["providers", "set", "openai"]),
        ("cannot be read", ["providers", "set", "openai", "--credential-file", "missing.txt"]),
        ("is empty", ["providers", "set", "openai", "--credential-file", "/dev/null"]),
        ("cannot be read", ["providers", "set", "openai", "--credential-file", "."]),
        ("name", ["providers", "set", "My Provider", "--base-url", "http://127.0.0.1:9"]),
        ("No provider 'nobody'", ["providers", "remove", "nobody"]),
        ("--to", ["routes", "set", "fast"]),
        ("--to", ["routes", "set", "fast", "--to", "nobody"]),
        ("--to", ["routes", "set", "fast", "--to", "a/b weight=heavy"]),
        ("weight", ["routes", "set", "fast", "--to", "a/b weight=5000"]),
        ("nobody", ["routes", "set", "fast", "--to", "nobody/model"]),
        ("No route 'fast'", ["routes", "remove", "fast"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(shared: Path, word: str, arguments: list[str]) -> None:
    assert word in complaint(shared, *arguments, "--data", "d", environment=PRIVATE)
