"""What a run means: rates, ratios to the bare pass-through, and whether the run is worth anything.

Invariant: all rounds of a cell count; a ratio compares rates of the same run only. Not here: measuring.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FLOOR_JSON = 0.10
FLOOR_STREAM = 0.45
"""Below these shares of the direct upstream at 32 connections even the pass-through was disturbed: the run is void."""
FULL_CORE = 0.97
FREE_CORE = 0.85


@dataclass
class Books:
    """What Meterhouse was asked, over all windows of a run: it must be in the ledger in the end."""

    served: int = 0
    """Answers that the upstream gave it."""
    answers: int = 0
    """Whole answers that clients got."""
    rows: int = 0
    """Of the ledger, after draining."""
    failures: int = 0
    first_failure: str = ""
    backlog: int = 0
    """Rows that the ledger lacked when the last window ended."""
    adopted_rows: int = 0
    """Further rows that came when the server had ended and its journals were adopted: those were late, not lost."""
    drain_seconds: float = 0.0
    """How long it took from then on until it had them."""

    def add(self, values: Mapping[str, Any], served: int) -> None:
        """Book a window, as the load generator printed it."""
        self.served += served
        self.answers += values["all_answers"]
        self.failures += values["failures"]
        self.first_failure = self.first_failure or values["first_failure"]

    def find_void_reasons(self) -> list[str]:
        """Say what is wrong with the books: right is a row for each answer, and nothing that failed."""
        reasons = []
        if self.failures:
            reasons.append(f"{self.failures:,} requests to Meterhouse failed; the first: {self.first_failure}")
        if self.rows != self.served:
            reasons.append(
                f"the ledger does not match: {self.rows:,} rows for {self.served:,} answers served by the upstream"
                + (f"; {self.adopted_rows:,} more when its journals were adopted" if self.adopted_rows else "")
            )
        if self.answers != self.served and not self.failures:
            reasons.append(f"clients got {self.answers:,} whole answers, the upstream served {self.served:,}")
        return reasons

    def describe(self) -> str:
        """Say in a line how the ledger stands."""
        line = f"ledger: {self.rows:,} rows for {self.served:,} answers served by the upstream"
        if self.rows == self.served and self.backlog > 0:
            line += f"; the last {self.backlog:,} came within {self.drain_seconds:.1f} s of the end of the load"
            line += f" ({self.backlog / self.drain_seconds:,.0f} rows/s)" if self.drain_seconds else ""
        elif self.rows == self.served:
            line += "; none was left to ship when the load ended"
        return line


@dataclass
class Outcome:
    """What a measurement found: for people, for machines, and whether it is worth anything."""

    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    void: list[str] = field(default_factory=list)
    """Why the figures cannot be trusted, whatever the machine."""
    disturbed: list[str] = field(default_factory=list)
    """Why they cannot be trusted that may be the machine's fault: in a quick run it is said, and does not fail."""


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
    """The share of one core that everything else used together."""
    helper_us: Mapping[str, float] = field(default_factory=dict)
    """CPU per answer of each other process, by name: load, upstream; and clerk, postgres and redis of Meterhouse."""
    ratio: float | None = None
    """To the pass-through."""
    p50_added_ms: float | None = None
    """Above the pass-through."""
    cpu_ratio: float | None = None
    """Of the CPU per answer, the median of the rounds: it holds where others use the machine too."""


def make_cells(measurements: Iterable[Measurement]) -> list[Cell]:
    """Sum up the rounds, in the order in which cells were first measured."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for item in measurements:
        groups.setdefault((item.target, item.kind, item.connections), []).append(item.values)
    cells = {key: _sum_up(key, rounds) for key, rounds in groups.items()}
    compared = []
    for key, cell in cells.items():
        bare_key = ("pass-through", *key[1:])
        bare = cells.get(bare_key)
        compared.append(cell if bare is None else _compare(cell, bare, groups[key], groups[bare_key]))
    return compared


def _compare(cell: Cell, bare: Cell, rounds: list[dict[str, Any]], bare_rounds: list[dict[str, Any]]) -> Cell:
    pairs = zip(map(_cpu_us, rounds), map(_cpu_us, bare_rounds), strict=True)
    ratios = [own / other for own, other in pairs if other]
    return replace(
        cell,
        ratio=cell.rate / bare.rate if bare.rate else None,
        p50_added_ms=cell.p50_ms - bare.p50_ms,
        cpu_ratio=statistics.median(ratios) if ratios else None,
    )


def _cpu_us(values: Mapping[str, Any]) -> float:
    """CPU of the server process per answer of a window."""
    used: float = values["cpu_seconds"]["server"]
    answers: int = values["answers"]
    return used / max(answers, 1) * 1e6


def _sum_up(key: tuple[str, str, int], rounds: list[dict[str, Any]]) -> Cell:
    answers = sum(values["answers"] for values in rounds)
    seconds = sum(values["seconds"] for values in rounds)
    cpu = {name: sum(values["cpu_seconds"][name] for values in rounds) for name in rounds[0]["cpu_seconds"]}
    # The direct upstream is itself one of the others.
    others = sum(cpu.values()) - (cpu["server"] if key[0] != "direct" else 0)
    helpers = {name: used / max(answers, 1) * 1e6 for name, used in cpu.items() if name != "server"}
    return Cell(
        *key,
        rate=answers / seconds,
        p50_ms=statistics.median(values["p50_ms"] for values in rounds),
        p99_ms=statistics.median(values["p99_ms"] for values in rounds),
        cpu_us=cpu["server"] / max(answers, 1) * 1e6,
        server_busy=cpu["server"] / seconds,
        load_busy=others / seconds,
        helper_us=helpers,
    )


def find_disturbances(cells: list[Cell]) -> list[str]:
    """Say why ratios cannot be trusted: the machine was disturbed, or the pass-through was not what was measured."""
    reasons = []
    rates = {(cell.target, cell.kind, cell.connections): cell.rate for cell in cells}
    for kind, floor in (("json", FLOOR_JSON), ("stream", FLOOR_STREAM)):
        direct, bare = rates.get(("direct", kind, 32)), rates.get(("pass-through", kind, 32))
        if direct and bare is not None and bare < floor * direct:
            share = bare / direct
            reasons.append(f"the pass-through reached {share:.2f} of the direct upstream ({kind}), below {floor}")
    reasons += [
        f"the load was the bottleneck of the pass-through ({_where(cell)}): its ratio flatters Meterhouse"
        for cell in cells
        if cell.target == "pass-through" and _is_held_up(cell)
    ]
    return reasons


def find_notes(cells: list[Cell]) -> list[str]:
    """Say which figures of Meterhouse are lower bounds: what works for it had no time left on its own core."""
    notes = []
    for cell in cells:
        if cell.target == "meterhouse" and _is_held_up(cell):
            parts = ", ".join(f"{name} {used:,.0f}" for name, used in sorted(cell.helper_us.items()))
            notes.append(
                f"{_where(cell)}: the other core was full, the worker's was not; the figure is a lower bound "
                f"(CPU us per answer: {parts}); --spool measures it without shipping"
            )
    return notes


def _is_held_up(cell: Cell) -> bool:
    # At one connection neither side is ever full.
    return cell.load_busy > FULL_CORE and cell.server_busy < FREE_CORE


def _where(cell: Cell) -> str:
    plural = "s" if cell.connections > 1 else ""
    return f"{'JSON' if cell.kind == 'json' else 'streams'}, {cell.connections} connection{plural}"


def format_table(cells: list[Cell]) -> str:
    """Lay the cells out for people."""
    measured = ("per second", "p50 ms", "p99 ms", "CPU us", "core", "load core")
    columns = ("answers", "conn.", "server", *measured, "ratio", "CPU ratio")
    rows: list[tuple[str, ...]] = [columns]
    order = {"json": 0, "stream": 1}
    for cell in sorted(cells, key=lambda cell: (order[cell.kind], cell.connections)):
        ratios = tuple("-" if ratio is None else f"{ratio:.2f}" for ratio in (cell.ratio, cell.cpu_ratio))
        name = "JSON" if cell.kind == "json" else "streams"
        figures = (f"{cell.rate:,.0f}", f"{cell.p50_ms:.2f}", f"{cell.p99_ms:.2f}", f"{cell.cpu_us:,.0f}")
        shares = (f"{cell.server_busy:.0%}", f"{cell.load_busy:.0%}")
        rows.append((name, str(cell.connections), cell.target, *figures, *shares, *ratios))
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


def format_stores(cells: list[Cell]) -> list[str]:
    """Say what the stores and the clerk cost per answer, where they are processes of their own."""
    lines = []
    for cell in cells:
        used = [
            f"{name} {cell.helper_us[name]:,.0f}" for name in ("clerk", "postgres", "redis") if name in cell.helper_us
        ]
        if cell.target == "meterhouse" and used:
            lines.append(f"beside it ({_where(cell)}): CPU us per answer: {', '.join(used)}")
    return lines


def find_slope(samples: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line that fits best, per unit of the first coordinate; 0 for fewer than two samples."""
    if len({at for at, _ in samples}) < 2:  # noqa: PLR2004 - a line needs two
        return 0.0
    return statistics.linear_regression(*zip(*samples, strict=True)).slope
