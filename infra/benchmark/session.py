"""A run: the upstream, the servers that are asked in turn, the windows in which they are, and what is in the books.

Not here: what is asked in which order (``comparison`` and the other measurements), and what it means (``report``).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import servers
from benchmark.gateway import Gateway, run_embedded, run_production
from benchmark.report import Books, Measurement
from benchmark.servers import BenchError, Cores, Server

LOAD_SECONDS = 60
"""How long the load generator may take beside its window: starting, warming up, reading what is open to its end."""
DRAIN_SECONDS = 120
"""The longest wait for the ledger, as long as its rows still grow."""
STILL_SECONDS = 5
"""Fifteen times the shipping period and more: what has not moved for so long does not come."""
WARM_SECONDS = 0.3


@dataclass(frozen=True)
class Question:
    """What is asked in a window, over how many connections, for how long."""

    kind: str = "json"
    """Or ``stream``."""
    connections: int = 32
    seconds: float = 4.0
    kilobytes: int = 0
    """Of the prompt; 0: a line."""
    keys: Path | None = None
    """A file with a key a line, to be used in turn; None: the server's own."""


class Session:
    """The servers of a run. Whatever it started ends with it."""

    def __init__(self, stack: ExitStack, cores: Cores, folder: Path, pace: float) -> None:
        self._stack = stack
        self.cores = cores
        self.folder = folder
        self.books = Books()
        self.upstream: Server = stack.enter_context(servers.run_upstream(cores, folder, pace))

    def start_bare(self) -> Server:
        """Start the bare pass-through."""
        return self._stack.enter_context(servers.run_pass_through(self.cores, self.folder, self.upstream))

    def start_gateway(self, *, is_embedded: bool = False, extra: Mapping[str, str] | None = None) -> Gateway:
        """Start Meterhouse, with further settings."""
        run = run_embedded if is_embedded else run_production
        return self._stack.enter_context(run(self.cores, self.folder, self.upstream, extra or {}))

    def ask(self, target: Server, question: Question) -> Measurement:
        """Measure one window of a server; what Meterhouse answers is booked.

        Raises:
            BenchError: The load generator failed, or a server that has no books failed a request.
        """
        seconds = question.seconds
        options = {
            "port": target.port,
            "model": target.model,
            "key": target.key,
            "connections": question.connections,
            "seconds": seconds,
            "warm-seconds": min(WARM_SECONDS, seconds / 4),
            "body": question.kilobytes,
            **({"keys-file": question.keys} if question.keys is not None else {}),
        }
        command = [sys.executable, "-m", "benchmark.load"]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command += ["--stream"] if question.kind == "stream" else []
        command += ["--watch", *(f"{name}={pid}" for name, pid in self.watched(target).items())]
        served_before = servers.count_served(self.upstream)
        values = self.run_load(command, LOAD_SECONDS + seconds)
        if isinstance(target, Gateway):
            self.books.add(values, servers.count_served(self.upstream) - served_before)
        elif values["failures"]:
            raise BenchError(f"{target.name} failed {values['failures']} times: {values['first_failure']}")
        return Measurement(target.name, question.kind, question.connections, values)

    def watched(self, target: Server) -> dict[str, int]:
        """Return the processes whose CPU time is of interest while a server is asked, by name."""
        helpers = dict(target.helpers) if isinstance(target, Gateway) else {}
        upstream = {"upstream": self.upstream.pid} if target is not self.upstream else {}
        return {"server": target.pid, **upstream, **helpers}

    def run_load(self, command: list[str], seconds: float) -> dict[str, Any]:
        """Run a load generator to its end and return what it found; raises BenchError when it failed."""
        log = self.folder / "load.log"
        with servers.run_process(command, self.cores.others, log) as running:
            try:
                code = running.wait(seconds)
            except subprocess.TimeoutExpired:
                raise BenchError(f"the load generator did not end within {seconds:g} s") from None
        text = log.read_text(encoding="utf-8")
        if code:
            raise BenchError(f"the load generator failed:\n{text[-2000:]}")
        values: dict[str, Any] = json.loads(text.splitlines()[-1])
        return values

    def close_books(self, gateway: Gateway, *, is_spooled: bool = False) -> None:
        """Wait until the ledger has a row for each answer that was served, or its rows no longer grow.

        What was spooled is not shipped by waiting: then the server is ended first, and its journals are adopted. That
        is also done when rows are missing, to tell what is late from what is lost.
        """
        books, began = self.books, time.monotonic()
        books.rows = gateway.count()
        books.backlog = books.served - books.rows
        if is_spooled and gateway.stop is not None:
            gateway.stop()
        still_since = time.monotonic()
        books.rows = gateway.count()
        while books.rows != books.served and time.monotonic() - began < DRAIN_SECONDS:
            time.sleep(0.1)
            before, books.rows = books.rows, gateway.count()
            if books.rows != before:
                still_since = time.monotonic()
            if time.monotonic() - still_since > STILL_SECONDS:
                break
        if books.rows != books.served and not is_spooled and gateway.stop is not None:
            gateway.stop()
            books.adopted_rows = gateway.count() - books.rows
        books.drain_seconds = time.monotonic() - began


@contextmanager
def open_session(folder: Path, pace: float = 0) -> Iterator[Session]:
    """Start the upstream; whatever is started ends with the session.

    This process, and what it starts without a word of where, stays off the core of the server under test.

    Raises:
        BenchError: There is one core only, or the upstream does not start.
    """
    cores = servers.choose_cores()
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.others)
    try:
        with ExitStack() as stack:
            yield Session(stack, cores, folder, pace)
    finally:
        os.sched_setaffinity(0, own)
