"""The command line as an operator runs it, in a folder of its own: in this process, or where it says so in another."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from meterhouse.cli import main

METERHOUSE = str(Path(sys.executable).parent / "meterhouse")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str


def environment_of(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without anything that sets up Meterhouse or a provider."""
    unwanted = ("METERHOUSE_", "OPENAI_", "OLLAMA_")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | dict(extra or {})


def run(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Run the entry point of ``meterhouse`` to its end. A process for each of so many commands would take too long."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status: object = None
    with (
        chdir(folder),
        mock.patch.dict(os.environ, environment_of(environment), clear=True),
        mock.patch.object(sys, "argv", ["meterhouse", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    assert isinstance(status, int | None)
    return Finished(status or 0, _text(out), _text(err))


def run_process(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Run ``meterhouse`` as a process."""
    done = subprocess.run(
        [METERHOUSE, *arguments],
        cwd=folder,
        env=environment_of(environment),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def good(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = run(folder, *arguments, environment=environment)
    assert done.status == 0, done
    assert "Traceback" not in done.err
    return done.out


def complaint_of(done: Finished) -> str:
    """Return the one clear line that a command refused with."""
    assert done.status not in {0, 1}, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("meterhouse: ")
    return line


def complaint(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command that must refuse; returns the line."""
    return complaint_of(run(folder, *arguments, environment=environment))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()
