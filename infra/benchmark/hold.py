"""``--hold N``: N open streams of two tokens a second: memory of each, CPU, and the first token while they open."""

import argparse
import resource
import sys
from dataclasses import asdict
from pathlib import Path

from benchmark.report import Outcome
from benchmark.servers import BenchError, count_served
from benchmark.session import Question, Session, open_session

PACE = 2.0
OPENED_PER_SECOND = 1000
HELD_SECONDS = 20.0
QUICK_HELD_SECONDS = 5.0
PATIENCE_SECONDS = 300.0
WARM = Question("json", 32, 1.0)
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
        found = _run_streams(session, gateway.port, gateway.pid, gateway.key, gateway.model, arguments)
        session.close_books(gateway)
    kilobytes = (found["memory_bytes"] - found["memory_before_bytes"]) / max(found["open_while_held"], 1) / 1024
    found["kilobytes_per_stream"] = kilobytes
    lines = [
        (
            f"{found['open_while_held']:,} streams open at {PACE:g} tokens/s each "
            f"(the limit of open files allows {find_most_streams():,})"
        ),
        (
            f"opened at {found['opened'] / found['opened_seconds']:,.0f}/s of {OPENED_PER_SECOND:,}/s asked for; "
            f"worker's core {found['opening_cpu_share']:.0%}"
        ),
        (
            f"first token while they opened: p50 {found['first_token_p50_ms']:.1f} ms, "
            f"p99 {found['first_token_p99_ms']:.1f} ms"
        ),
        (
            f"memory: {kilobytes:.1f} KB per stream ({found['memory_before_bytes'] / 2**20:.0f} MB before, "
            f"{found['memory_bytes'] / 2**20:.0f} MB with them)"
        ),
        f"while held: worker's core {found['cpu_share']:.0%}, {found['pieces_per_second']:,.0f} tokens/s arrived",
        f"ended: all within {found['ending_seconds']:.1f} s",
        session.books.describe(),
    ]
    return Outcome(
        lines=lines,
        figures={"hold": found, "ledger": asdict(session.books)},
        void=session.books.find_void_reasons(),
    )


def _run_streams(
    session: Session, port: int, pid: int, key: str, model: str, arguments: argparse.Namespace
) -> dict[str, float]:
    options = {
        "port": port,
        "upstream-port": session.upstream.port,
        "model": model,
        "key": key,
        "count": arguments.hold,
        "rate": OPENED_PER_SECOND,
        "seconds": QUICK_HELD_SECONDS if arguments.quick else HELD_SECONDS,
        "server-pid": pid,
    }
    command = [sys.executable, "-m", "benchmark.streams"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    served = count_served(session.upstream)
    found = session.run_load(command, PATIENCE_SECONDS)
    session.books.add(found, count_served(session.upstream) - served)
    return found
