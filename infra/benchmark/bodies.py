"""``--body KB``: long prompts through Meterhouse and through the bare pass-through."""

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmark.report import Measurement, Outcome, find_disturbances, format_table, make_cells
from benchmark.session import Question, open_session

CONNECTIONS = 32


def compare_bodies(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure each length in turn; JSON answers at 32 connections."""
    found: dict[int, list[Measurement]] = {kilobytes: [] for kilobytes in arguments.body}
    with open_session(folder) as session:
        bare, gateway = session.start_bare(), session.start_gateway()
        for _ in range(arguments.rounds):
            for kilobytes, measurements in found.items():
                question = Question("json", CONNECTIONS, arguments.seconds, kilobytes)
                measurements += [session.ask(target, question) for target in (bare, gateway)]
        session.close_books(gateway)
    outcome = Outcome(figures={"ledger": asdict(session.books)}, void=session.books.find_void_reasons())
    for kilobytes, measurements in found.items():
        cells = make_cells(measurements)
        outcome.lines += [f"prompts of {kilobytes:,} KB", format_table(cells), ""]
        outcome.figures[f"body_{kilobytes}_kb"] = [asdict(cell) for cell in cells]
        outcome.disturbed += [f"{kilobytes:,} KB: {reason}" for reason in find_disturbances(cells)]
    outcome.lines.append(session.books.describe())
    return outcome
