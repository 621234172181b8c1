"""Imports point downwards only."""

import os
import subprocess
import sys
from pathlib import Path

from architecture.tree import ROOT


def test_every_import_contract_holds() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert result.returncode == 0, (
        "an import points upwards or to a sibling: what two siblings share belongs to the vocabulary, what puts them "
        f"together belongs to composition (design.md 2)\n{result.stdout}{result.stderr}"
    )
    assert " 0 broken" in result.stdout, f"the linter checked nothing:\n{result.stdout}"
