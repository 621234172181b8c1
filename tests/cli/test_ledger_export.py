"""Exports as an auditor meets them: written, signed, verified, and the database behind them changed."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli import books
from cli.command import complaint, good, run

VERIFY = ("ledger", "verify", "out", "--public-key", "key.pem", "--data", "d")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    books.make(tmp_path, *books.records_of(4), *books.records_of(2, organization_id="org_2"))
    (tmp_path / "key.pem").write_text(good(tmp_path, "ledger", "public-key", "--data", "d"))
    return tmp_path


def test_an_export_is_verified_with_the_public_key_alone(house: Path) -> None:
    good(house, "ledger", "export", "-o", "out", "--data", "d")
    (house / "d").rename(house / "away")
    out = good(house, *VERIFY)
    assert out == "Good: 6 records (0.000006 USD) and 0 adjustments (0 USD) are what was sealed and signed.\n"
    assert not (house / "d").exists()


def test_the_signing_key_is_made_once_and_is_its_owners_alone(house: Path) -> None:
    path = house / "d" / "ledger-signing-key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert good(house, "ledger", "public-key", "--data", "d") == (house / "key.pem").read_text()
    assert sorted(one.name for one in path.parent.glob("ledger-signing-key*")) == [path.name]
    path.chmod(0o644)
    assert "chmod 600" in complaint(house, "ledger", "public-key", "--data", "d")
    path.chmod(0o600)
    path.write_text("nothing")
    assert "no private key" in complaint(house, "ledger", "export", "--data", "d")


def test_standard_output_takes_the_same_file(house: Path) -> None:
    (house / "out").write_text(good(house, "ledger", "export", "--data", "d"))
    good(house, *VERIFY)


def test_a_csv_is_signed_beside_it(house: Path) -> None:
    assert "--output" in complaint(house, "ledger", "export", "--format", "csv", "--data", "d")
    good(house, "ledger", "export", "--format", "csv", "-o", "out", "--data", "d")
    assert (house / "out").read_text().startswith("kind,organization_id,sequence,")
    good(house, *VERIFY, "--against-database")
    (house / "out.sig").unlink()
    assert run(house, *VERIFY).status == 1


def test_one_organization_and_a_part_of_the_time(house: Path) -> None:
    good(house, "ledger", "export", "--organization", "org_2", "-o", "out", "--data", "d")
    assert good(house, *VERIFY, "--against-database").startswith("Good: 2 records")
    day = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%d")
    good(house, "ledger", "export", "--from", day, "-o", "out", "--data", "d")
    assert good(house, *VERIFY).startswith("Good: 0 records")
    good(house, "ledger", "export", "--to", day, "-o", "out", "--data", "d")
    assert good(house, *VERIFY, "--against-database").startswith("Good: 6 records")


def test_consecutive_exports_join(house: Path) -> None:
    good(house, "ledger", "export", "--organization", "org_1", "-o", "out", "--data", "d")
    first = (house / "out").read_bytes()
    books.insert(house, *books.records_of(2))
    good(house, "ledger", "export", "--organization", "org_1", "-o", "out", "--data", "d")
    assert (house / "out").read_bytes().splitlines()[:4] == first.splitlines()[:4]
    assert good(house, *VERIFY).startswith("Good: 6 records")


def test_a_changed_file_is_a_finding_that_names_the_row(house: Path) -> None:
    good(house, "ledger", "export", "-o", "out", "--data", "d")
    text = (house / "out").read_text()
    (house / "out").write_text(text.replace('"charge_nanos":1000', '"charge_nanos":10', 1))
    done = run(house, *VERIFY)
    assert done.status == 1
    request_id = re.search(r'"request_id":"(\w+)"', text)
    assert request_id is not None
    assert f"changed: organization org_1, sequence 1 (request {request_id[1]} attempt 1)" in done.out
    assert "Good" not in done.out


def test_a_file_that_lacks_rows_has_them_named_by_the_database(house: Path) -> None:
    good(house, "ledger", "export", "-o", "out", "--data", "d")
    lines = (house / "out").read_bytes().splitlines(keepends=True)
    (house / "out").write_bytes(b"".join([lines[0], *lines[2:]]))
    done = run(house, *VERIFY, "--against-database")
    assert done.status == 1
    request_id = re.search(rb'"request_id":"(\w+)"', lines[1])
    assert request_id is not None
    assert "missing: organization org_1, sequence 2: the row is not there" in done.out
    assert f"sequence 2 (request {request_id[1].decode()} attempt 1): the database has it (database)" in done.out


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE usage_record SET output_tokens = 11 WHERE organization_id = 'org_2'", "output_tokens is 11 in the"),
        ("DELETE FROM usage_record WHERE organization_id = 'org_2'", "the database has its seal, but not the row"),
        ("UPDATE seal SET hash = '1:00' WHERE sequence = 2", "the hash of its seal is another"),
    ],
)
def test_a_changed_database_is_a_finding(house: Path, statement: str, word: str) -> None:
    good(house, "ledger", "export", "-o", "out", "--data", "d")
    books.tamper(house, statement)
    assert good(house, *VERIFY).startswith("Good")
    done = run(house, *VERIFY, "--against-database")
    assert done.status == 1
    assert word in done.out
    refused = run(house, "ledger", "export", "-o", "again", "--data", "d")
    assert refused.status == 2
    assert "nothing is signed" in refused.err
    assert not list(house.glob("again*"))


def test_many_findings_are_counted(tmp_path: Path) -> None:
    books.make(tmp_path, *books.records_of(250))
    (tmp_path / "key.pem").write_text(good(tmp_path, "ledger", "public-key", "--data", "d"))
    good(tmp_path, "ledger", "export", "-o", "out", "--data", "d")
    (tmp_path / "out").write_text((tmp_path / "out").read_text().replace('"model":"gpt"', '"model":"x"'))
    done = run(tmp_path, *VERIFY)
    assert done.status == 1
    assert done.out.splitlines()[-1] == "... and 50 more"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ledger", "export", "--format", "xml"), "jsonl or csv"),
        (("ledger", "export", "--from", "soon"), "--from"),
        (("ledger", "export", "-o", "no/folder"), "no/folder"),
        (("ledger", "verify", "none", "--public-key", "key.pem"), "none cannot be read"),
        (("ledger", "verify", "key.pem", "--public-key", "none"), "none cannot be read"),
        (("ledger", "verify", "key.pem", "--public-key", "d/pepper"), "no public key"),
    ],
)
def test_a_mistake_is_one_line(house: Path, arguments: tuple[str, ...], word: str) -> None:
    assert word in complaint(house, *arguments, "--data", "d")


def test_a_file_that_is_no_export_is_a_finding(house: Path) -> None:
    (house / "out").write_text("nothing\n")
    done = run(house, *VERIFY)
    assert done.status == 1
    assert "not signed" in done.out


def test_a_wrong_projection_is_told_and_rebuilt(house: Path) -> None:
    assert "agrees" in good(house, "ledger", "rebuild", "--check", "--data", "d")
    books.tamper(house, "UPDATE usage_hour SET charge_nanos = charge_nanos - 5 WHERE organization_id = 'org_2'")
    done = run(house, "ledger", "rebuild", "--check", "--data", "d")
    assert done.status == 1
    assert "organization_id=org_2" in done.out
    assert "charge_nanos +5" in done.out
    assert "1 groups of the projection were made" in good(house, "ledger", "rebuild", "--data", "d")
    assert good(house, "ledger", "rebuild", "--data", "d") == "The projection agrees with the records.\n"


@pytest.mark.parametrize(
    "name",
    ["export", "public-key", "verify", "rebuild", "adopt", "replay", "adjust", "adjustments", "reconcile"],
)
def test_every_command_says_what_it_is_for_with_an_example(tmp_path: Path, name: str) -> None:
    text = good(tmp_path, "ledger", name, "--help")
    assert f"Example: meterhouse ledger {name} " in " ".join(text.split())
