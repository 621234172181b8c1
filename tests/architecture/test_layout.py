"""What lies where, and how large it may be."""

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from architecture.tree import PACKAGE, ROOT, place, sources

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
TOP_LEVEL = {
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "docker-compose.yml",
    "nginx.conf",
    "requirements.lock",
    "requirements-dev.lock",
    "infra",
    "alembic",
    "tests",
    "platform",
    ".ci",
    ".git",
    ".gitignore",
    ".gitattributes",
    ".env.example",
    ".dockerignore",
}
GRAB_BAGS = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
KNOWN_PTH = ("__editable__.meterhouse-", "distutils-precedence.pth", "_virtualenv.pth")
SCRIPTS = (
    "infra/run",
    "infra/test",
    "infra/up",
    "infra/tls",
    "infra/nginx-conf",
    "infra/build",
    "infra/secrets",
    "infra/smoke",
    "infra/sbom",
    "infra/audit",
    ".ci/run",
)


def ignored_names() -> set[str]:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return {line.strip("/") for line in lines}


@pytest.mark.parametrize("folder", ["platform", "alembic"])
def test_a_source_root_is_not_a_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), (
        f"{folder}/__init__.py must not exist: it would make `{folder}` a package of ours, which hides the module of "
        "the same name (the standard library's platform, the library alembic) from everything started in the checkout"
    )


def test_the_standard_platform_and_the_library_alembic_are_found_from_the_checkout() -> None:
    code = (
        "import platform, alembic.command; print(platform.__file__); print(alembic.__file__); print(platform.system())"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    standard, library, system = found.splitlines()
    assert Path(standard).parent == Path(sysconfig.get_path("stdlib")), "the standard library's platform is hidden"
    assert str(ROOT / "alembic") not in library, "the library alembic is hidden by the folder of migrations"
    assert system


def test_the_top_level_holds_only_what_the_design_names() -> None:
    found = {path.name for path in ROOT.iterdir()}
    unknown = found - TOP_LEVEL - ignored_names()
    assert not unknown, (
        f"{sorted(unknown)} at the top level: everything else has a folder (infra/, platform/, tests/); a reader "
        "should see the whole project in one screen"
    )


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {path: len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) for path in sources()}
    too_long = {path: length for path, length in lengths.items() if length > MAX_FILE_LINES}
    assert not too_long, f"split these, they have more than one job (limit {MAX_FILE_LINES} lines): {too_long}"


def test_no_function_is_longer_than_70_lines() -> None:
    too_long = {
        f"{place(path, node)} {node.name}": node.end_lineno - node.lineno + 1
        for path, module in sources().items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not too_long, f"a function fits on a screen (limit {MAX_FUNCTION_LINES} lines): {too_long}"


def test_no_module_is_a_grab_bag() -> None:
    found = [path for path in sources() if Path(path).name in GRAB_BAGS]
    assert not found, f"{found}: a module is named after its one job; what several share belongs to the vocabulary"


def test_every_module_says_what_its_job_is() -> None:
    silent = [path for path, module in sources().items() if not ast.get_docstring(module)]
    assert not silent, f"these modules have no docstring that states their one job: {silent}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_executed_parses_and_stops_at_the_first_failure(name: str) -> None:
    script = ROOT / name
    assert os.access(script, os.X_OK), f"{name} must be executable: the README says to run it as it is"
    assert "set -euo pipefail" in script.read_text(encoding="utf-8"), f"{name} would go on after a failure"
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run(["bash", "-n", ROOT / "infra" / "setup.sh"], check=True)


def test_nothing_runs_by_itself_when_python_starts() -> None:
    folders = {Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))}
    found = [path for folder in folders for path in folder.glob("*.pth")]
    unknown = [path.name for path in found if not path.name.startswith(KNOWN_PTH)]
    hooks = [
        name for folder in folders for name in ("sitecustomize.py", "usercustomize.py") if (folder / name).exists()
    ]
    assert found, "no .pth file at all: this looks at the wrong folder"
    assert not unknown + hooks, (
        f"{unknown + hooks} in the virtual environment: such files run at every start of Python, which is how the "
        "litellm packages of 2026-03-24 stole credentials; add one to KNOWN_PTH only after reading it"
    )


def test_our_own_pth_is_a_path_and_not_code() -> None:
    (ours,) = Path(sysconfig.get_path("purelib")).glob("__editable__.meterhouse-*.pth")
    assert ours.read_text(encoding="utf-8").strip() == str(ROOT / "platform")
