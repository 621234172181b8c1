"""``--calls``: how many calls a request makes in the worker, of functions and of builtins, at 32 connections.

The same on any machine and under any load, but for what is done once a second or for several requests at a time: so it
tells a change that its neighbours' noise would hide. The profiler slows the worker down threefold: the times are for
their order. Not here: what a request costs (the main measurement), and where (``stages``).
"""

import argparse
import os
import pstats
import sysconfig
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmark.counting.sitecustomize import BEGIN, END, FILE
from benchmark.gateway import Gateway
from benchmark.report import Outcome
from benchmark.servers import BenchError
from benchmark.session import Question, Session, open_session

CONNECTIONS = 32
KINDS = ("json", "stream")
MOST_MODULES = 40
WRITE_SECONDS = 30
MILLION = 1_000_000
SETTLED = ("/meterhouse/ledger/settler.py", "settle")
"""What is called once for each request."""

Place = tuple[str, int, str]
"""A file, a line in it and a function, as ``pstats`` names them; ``~`` is the file of what is built in."""
Row = tuple[int, int, float, float, Mapping[Place, tuple[int, int, float, float]]]
"""Of a function: calls that were not recursive, calls, seconds in itself, seconds in all, and the same by caller."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Of one module, per request."""

    calls: float
    time_us: float


def count_calls(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure.

    Raises:
        BenchError: The worker did not say what it called.
    """
    found: dict[str, dict[str, Calls]] = {}
    counting = str(Path(__file__).parent / "counting")
    for kind in KINDS:
        place = folder / kind
        place.mkdir(mode=0o711)
        with open_session(place) as session:
            file = place / "calls"
            gateway = session.start_gateway(extra={FILE: str(file), "PYTHONPATH": counting})
            session.ask(gateway, Question(kind, CONNECTIONS, arguments.seconds))
            found[kind] = _count(session, gateway, Question(kind, CONNECTIONS, arguments.seconds), file)
            session.close_books(gateway)
            void = session.books.find_void_reasons()
            books = session.books
        if void:
            break
    return Outcome(
        lines=[*format_calls(found), books.describe()],
        figures={
            "calls": {kind: {name: asdict(one) for name, one in modules.items()} for kind, modules in found.items()},
            "ledger": asdict(books),
        },
        void=void,
    )


def _count(session: Session, gateway: Gateway, question: Question, file: Path) -> dict[str, Calls]:
    os.kill(gateway.pid, BEGIN)
    session.ask(gateway, question)
    os.kill(gateway.pid, END)
    give_up_at = time.monotonic() + WRITE_SECONDS
    while not file.exists():
        if time.monotonic() > give_up_at:
            raise BenchError(f"the worker did not write {file}")
        time.sleep(0.05)
    return sum_modules(pstats.Stats(str(file)).stats)  # type: ignore[attr-defined]  # what the class is for


def sum_modules(stats: Mapping[Place, Row]) -> dict[str, Calls]:
    """Add up by module, the dearest first; what is built in counts where it was called from.

    Raises:
        BenchError: No request was settled.
    """
    requests = sum(row[1] for (file, _, name), row in stats.items() if file.endswith(SETTLED[0]) and name == SETTLED[1])
    if not requests:
        raise BenchError("no request was settled while calls were counted")
    calls: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for (file, _, _), (_, made, own_seconds, _, callers) in stats.items():
        parts = {file: (made, own_seconds)}
        if file == "~":
            parts = {}
            for (caller, _, _), (_, from_there, own_there, _) in callers.items():
                before = parts.get(caller, (0, 0.0))
                parts[caller] = before[0] + from_there, before[1] + own_there
        for where, (number, own) in parts.items():
            name = _shorten(where)
            calls[name] += number
            seconds[name] = seconds.get(name, 0.0) + own
    order = sorted(calls, key=lambda name: seconds[name], reverse=True)
    return {name: Calls(calls[name] / requests, seconds[name] / requests * MILLION) for name in order}


def _shorten(file: str) -> str:
    for head in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
        file = file.removeprefix(f"{head}/")
    return file.rpartition("/platform/meterhouse/")[2]


def format_calls(found: Mapping[str, Mapping[str, Calls]]) -> list[str]:
    """Write a table for each kind: the modules in which most of the time was spent, and all together."""
    lines = []
    for kind, modules in found.items():
        lines.append(f"{kind + ': calls of a request':<48}{'calls':>10}{'us, profiled':>14}")
        for name, one in list(modules.items())[:MOST_MODULES]:
            lines.append(f"{name:<48}{one.calls:>10.1f}{one.time_us:>14.1f}")
        whole = sum(one.calls for one in modules.values()), sum(one.time_us for one in modules.values())
        lines.append(f"{'all':<48}{whole[0]:>10.1f}{whole[1]:>14.1f}")
    return lines
