"""The command line as an operator runs it, in a folder of its own; its entry point runs in this process."""

import io
import os
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


def good(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = run(folder, *arguments, environment=environment)
    assert done.status == 0, done
    assert "Traceback" not in done.err
    return done.out


def complaint(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command that must refuse with one clear line; returns the line."""
    done = run(folder, *arguments, environment=environment)
    assert done.status not in {0, 1}, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("meterhouse: ")
    return line


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()
