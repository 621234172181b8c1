"""The supply chain (PYSEC-2026-2): what is installed is what was chosen, it is listed, and known flaws are found.

Hashes, and files that run when Python starts, are in ``tests/architecture`` (``test_lock``, ``test_layout``).
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from architecture.tree import ROOT
from supply.audit import find_affected, read_snapshot
from supply.pins import LOCKS, Pin, SupplyError, find_installed, read_lock
from supply.sbom import build

PINS = {pin.name: pin for pin in read_lock(LOCKS["runtime"])}


def advisory(name: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}]
    affected = {"package": {"ecosystem": "PyPI", "name": name}, "ranges": ranges, **more.pop("affected", {})}
    return {
        "id": "PYSEC-2026-9999",
        "modified": "2026-11-20T00:00:00Z",
        "aliases": ["CVE-2026-99999"],
        "summary": "A flaw of the test",
        "affected": [affected],
        **more,
    }


def audit(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "supply.audit", *map(str, words)]
    return subprocess.run(command, cwd=ROOT / "infra", capture_output=True, text=True, check=False)


def test_a_locked_version_that_an_advisory_names_is_found(tmp_path: Path) -> None:
    """In each form that a snapshot may have."""
    pin = PINS["aiohttp"]
    found = advisory("AIOHTTP", {"introduced": "0"}, {"fixed": "99.0"})
    one, folder, archive = tmp_path / "one.json", tmp_path / "folder", tmp_path / "all.zip"
    one.write_text(json.dumps([found]))
    folder.mkdir()
    (folder / "PYSEC-2026-9999.json").write_text(json.dumps(found))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("PYSEC-2026-9999.json", json.dumps(found))
    for snapshot in (one, folder, archive):
        done = audit("--snapshot", snapshot)
        assert done.returncode == 1, done.stderr
        line = f"aiohttp {pin.version}: PYSEC-2026-9999, CVE-2026-99999: A flaw of the test (fixed in 99.0)"
        assert line in done.stdout


def test_what_is_clean_is_said_with_the_age_of_what_was_asked(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(json.dumps(advisory("aiohttp", {"introduced": "0"}, {"fixed": "0.1"})))
    done = audit("--snapshot", snapshot)
    assert done.returncode == 0
    assert "the newest of 2026-11-20" in done.stdout
    assert audit("--snapshot", snapshot, "--max-age-days", "0").returncode == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '[{"no": "id"}]', "null"])
def test_no_snapshot_is_no_good_news(tmp_path: Path, text: str) -> None:
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(text)
    with pytest.raises(SupplyError):
        read_snapshot(snapshot)
    with pytest.raises(SupplyError):
        read_snapshot(tmp_path / "missing")


@pytest.mark.parametrize(
    ("version", "events", "is_affected"),
    [
        ("1.5", [{"introduced": "0"}, {"fixed": "1.5"}], False),
        ("1.5", [{"introduced": "0"}, {"fixed": "1.5.1"}], True),
        ("1.5", [{"introduced": "1.5"}], True),
        ("1.5", [{"introduced": "1.6"}], False),
        ("1.5", [{"introduced": "0"}, {"last_affected": "1.5"}], True),
        ("1.5", [{"introduced": "0"}, {"last_affected": "1.4"}], False),
        ("1.10", [{"introduced": "1.2"}, {"fixed": "1.9"}], False),
        ("2.1", [{"introduced": "0"}, {"fixed": "1.9"}, {"introduced": "2.0"}, {"fixed": "2.2"}], True),
        ("1.9", [{"introduced": "0"}, {"fixed": "1.9"}, {"introduced": "2.0"}, {"fixed": "2.2"}], False),
        ("2.0rc1", [{"introduced": "0"}, {"fixed": "2.0"}], True),
    ],
)
def test_ranges_are_walked_as_osv_says(version: str, events: list[dict[str, str]], is_affected: bool) -> None:
    pin = Pin("some-package", version, ())
    assert bool(find_affected([pin], [advisory("Some_Package", *events)])) is is_affected
    assert not find_affected([pin], [advisory("some-package", *events, withdrawn="2026-11-21T00:00:00Z")])
    assert not find_affected([pin], [advisory("some-package-too", *events)])
    listed = advisory("some.package", affected={"versions": [version], "ranges": []})
    assert find_affected([pin], [listed])


@pytest.mark.parametrize("lock", sorted(LOCKS))
def test_the_bill_of_materials_lists_what_is_locked_and_is_the_same_each_time(lock: str) -> None:
    bill = build(lock)
    assert json.dumps(bill, sort_keys=True) == json.dumps(build(lock), sort_keys=True)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    pins = {pin.purl: pin for pin in read_lock(LOCKS[lock])}
    components = {component["bom-ref"]: component for component in bill["components"]}
    assert components.keys() == pins.keys()
    for purl, component in components.items():
        assert (component["purl"], component["type"], component["version"]) == (purl, "library", pins[purl].version)
        hashes = [row["value"] for row in component["properties"] if row["name"] == "meterhouse:lock:sha256"]
        assert tuple(hashes) == pins[purl].hashes
        assert hashes
    refs = {row["ref"] for row in bill["dependencies"]}
    needed = {ref for row in bill["dependencies"] for ref in row["dependsOn"]}
    assert refs - {bill["metadata"]["component"]["bom-ref"]} == components.keys()
    assert needed <= components.keys()
    assert "timestamp" not in json.dumps(bill)


def test_nothing_is_installed_that_is_not_locked() -> None:
    import importlib.metadata  # noqa: PLC0415 - only here

    from supply.pins import normal  # noqa: PLC0415 - only here

    installed = {normal(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    locked = {pin.name for pin in read_lock(LOCKS["development"])}
    unknown = installed - locked - {"meterhouse", "pip", "setuptools", "wheel"}
    assert not unknown, f"{unknown} came from elsewhere than the lock"


def test_another_version_than_the_locked_one_is_no_bill() -> None:
    with pytest.raises(SupplyError, match="is locked, but installed as"):
        find_installed([Pin("aiohttp", "0.0.1", ())])
    with pytest.raises(SupplyError, match="not installed"):
        find_installed([Pin("no-such-package", "1", ())])


def test_no_finding_of_the_security_rules_of_ruff_is_let_pass_for_a_whole_folder() -> None:
    """``ruff check`` runs all of them (S) over the package; a line that is excused says why."""
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ruff",
            "check",
            "--select",
            "S",
            "--ignore",
            "S101",
            "--no-cache",
            "platform",
            "alembic",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    excused = [
        line
        for path in (ROOT / "platform").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "noqa: S" in line
    ]
    assert all(" - " in line.partition("noqa: S")[2] for line in excused), excused
