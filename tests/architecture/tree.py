"""The checkout as the architecture tests read it: its sources, parsed once."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "meterhouse"


@cache
def sources() -> dict[str, ast.Module]:
    """Return every module of the package by its path in it, for example ``http/relay.py``."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Walk all modules: the module's path and each node."""
    for path, module in sources().items():
        for node in ast.walk(module):
            yield path, node


def place(path: str, node: ast.AST) -> str:
    return f"{path}:{getattr(node, 'lineno', 0)}"
