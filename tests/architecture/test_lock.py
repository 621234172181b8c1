"""What is installed is what was locked, byte for byte, from wherever pip is told to look."""

import re
import tomllib

import pytest

from architecture.tree import ROOT

LOCKS = ("requirements.lock", "requirements-dev.lock")
OTHER_LOCKS = ("infra/real-model/wheels.lock", "infra/real-model/source.lock", "infra/fuzz/wheels.lock")
CLIENT_LOCKS = tuple(f"infra/clients/{name}.lock" for name in ("langchain", "llama-index", "pydantic-ai"))
PIN = re.compile(
    r"([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)(?: ; [^\\]+)?((?: \\\n {4}--hash=sha256:[0-9a-f]{64})*)\n", re.IGNORECASE
)
# In pieces, so that this file does not hold what it forbids.
REGISTRY_WORDS = (
    "pypi" + ".org",
    "npmjs" + ".org",
    "python" + "hosted",
    "index" + "-url",
    "trusted" + "-host",
    "find" + "-links",
)
INSTALLING_FILES = (
    *("pyproject.toml", *LOCKS, "infra/run", "infra/test", "infra/up", "infra/build", "infra/setup.sh", ".ci/run"),
    *("infra/Dockerfile", "docker-compose.yml", "infra/real-model/setup.sh", "infra/fuzz/setup.sh", *OTHER_LOCKS),
    *("infra/clients/setup.sh", "infra/clients/node.lock", *CLIENT_LOCKS),
)


def pins(name: str) -> dict[str, tuple[str, str]]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return {package: (version, hashes) for package, version, hashes in PIN.findall(text)}


@pytest.mark.parametrize("name", [*LOCKS, *OTHER_LOCKS, *CLIENT_LOCKS])
def test_every_pin_has_its_hashes_and_there_is_nothing_else(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    left = PIN.sub("", text).strip()
    assert not left, f"{name} may hold pins with hashes and nothing else (no options, no addresses): {left[:200]!r}"
    bare = [package for package, (_, hashes) in pins(name).items() if not hashes]
    assert not bare, f"{name}: {bare} have no hash, so that whatever a server calls by this name would be installed"


@pytest.mark.parametrize("name", INSTALLING_FILES)
def test_no_registry_is_named(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").lower()
    found = [word for word in REGISTRY_WORDS if word in text]
    assert not found, f"{name} names {found}: where packages come from is the installing machine's business"
    if name.endswith(".lock"):
        assert "://" not in text, f"{name} holds an address: the same lock must install from any mirror"


def test_the_development_lock_contains_the_runtime_lock() -> None:
    runtime, development = (pins(name) for name in LOCKS)
    different = {package for package, pin in runtime.items() if development.get(package) != pin}
    assert not different, f"{different}: what is tested must be what runs"


def test_every_declared_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {
        LOCKS[0]: [*project["dependencies"], *project["optional-dependencies"]["build"]],
        LOCKS[1]: [dependency for group in project["optional-dependencies"].values() for dependency in group],
    }
    for lock, dependencies in groups.items():
        names = {re.split(r"[\[<>=!~ ;]", dependency)[0].replace("_", "-").lower() for dependency in dependencies}
        missing = names - set(pins(lock))
        assert not missing, f"{lock} does not have {missing}: compile it again"
