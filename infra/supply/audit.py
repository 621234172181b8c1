"""Known vulnerabilities of what is locked, from a snapshot of advisories in OSV's format. Asks no network.

A snapshot is OSV's archive of an ecosystem (``all.zip``), a folder of such JSON files (also one exported from PyPA's
advisory database), or one JSON file with an advisory or a list of them. Ends with 1 when something is affected, with 2
when the snapshot cannot be used: nothing found in nothing is no good news.
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from supply.pins import LOCKS, Pin, SupplyError, normal, read_lock

AFFECTED, UNUSABLE = 1, 2
MOST_ADVISORY_BYTES = 16 * 1_048_576
HOW = """\
How to get a snapshot: OSV publishes all advisories of an ecosystem as one archive, PyPI/all.zip in its bucket of data
dumps (its documentation, "Data dumps", has the address). Fetch it where there is a network, check its date, and bring
it here: infra/audit --snapshot all.zip. PyPA's advisory database holds the same as YAML; export it as OSV's JSON.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A locked version that an advisory names."""

    pin: Pin
    advisory: str
    aliases: tuple[str, ...]
    fixed: tuple[str, ...]
    summary: str

    def __str__(self) -> str:
        names = ", ".join((self.advisory, *self.aliases))
        fix = f"fixed in {', '.join(self.fixed)}" if self.fixed else "no fix is known"
        return f"{self.pin.name} {self.pin.version}: {names}: {self.summary or 'no summary'} ({fix})"


def read_snapshot(path: Path) -> list[dict[str, Any]]:
    """Return every advisory of a snapshot.

    Raises:
        SupplyError: It cannot be read, or holds none.
    """
    try:
        found = [advisory for text in _texts(path) for advisory in _advisories(json.loads(text))]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SupplyError(f"{path} cannot be read as a snapshot: {error}.") from None
    if not found:
        raise SupplyError(f"{path} holds no advisory.")
    return found


def find_affected(pins: Iterable[Pin], advisories: Iterable[dict[str, Any]]) -> list[Finding]:
    """Return which pins are affected by what, in the order of their names; what was withdrawn counts for nothing."""
    by_name = {pin.name: pin for pin in pins}
    findings = []
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for affected in advisory.get("affected", ()):
            package = affected.get("package", {})
            pin = by_name.get(normal(str(package.get("name", ""))))
            if pin is not None and package.get("ecosystem") == "PyPI" and _is_affected(pin, affected):
                findings.append(_finding(pin, advisory, affected))
    return sorted(findings, key=lambda finding: (finding.pin.name, finding.advisory))


def _texts(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield file.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if item.filename.endswith(".json") and item.file_size <= MOST_ADVISORY_BYTES:
                    yield archive.read(item)
    else:
        yield path.read_bytes()


def _advisories(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict) and isinstance(value.get("vulns"), list):
        value = value["vulns"]
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, dict) and "id" in row for row in rows):
        raise ValueError("something in it is no advisory in OSV's format")
    return rows


def _is_affected(pin: Pin, affected: dict[str, Any]) -> bool:
    if pin.version in affected.get("versions", ()):
        return True
    version = _version(pin.version)
    ranges = (one for one in affected.get("ranges", ()) if one.get("type") == "ECOSYSTEM")
    return any(_is_within(version, one.get("events", ())) for one in ranges)


def _is_within(version: Version, events: Iterable[dict[str, str]]) -> bool:
    """Walk a range's events in the order of their versions: each ``introduced`` holds until a ``fixed`` or a last."""
    ordered = sorted(
        ((_version(text), kind) for event in events for kind, text in event.items() if kind != "limit"),
        key=lambda item: (item[0], item[1] == "last_affected"),
    )
    is_in = False
    for at, kind in ordered:
        if version < at or (version == at and kind == "last_affected"):
            break
        is_in = kind == "introduced"
    return is_in


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        # What cannot be compared is taken for the oldest, so that it counts as affected rather than as not.
        return Version("0")


def _finding(pin: Pin, advisory: dict[str, Any], affected: dict[str, Any]) -> Finding:
    events = [event for one in affected.get("ranges", ()) for event in one.get("events", ())]
    return Finding(
        pin,
        str(advisory["id"]),
        tuple(advisory.get("aliases", ())),
        tuple(event["fixed"] for event in events if "fixed" in event),
        str(advisory.get("summary", "")),
    )


def main() -> None:
    """Look at a lock."""
    parser = argparse.ArgumentParser(
        prog="infra/audit",
        description="Known vulnerabilities of the locked packages, from a snapshot of advisories.",
        epilog=HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--snapshot", type=Path, required=True, help="all.zip, a folder of JSON files, or one of them")
    parser.add_argument("--lock", choices=sorted(LOCKS), default="development", help="of which lock")
    parser.add_argument("--max-age-days", type=float, help="refuse a snapshot whose newest advisory is older")
    arguments = parser.parse_args()
    try:
        advisories = read_snapshot(arguments.snapshot)
        newest = max(str(advisory.get("modified", "")) for advisory in advisories)
        _check_age(newest, arguments.max_age_days)
        pins = read_lock(LOCKS[arguments.lock])
    except SupplyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)
    findings = find_affected(pins, advisories)
    for finding in findings:
        print(finding)
    dated = newest[:10] or "no date"
    print(f"{len(findings)} findings in {len(pins)} packages; {len(advisories)} advisories, the newest of {dated}")
    sys.exit(AFFECTED if findings else 0)


def _check_age(newest: str, most_days: float | None) -> None:
    if most_days is None:
        return
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(newest)
    except ValueError:
        raise SupplyError("the snapshot says nowhere how old it is") from None
    if age.days >= most_days:
        raise SupplyError(f"the newest advisory of the snapshot is {age.days} days old")


if __name__ == "__main__":
    main()
