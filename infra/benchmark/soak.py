"""``--soak MINUTES``: whether the memory of a worker grows under load, JSON answers and streams in turn."""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from benchmark.proc import read_memory_bytes
from benchmark.report import Outcome, find_slope
from benchmark.session import Question, open_session

CONNECTIONS = 32
WINDOW_SECONDS = 10.0
WARM_SHARE = 0.25
"""The first quarter fills caches and pools, and does not count."""
SECONDS_PER_HOUR = 3600
MEGABYTE = 2**20


def soak(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Load one worker for so many minutes; its memory is read between windows, when nothing is open."""
    seconds = arguments.soak * 60
    window = min(WINDOW_SECONDS, seconds / 16)
    samples: list[tuple[float, int]] = []
    with open_session(folder) as session:
        gateway = session.start_gateway()
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            session.ask(gateway, Question(("json", "stream")[len(samples) % 2], CONNECTIONS, window))
            samples.append((elapsed, read_memory_bytes(gateway.pid)))
        session.close_books(gateway)
    counted = [sample for sample in samples if sample[0] >= seconds * WARM_SHARE]
    slope = find_slope(counted) * SECONDS_PER_HOUR / MEGABYTE
    books = session.books
    first, last, most = counted[0][1], counted[-1][1], max(memory for _, memory in samples)
    return Outcome(
        lines=[
            (
                f"memory of the worker: {slope:+.1f} MB an hour over the last {len(counted)} of {len(samples)} windows "
                f"({first / MEGABYTE:.1f} MB, then {last / MEGABYTE:.1f}, at most {most / MEGABYTE:.1f})"
            ),
            f"requests: {books.answers:,} in {arguments.soak:g} minutes",
            books.describe(),
        ],
        figures={"slope_mb_per_hour": slope, "samples": samples, "ledger": asdict(books)},
        void=books.find_void_reasons(),
    )
