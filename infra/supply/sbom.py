"""A bill of materials in CycloneDX 1.6, from the lock and from what the installed packages say of themselves.

The same lock and packages give the same bytes: no time of day is in it, and its serial number is a digest.
"""

import argparse
import json
import re
import sys
import tomllib
import uuid
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from supply.pins import LOCKS, ROOT, Pin, SupplyError, find_installed, needs_of, normal, read_lock

NAMESPACE = uuid.UUID("6f1c7d0a-58c2-4d4e-9f0e-2f4b8a9d1c33")
MOST_LICENCE_TEXT = 60
_SPDX = re.compile(r"[A-Za-z0-9.+()-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+()-]+)*")


def build(kind: str) -> dict[str, Any]:
    """Return the bill of a lock: ``runtime`` or ``development``.

    Raises:
        SupplyError: What is installed is not what is locked.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = read_lock(LOCKS[kind])
    installed = find_installed(pins)
    purls = {pin.name: pin.purl for pin in pins}
    ours = f"pkg:generic/{project['name']}@{project['version']}"
    direct = {normal(re.split(r"[\[<>=!~ ;]", text)[0]) for text in project["dependencies"]}
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": ours,
                "name": project["name"],
                "version": project["version"],
                "licenses": [{"expression": project["license"]}],
            },
            "properties": [{"name": "meterhouse:lock", "value": LOCKS[kind].name}],
        },
        "components": [_component(pin, installed[pin.name]) for pin in pins],
        "dependencies": [
            {"ref": ours, "dependsOn": sorted(purls[name] for name in direct if name in purls)},
            *(
                {"ref": pin.purl, "dependsOn": [purls[name] for name in needs_of(installed[pin.name], purls)]}
                for pin in pins
            ),
        ],
    }
    serial = uuid.uuid5(NAMESPACE, json.dumps(bill, sort_keys=True))
    return {**bill, "serialNumber": f"urn:uuid:{serial}"}


def _component(pin: Pin, distribution: Distribution) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "purl": pin.purl,
        # Of every file that may be installed by this name; which one was depends on the machine.
        "properties": [{"name": "meterhouse:lock:sha256", "value": value} for value in pin.hashes],
    }
    if licence := _licence(distribution):
        component["licenses"] = [licence]
    return component


def _licence(distribution: Distribution) -> dict[str, Any] | None:
    """Return what a package says of its licence: an expression, else the names of its classifiers or its own word."""
    expression = distribution.metadata.get("License-Expression")
    if expression and _SPDX.fullmatch(expression):
        return {"expression": expression}
    classifiers = distribution.metadata.get_all("Classifier") or []
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: ")]
    name = "; ".join(sorted(names)) or (distribution.metadata.get("License") or "").strip().split("\n")[0]
    return {"license": {"name": name[:MOST_LICENCE_TEXT]}} if name else None


def main() -> None:
    """Print the bill, or write it to a file."""
    parser = argparse.ArgumentParser(prog="infra/sbom", description="A bill of materials (CycloneDX 1.6, JSON).")
    parser.add_argument("--lock", choices=sorted(LOCKS), default="runtime", help="of which lock")
    parser.add_argument("--out", type=Path, help="write here instead of to the terminal")
    arguments = parser.parse_args()
    try:
        text = json.dumps(build(arguments.lock), indent=2, sort_keys=True) + "\n"
    except SupplyError as error:
        sys.exit(f"error: {error}")
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
