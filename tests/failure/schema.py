"""Migrations as an operator runs them, while everything serves."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
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


def migrate_again(environment: Mapping[str, str], database_url: str, revision: str) -> str:
    """Take migrations back and make them again, in one process; returns what the second command said.

    What serves meanwhile meets a schema that its code is ahead of for no longer than the statements take, however long
    a process takes to start.
    """
    words = ["python", "-m", "failure.migrate_again", database_url, revision]
    python_path = {"PYTHONPATH": str(REPOSITORY / "tests"), "METERHOUSE_DATABASE_URL": database_url}
    return _until_no_lock(lambda: run_command(words, {**environment, **python_path}))


def take_back(database_url: str, revision: str) -> None:
    """Take migrations back, again while one meets a lock: it waits for none longer than a request does."""
    _until_no_lock(lambda: run_command(["alembic", "-x", f"url={database_url}", "downgrade", revision], {}))


def _until_no_lock(work: Callable[[], str]) -> str:
    for _ in range(TRIES):
        try:
            return work()
        except AssertionError as error:
            if "LockNotAvailable" not in str(error) and "Deadlock" not in str(error):
                raise
    raise AssertionError("every try met a lock")
