"""The main measurement: the upstream itself, a bare pass-through and Meterhouse, in turn, in one run."""

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmark.gateway import Gateway
from benchmark.report import (
    Measurement,
    Outcome,
    find_disturbances,
    find_notes,
    format_stores,
    format_table,
    make_cells,
)
from benchmark.servers import Server
from benchmark.session import Question, Session, open_session

TARGETS = ("direct", "pass-through", "meterhouse")
KINDS = ("json", "stream")
NEVER_SECONDS = 86_400


def compare(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure every target, kind and number of connections, round after round."""
    with open_session(folder) as session:
        targets = [_start(session, name, arguments) for name in arguments.targets]
        measurements: list[Measurement] = []
        for _ in range(arguments.rounds):
            for kind in KINDS:
                for connections in arguments.connections:
                    question = Question(kind, connections, arguments.seconds)
                    measurements += [session.ask(target, question) for target in targets]
        gateway = next((target for target in targets if isinstance(target, Gateway)), None)
        if gateway is not None:
            session.close_books(gateway, is_spooled=arguments.spool)
    cells = make_cells(measurements)
    outcome = Outcome(
        lines=[format_table(cells), *format_stores(cells)],
        figures={"cells": [asdict(cell) for cell in cells], "ledger": asdict(session.books)},
        disturbed=find_disturbances(cells),
    )
    outcome.lines += [f"note: {note}" for note in find_notes(cells)]
    if gateway is not None:
        if gateway.start_ms is not None:
            outcome.lines.append(f"start: the worker served {gateway.start_ms} ms after it was forked")
            outcome.figures["worker_start_ms"] = gateway.start_ms
        outcome.lines.append(session.books.describe())
        outcome.void = session.books.find_void_reasons()
    return outcome


def _start(session: Session, name: str, arguments: argparse.Namespace) -> Server:
    if name == "direct":
        return session.upstream
    if name == "pass-through":
        return session.start_bare()
    extra = {"METERHOUSE_SHIP_SECONDS": str(NEVER_SECONDS)} if arguments.spool else {}
    return session.start_gateway(is_embedded=arguments.embedded, extra=extra)
