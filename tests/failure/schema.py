"""Migrations as an operator runs them, while everything serves."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TRIES = 10


def run_command(words: list[str], environment: Mapping[str, str]) -> str:
    """Run a command of the environment's bin folder; returns what it said."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=REPOSITORY,
        env={**base, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def migrate(environment: Mapping[str, str], database_url: str) -> str:
    """Bring the schema up to date; returns what the command said."""
    return run_command(["meterhouse", "migrate"], {**environment, "METERHOUSE_DATABASE_URL": database_url})


def take_back(database_url: str, revision: str) -> None:
    """Take migrations back, again while one meets a lock: it waits for none longer than a request does."""
    for _ in range(TRIES):
        try:
            run_command(["alembic", "-x", f"url={database_url}", "downgrade", revision], {})
        except AssertionError as error:
            if "LockNotAvailable" not in str(error) and "Deadlock" not in str(error):
                raise
            continue
        return
    raise AssertionError("every try met a lock")
