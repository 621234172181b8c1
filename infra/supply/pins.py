"""The packages of a lock, and what is known of those that are installed. Reads files only.

Invariant: what is listed is what is locked and installed here, both of one version; anything else is an error, because
a list of something else would be believed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {"runtime": ROOT / "requirements.lock", "development": ROOT / "requirements-dev.lock"}
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+?))? \\\n")
_HASH = re.compile(r" {4}--hash=sha256:([0-9a-f]{64})")


class SupplyError(Exception):
    """What is installed or given cannot be used; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One version of one package, as it is locked."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        """The package URL, by which every tool knows it."""
        return f"pkg:pypi/{self.name}@{self.version}"


def normal(name: str) -> str:
    """Return a package's name as all its spellings are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path) -> list[Pin]:
    """Return the pins of a lock that apply to this machine, by name.

    Raises:
        SupplyError: It holds none.
    """
    text = path.read_text(encoding="utf-8")
    matches = list(_PIN.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    pins = [
        Pin(normal(match["name"]), match["version"], tuple(sorted(_HASH.findall(text, match.end(), end))))
        for match, end in zip(matches, ends, strict=True)
        if match["marker"] is None or Marker(match["marker"]).evaluate()
    ]
    if not pins:
        raise SupplyError(f"{path} holds no pins.")
    return sorted(pins, key=lambda pin: pin.name)


def find_installed(pins: Iterable[Pin]) -> dict[str, Distribution]:
    """Return what is installed of these pins, by name.

    Raises:
        SupplyError: Something is missing, or of another version.
    """
    found = {normal(one.metadata["Name"]): one for one in distributions()}
    for pin in pins:
        installed = found.get(pin.name)
        if installed is None or installed.version != pin.version:
            version = "not installed" if installed is None else f"installed as {installed.version}"
            raise SupplyError(f"{pin.name} {pin.version} is locked, but {version}. Run infra/run or infra/test first.")
    return {pin.name: found[pin.name] for pin in pins}


def needs_of(distribution: Distribution, known: Iterable[str]) -> list[str]:
    """Return which of the known packages one needs directly."""
    names = set(known)
    needs = set()
    for text in distribution.requires or ():
        requirement = Requirement(text)
        name = normal(requirement.name)
        if name in names and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            needs.add(name)
    return sorted(needs)
