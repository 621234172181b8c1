"""``--hold N``: N open streams of two tokens a second: memory of each, CPU, and the first token while they open."""

import argparse
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmark.gateway import Gateway
from benchmark.report import Outcome
from benchmark.servers import BenchError, count_served
from benchmark.session import Question, Session, open_session

PACE = 2.0
HELD_SECONDS = 20.0
QUICK_HELD_SECONDS = 5.0
PATIENCE_SECONDS = 300.0
WARM = Question("json", 32, 1.0)
MEGABYTE = 2**20
FILES_OF_STREAM = 2
"""Descriptors of a worker for each stream: its client's connection and the provider's."""
OTHER_FILES = 500
ROOM = 1.25
"""A worker with a limit of requests keeps its last tenth for other organizations, and here is only one."""


def find_most_streams() -> int:
    """Return how many streams a worker may hold by the limit of open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else (most - OTHER_FILES) // FILES_OF_STREAM


def hold(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure.

    Raises:
        BenchError: The limit of open files does not allow so many.
    """
    count = arguments.hold
    if count > find_most_streams():
        raise BenchError(
            f"the limit of open files allows {find_most_streams():,} streams a worker, not {count:,}: raise it (ulimit "
            "-Hn), or hold fewer"
        )
    with open_session(folder, PACE) as session:
        extra = {"METERHOUSE_MAX_REQUESTS": str(int(count * ROOM) + 64)}
        gateway = session.start_gateway(extra=extra)
        # What is loaded and cached once is not memory of a stream.
        session.ask(gateway, WARM)
        found = _run_streams(session, gateway, arguments)
        session.close_books(gateway)
    kilobytes = (found["memory_bytes"] - found["memory_before_bytes"]) / max(found["open_while_held"], 1) / 1024
    found["kilobytes_per_stream"] = kilobytes
    return Outcome(
        lines=[*describe(found, arguments.rate), session.books.describe()],
        figures={"hold": found, "ledger": asdict(session.books)},
        void=session.books.find_void_reasons(),
    )


def describe(found: Mapping[str, float], rate: float) -> list[str]:
    """Say what was found."""
    opened = found["opened"] / found["opened_seconds"]
    before, during = (found[name] / MEGABYTE for name in ("memory_before_bytes", "memory_bytes"))
    opening, holding = (
        f"worker's core {found[worker]:.0%}, everything else {found[others]:.0%} of a core"
        for worker, others in (("opening_cpu_share", "opening_others_cpu_share"), ("cpu_share", "others_cpu_share"))
    )
    streams = f"{found['open_while_held']:,.0f} streams open at {PACE:g} tokens/s each"
    tokens = f"p50 {found['first_token_p50_ms']:.1f} ms, p99 {found['first_token_p99_ms']:.1f} ms"
    memory = f"{found['kilobytes_per_stream']:.1f} KB per stream"
    return [
        f"{streams} (the limit of open files allows {find_most_streams():,})",
        f"opened at {opened:,.0f}/s of {rate:,.0f}/s asked for; {opening}",
        f"first token while they opened: {tokens}",
        f"memory: {memory} ({before:.0f} MB before, {during:.0f} MB with them)",
        f"while held: {holding}; {found['pieces_per_second']:,.0f} tokens/s arrived",
        f"ended: all within {found['ending_seconds']:.1f} s",
    ]


def _run_streams(session: Session, gateway: Gateway, arguments: argparse.Namespace) -> dict[str, float]:
    options = {
        "port": gateway.port,
        "upstream-port": session.upstream.port,
        "model": gateway.model,
        "key": gateway.key,
        "count": arguments.hold,
        "rate": arguments.rate,
        "seconds": QUICK_HELD_SECONDS if arguments.quick else HELD_SECONDS,
    }
    command = [sys.executable, "-m", "benchmark.streams"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command += ["--watch", *(f"{name}={pid}" for name, pid in session.watched(gateway).items())]
    served = count_served(session.upstream)
    found = session.run_load(command, PATIENCE_SECONDS)
    session.books.add(found, count_served(session.upstream) - served)
    return found
