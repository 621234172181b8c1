"""What a run means: rates, ratios to the bare pass-through, and whether the run is worth anything.

Invariant: all rounds of a cell count; a ratio compares rates of the same run only.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FLOOR_JSON = 0.10
FLOOR_STREAM = 0.45
"""Below these shares of the direct upstream at 32 connections even the pass-through was disturbed: the run is void."""
FULL_CORE = 0.97
FREE_CORE = 0.85


@dataclass(frozen=True)
class Measurement:
    """One window of one cell, as the load generator printed it."""

    target: str
    kind: str
    connections: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """All rounds of one target, kind and number of connections."""

    target: str
    kind: str
    connections: int
    rate: float
    """Whole answers per second."""
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """CPU of the server process per answer."""
    server_busy: float
    """The share of its core that the server used."""
    load_busy: float
    """The share of one core that load generator and upstream used together."""
    ratio: float | None = None
    """To the pass-through."""


def make_cells(measurements: Iterable[Measurement]) -> list[Cell]:
    """Sum up the rounds, in the order in which cells were first measured."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for item in measurements:
        groups.setdefault((item.target, item.kind, item.connections), []).append(item.values)
    cells = {key: _sum_up(key, rounds) for key, rounds in groups.items()}
    compared = []
    for (_, kind, connections), cell in cells.items():
        bare = cells.get(("pass-through", kind, connections))
        ratio = cell.rate / bare.rate if bare and bare.rate else None
        compared.append(Cell(**{**vars(cell), "ratio": ratio}))
    return compared


def _sum_up(key: tuple[str, str, int], rounds: list[dict[str, Any]]) -> Cell:
    answers = sum(values["answers"] for values in rounds)
    seconds = sum(values["seconds"] for values in rounds)
    cpu = {name: sum(values["cpu_seconds"][name] for values in rounds) for name in rounds[0]["cpu_seconds"]}
    # The direct upstream is server and upstream at once.
    others = cpu["load"] + (cpu["upstream"] if key[0] != "direct" else cpu["server"])
    return Cell(
        *key,
        rate=answers / seconds,
        p50_ms=statistics.median(values["p50_ms"] for values in rounds),
        p99_ms=statistics.median(values["p99_ms"] for values in rounds),
        cpu_us=cpu["server"] / max(answers, 1) * 1e6,
        server_busy=cpu["server"] / seconds,
        load_busy=others / seconds,
    )


def find_void_reasons(cells: list[Cell]) -> list[str]:
    """Say why the figures cannot be trusted: a disturbed machine, or a load generator that was the bottleneck."""
    reasons = []
    rates = {(cell.target, cell.kind, cell.connections): cell.rate for cell in cells}
    for kind, floor in (("json", FLOOR_JSON), ("stream", FLOOR_STREAM)):
        direct, bare = rates.get(("direct", kind, 32)), rates.get(("pass-through", kind, 32))
        if direct and bare and bare < floor * direct:
            share = bare / direct
            reasons.append(f"the pass-through reached {share:.2f} of the direct upstream ({kind}), below {floor}")
    for cell in cells:
        # At one connection neither side is ever full.
        if cell.target != "direct" and cell.load_busy > FULL_CORE and cell.server_busy < FREE_CORE:
            where = f"{cell.target}, {cell.kind}, {cell.connections} connections"
            reasons.append(f"the load was the bottleneck ({where}): its core was full, the server's was not")
    return reasons


def format_table(cells: list[Cell]) -> str:
    """Lay the cells out for people."""
    columns = ("answers", "conn.", "server", "per second", "p50 ms", "p99 ms", "CPU us", "core", "load core", "ratio")
    rows = [columns]
    order = {"json": 0, "stream": 1}
    for cell in sorted(cells, key=lambda cell: (order[cell.kind], cell.connections)):
        ratio = f"{cell.ratio:.2f}" if cell.ratio is not None else "-"
        name = "JSON" if cell.kind == "json" else "streams"
        figures = (f"{cell.rate:,.0f}", f"{cell.p50_ms:.2f}", f"{cell.p99_ms:.2f}", f"{cell.cpu_us:,.0f}")
        shares = (f"{cell.server_busy:.0%}", f"{cell.load_busy:.0%}")
        rows.append((name, str(cell.connections), cell.target, *figures, *shares, ratio))
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    left = {0, 2}
    lines = []
    for row in rows:
        texts = (
            text.ljust(w) if i in left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(texts).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
