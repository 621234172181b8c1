"""``infra/bench``: Meterhouse, a bare pass-through and the upstream itself, measured in turn in one run.

JSON answers and streams of 20 tokens. The server under test has a core for itself, load generator and upstream share
another. Figures of one run compare with one another, not with those of another machine or hour.
VOID: Meterhouse's ledger does not hold a row for each answer that the upstream served (exit 1), or the machine was too
disturbed to measure (exit 1; with --quick only said).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark import servers
from benchmark.report import Measurement, find_void_reasons, format_table, make_cells
from benchmark.servers import BenchError, Cores, Server

TARGETS = ("direct", "pass-through", "meterhouse")
KINDS = ("json", "stream")
LOAD_SECONDS = 60


@dataclass
class Books:
    """What Meterhouse was asked, over all its windows: it must be in the ledger in the end."""

    served: int = 0
    answers: int = 0
    rows: int = 0
    failures: int = 0
    first_failure: str = ""

    @property
    def is_balanced(self) -> bool:
        """Whether the ledger has a row for each answer that the upstream served."""
        return self.rows == self.served and not self.failures


class Run:
    """One run of the benchmark."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._arguments = arguments
        self._folder = folder
        self._cores: Cores = servers.choose_cores()
        self.books = Books()

    def measure(self) -> list[Measurement]:
        """Start everything, measure in turn, stop everything."""
        arguments = self._arguments
        measurements = []
        with ExitStack() as stack:
            upstream = stack.enter_context(servers.run_upstream(self._cores, self._folder))
            targets = [self._start(stack, name, upstream) for name in arguments.targets]
            for _ in range(arguments.rounds):
                for kind in KINDS:
                    for connections in arguments.connections:
                        measurements += [self._ask(target, kind, connections, upstream) for target in targets]
            if "meterhouse" in arguments.targets:
                self.books.rows = servers.wait_rows(self._folder / "data" / "ledger.db", self.books.served)
        return measurements

    def _start(self, stack: ExitStack, name: str, upstream: Server) -> Server:
        if name == "direct":
            return upstream
        start = servers.run_pass_through if name == "pass-through" else servers.run_meterhouse
        return stack.enter_context(start(self._cores, self._folder, upstream))

    def _ask(self, target: Server, kind: str, connections: int, upstream: Server) -> Measurement:
        seconds = self._arguments.seconds
        options = {
            "port": target.port,
            "model": target.model,
            "key": target.key,
            "connections": connections,
            "seconds": seconds,
            "warm-seconds": min(0.3, seconds / 4),
            "server-pid": target.pid,
            "upstream-pid": upstream.pid if target is not upstream else 0,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "benchmark.load", *flags, *(["--stream"] if kind == "stream" else [])]
        served_before = servers.count_served(upstream)
        log = self._folder / "load.log"
        with servers.run_process(command, self._cores.others, log) as process:
            try:
                code = process.wait(LOAD_SECONDS + seconds)
            except subprocess.TimeoutExpired:
                code = -1
        text = log.read_text(encoding="utf-8")
        if code:
            raise BenchError(f"the load generator failed against {target.name}:\n{text[-2000:]}")
        values: dict[str, Any] = json.loads(text.splitlines()[-1])
        if target.name == "meterhouse":
            self._keep_books(values, servers.count_served(upstream) - served_before)
        elif values["failures"]:
            raise BenchError(f"{target.name} failed {values['failures']} times: {values['first_failure']}")
        return Measurement(target.name, kind, connections, values)

    def _keep_books(self, values: dict[str, Any], served: int) -> None:
        books = self.books
        books.served += served
        books.answers += values["all_answers"]
        books.failures += values["failures"]
        books.first_failure = books.first_failure or values["first_failure"]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="infra/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="60 s in all, for CI: noise is reported, not failed")
    parser.add_argument("--seconds", type=float, help="a window (default 4; quick 1.3)")
    parser.add_argument("--rounds", type=int, help="windows of each cell (default 5; quick 2)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32], metavar="N")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - for standard output")
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or (1.3 if arguments.quick else 4.0)
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    return arguments


def main() -> int:
    """Run, print, judge."""
    arguments = parse_arguments()
    report = sys.stderr if arguments.json == "-" else sys.stdout
    try:
        with tempfile.TemporaryDirectory(prefix="meterhouse-bench-") as folder:
            run = Run(arguments, Path(folder))
            cells = make_cells(run.measure())
    except BenchError as error:
        print(f"VOID: {error}", file=sys.stderr)
        return 1
    books = run.books
    reasons = find_void_reasons(cells)
    print(format_table(cells), file=report)
    has_meterhouse = "meterhouse" in arguments.targets
    if has_meterhouse:
        print(f"ledger: {books.rows:,} rows for {books.served:,} answers served by the upstream", file=report)
    if has_meterhouse and not books.is_balanced:
        failure = f"; {books.failures} failures, first: {books.first_failure}" if books.failures else ""
        print(f"VOID: the ledger does not match{failure}", file=report)
    for reason in reasons:
        print(f"VOID: {reason}", file=report)
    is_balanced = books.is_balanced or not has_meterhouse
    if arguments.json:
        figures = {"cells": [asdict(cell) for cell in cells], "ledger": asdict(books), "void": reasons}
        text = json.dumps({**figures, "is_balanced": is_balanced}, indent=2)
        if arguments.json == "-":
            print(text)
        else:
            Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    return 1 if not is_balanced or (reasons and not arguments.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
