"""Keys, limits, prices and usage without a server."""

import json
import re
import time
from pathlib import Path

import pytest

from cli.command import complaint, good, run
from fakes.gateway import Gateway
from meterhouse.keys.secret import parse


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


def create(data: Path, *options: str) -> tuple[str, str]:
    out = good(data, "keys", "create", "--data", "d", *options)
    found = re.fullmatch(r"id:    (key_\w+)\nkey:   (sk-mh-dev-\S+)\n", out)
    assert found, out
    return found[1], found[2]


def test_a_first_key_needs_no_server_and_opens_one_that_is_started_later(tmp_path: Path) -> None:
    key_id, value = create(
        tmp_path, "--name", "first", "--model", "simulator-instant", "--limits", "requests 2/hour",
        "--expires-in-days", "1",
    )  # fmt: skip
    parsed = parse(value)
    assert parsed is not None
    assert parsed.key_id == key_id
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    with Gateway(tmp_path / "d") as gateway:
        assert gateway.chat("simulator-instant", key=value)[0] == 200
        assert gateway.chat("simulator", key=value)[0] == 403
        assert gateway.chat("simulator-instant", key=value)[0] == 200
        assert gateway.chat("simulator-instant", key=value)[0] == 429
        gateway.settle()
    out = good(tmp_path, "usage", "--data", "d", "--by", "key,model")
    assert re.search(rf"{key_id} +simulator-instant +2 +2 ", out), out
    assert re.search(r"^2 requests, 0\.\d+ USD$", out, re.MULTILINE), out
    assert "agrees" in good(tmp_path, "ledger", "rebuild", "--check", "--data", "d")


def test_a_key_is_listed_without_its_secret_rotated_and_revoked(data: Path) -> None:
    key_id, value = create(data, "--name", "listed", "--limits", "spend 5 USD/month")
    listing = good(data, "keys", "list", "--data", "d")
    (line,) = [line for line in listing.splitlines() if key_id in line]
    assert "listed" in line
    assert "spend 5 USD/month" in line
    assert "good" in line
    assert value not in listing
    assert value.rpartition("-")[2][:8] not in listing
    rotated = good(data, "keys", "rotate", key_id, "--overlap-hours", "2", "--data", "d")
    successor = re.search(r"key_\w+", rotated)
    assert successor is not None
    assert successor[0] != key_id
    good(data, "keys", "revoke", successor[0], "--data", "d")
    listing = good(data, "keys", "list", "--data", "d")
    states = {line.split()[0]: line for line in listing.splitlines() if line}
    assert "revoked" in states[successor[0]]
    assert "until" in states[key_id]
    assert "not good any more" in complaint(data, "keys", "rotate", successor[0], "--data", "d")


def test_an_admin_key_that_leaked_is_revoked_while_a_server_runs(tmp_path: Path) -> None:
    with Gateway(tmp_path / "d") as gateway:
        made = re.findall(r"key_\w+|sk-mh-\S+", good(tmp_path, "keys", "create-admin", "--name", "a", "--data", "d"))
        assert gateway.request("GET", "/admin/keys", key=made[1])[0] == 200
        assert good(tmp_path, "keys", "revoke", made[0], "--data", "d") == f"{made[0]} is revoked.\n"
        deadline = time.monotonic() + 10
        while gateway.request("GET", "/admin/keys", key=made[1])[0] != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_limits_are_set_and_shown(data: Path) -> None:
    key_id, _ = create(data, "--name", "limited")
    good(data, "limits", "set", "key", key_id, "requests 600/minute; concurrent 20", "--data", "d")
    assert sorted(good(data, "limits", "show", "key", key_id, "--data", "d").splitlines()) == [
        "concurrent 20",
        "requests 600/minute",
    ]
    good(data, "limits", "set", "key", key_id, "", "--data", "d")
    assert good(data, "limits", "show", "key", key_id, "--data", "d") == ""


def test_prices_of_what_is_charged_by_the_request(data: Path) -> None:
    images = ("--input", "0", "--output", "0", "--cache-write", "1.25", "--request", "0.04")
    good(data, "prices", "set", "fake", "pictures", *images, "--data", "d")
    [price] = [
        one for one in json.loads(good(data, "prices", "list", "--json", "--data", "d")) if one["model"] == "pictures"
    ]
    assert price["prices_in_USD_per_million"] == {
        "input": "0",
        "output": "0",
        "cache_write": "1.25",
        "request": "40000",
    }


def test_prices_are_set_and_listed(data: Path) -> None:
    price_id = good(data, "prices", "set", "fake", "m-1", "--input", "2.50", "--output", "10", "--data", "d").strip()
    assert price_id.startswith("price_")
    (line,) = [line for line in good(data, "prices", "list", "--data", "d").splitlines() if "m-1" in line]
    assert "input 2.5" in line
    assert "output 10" in line


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("key_missing", ["keys", "revoke", "key_missing"]),
        ("key_missing", ["keys", "rotate", "key_missing"]),
        ("proj_missing", ["keys", "create", "--name", "x", "--project", "proj_missing"]),
        ("10/fortnight", ["keys", "create", "--name", "x", "--limits", "10/fortnight"]),
        ("name", ["keys", "create", "--name", "  "]),
        ("world", ["limits", "show", "world", "x"]),
        ("dollars", ["prices", "set", "fake", "m", "--input", "cheap", "--output", "1"]),
        ("provider", ["prices", "set", "", "m", "--input", "1", "--output", "1"]),
        ("model", ["prices", "set", "fake", "", "--input", "1", "--output", "1"]),
        ("--by", ["usage", "--by", "colour"]),
        ("no.env", ["keys", "create", "--name", "x", "--env-file", "no.env"]),
        ("no.env", ["check", "--env-file", "no.env"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(data: Path, word: str, arguments: list[str]) -> None:
    assert word in complaint(data, *arguments, "--data", "d")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_the_console_refuses_a_file_of_certificates_that_it_cannot_read(data: Path, content: str | None) -> None:
    if content is not None:
        (data / "ca.pem").write_text(content)
    assert "--ca-file ca.pem" in complaint(data, "console", "--ca-file", "ca.pem", "--bind", "127.0.0.1:8600")


def test_check_shows_every_setting_and_masks_secrets(data: Path) -> None:
    pepper = "1:pepper-canary-5f2c81d93be7046a1c9e77b2d4"
    out = good(data, "check", environment={"METERHOUSE_KEY_PEPPER": pepper, "METERHOUSE_SHIP_SECONDS": "0.7"})
    assert "pepper-canary" not in out
    assert re.search(r"METERHOUSE_KEY_PEPPER +\*+ ", out)
    assert re.search(r"METERHOUSE_SHIP_SECONDS +0\.7 ", out)
    assert len([line for line in out.splitlines() if line.strip().startswith("METERHOUSE_")]) > 25


@pytest.mark.parametrize("address", ["//u:one@CANARY@h/x", "//u:CANARY@h/x", "//h/x?token=CANARY", "//h?a=b&c=CANARY"])
def test_check_masks_what_an_address_holds_of_a_secret(data: Path, address: str) -> None:
    for name in ("METERHOUSE_CLOUDEVENTS_URL", "METERHOUSE_OTLP_ENDPOINT"):
        out = run(data, "check", environment={name: f"https:{address}"}).out
        assert "CANARY" not in out
        assert re.search(rf"{name} +https://.*h.*\*+", out) or re.search(rf"{name} +https://\*+@h/x ", out)


def test_check_looks_at_the_pepper_of_the_embedded_form_too(data: Path) -> None:
    done = run(data, "check", environment={"METERHOUSE_KEY_PEPPER": "1:short"})
    assert done.status == 2
    assert "shorter than 32 characters" in done.out


@pytest.mark.parametrize(
    "command",
    [
        "", "dev", "check", "usage", "keys", "keys create", "keys create-admin", "keys list", "keys revoke",
        "keys rotate", "limits", "limits set", "limits show", "prices", "prices set", "prices list", "ledger",
        "ledger rebuild",
    ],
)  # fmt: skip
def test_help_says_what_a_command_is_for(data: Path, command: str) -> None:
    out = good(data, *command.split(), "--help")
    assert f"meterhouse {command}".strip() in out
    assert "Usage: " in out
    assert len(out.splitlines()) > 5


def test_an_unknown_command_is_refused(data: Path) -> None:
    done = run(data, "keys", "shred")
    assert done.status == 2
    assert "shred" in done.err
    assert "Traceback" not in done.err
