"""The README is true where a machine can tell: its settings and its error codes are those of the code."""

import ast
import re

import pytest

from architecture.tree import ROOT, nodes
from meterhouse.admin.roles import CHANGERS, LOOKERS, MATRIX, OPERATORS
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.settings import PREFIX, Settings

README = (ROOT / "README.md").read_text(encoding="utf-8")


def codes_in_the_code() -> set[str]:
    """Every literal that is given as an error's code: in a class body, as an argument, or into the ledger."""
    found: set[str] = set()
    for path, node in nodes():
        if path == "errors.py" and isinstance(node, ast.ClassDef):
            for line in node.body:
                target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
                if isinstance(target, ast.Name) and target.id == "code":
                    found.add(getattr(getattr(line, "value", None), "value", None) or "")
        if (
            isinstance(node, ast.keyword)
            and node.arg in {"code", "error_code"}
            and isinstance(node.value, ast.Constant)
        ):
            found.add(str(node.value.value))
    return found - {"", "None"}


def codes_in_the_readme() -> set[str]:
    section = README.split("## Errors")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {code for cell in cells for code in re.findall(r"`([a-z_]+)`", cell)}


def test_every_error_code_has_a_line_in_the_readme() -> None:
    missing = codes_in_the_code() - codes_in_the_readme()
    assert not missing, f"the README's table of errors lacks {sorted(missing)}: a caller must find what to do"


def test_the_readme_names_no_error_code_that_does_not_exist() -> None:
    invented = codes_in_the_readme() - codes_in_the_code()
    assert not invented, f"nothing raises {sorted(invented)}, which the README explains"


def test_the_table_of_the_administration_says_who_may_what() -> None:
    words = {"operator": OPERATORS, "owner": CHANGERS, "all": LOOKERS}
    section = README.split("## Administration")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `((?:[A-Z]+ )+)(/[^`]+)` \| (\w*) ?\| (\w*) ?\|", section, re.MULTILINE)
    told = {
        f"{method} {path}": words.get(look if method == "GET" else change)
        for methods, path, look, change in rows
        for method in methods.split()
    }
    known = {re.sub(r":path}", "}", route): roles for route, roles in MATRIX.items()}
    assert len(told) > 40
    assert told == {route: known.get(route) for route in told}
    paths = {route.partition(" ")[2] for route in known}
    undocumented = {path for path in paths if path not in README and f".../{path.rpartition('/')[2]}" not in README}
    assert not undocumented, f"the README names {undocumented} nowhere"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme(name: str) -> None:
    field = Settings.model_fields[name]
    line = f"| `{PREFIX}{name.upper()}` | {default_of(name)} | {field.description} |"
    assert line in README, f"the README's table of settings lacks this line:\n{line}"


def default_of(name: str) -> str:
    default = Settings.model_fields[name].default
    return "" if default is None else f"`{default}`"


def test_the_example_of_an_env_file_names_only_what_is_read() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE)
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {name for row in PROVIDERS.values() for name in (*row.credential_names, *row.base_url_names)}
    unread = [name for name in names if name not in known and not name.startswith(f"{PREFIX}PROVIDER_")]
    assert names
    assert not unread, f".env.example promises {unread}, which nothing reads"


def test_every_provider_and_its_credential_is_in_the_readme() -> None:
    for row in PROVIDERS.values():
        missing = [name for name in (row.name, *row.credential_names[:1]) if f"`{name}`" not in README]
        assert not missing or row.name == "openai_compatible", f"the README's table of providers lacks {missing}"
