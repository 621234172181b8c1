"""``--record`` and ``--judge``: has the CPU time of a request grown, beside that of the bare pass-through.

Judged is the median of five alternated pairs at 32 connections, for JSON answers and for streams: CPU time of the one
server by that of the other, a moment apart, which holds where requests/s do not: on a machine that is slower than the
one of the record, or that others use. Not here: measuring, and measuring once more when it has grown.
"""

import json
from pathlib import Path

from benchmark.report import Cell
from benchmark.servers import BenchError

CONNECTIONS = 32
TARGETS = ("pass-through", "meterhouse")
PAIRS = 5
WINDOW_SECONDS = 2.0
"""A pair is 4 s: five of each kind are 40 s, and with the servers' start and that of twenty load generators a minute.
Shorter ones would miss what a worker does every few seconds: sealing."""
TOLERANCE = 1.3
"""What is more than so many times the recorded ratio has grown."""
RECORDED = Path(__file__).with_name("recorded.json")
ADVICE = (
    "A request costs more of the worker's CPU than was recorded, measured twice. `infra/bench --stages` says where it "
    "goes. If it has to cost that much, record it, where nothing else runs, with `infra/bench --quick --record`, and "
    f"commit {RECORDED.parent.name}/{RECORDED.name} with the reason."
)
"""What to do when the judge fails."""


def read_ratios(cells: list[Cell]) -> dict[str, float]:
    """Return the ratios that are judged, by kind of answer.

    Raises:
        BenchError: Meterhouse or the pass-through was not measured at 32 connections.
    """
    found = {
        cell.kind: cell.cpu_ratio
        for cell in cells
        if cell.target == "meterhouse" and cell.connections == CONNECTIONS and cell.cpu_ratio is not None
    }
    if not found:
        raise BenchError(f"what is judged is Meterhouse beside the pass-through at {CONNECTIONS} connections")
    return found


def record(file: Path, cells: list[Cell]) -> None:
    """Write the ratios down for later runs."""
    file.write_text(json.dumps({kind: round(ratio, 2) for kind, ratio in read_ratios(cells).items()}) + "\n")


def find_growth(file: Path, cells: list[Cell]) -> list[str]:
    """Say what has grown; raises BenchError when the file holds no ratios."""
    try:
        recorded = {str(kind): float(ratio) for kind, ratio in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BenchError(f"{file} holds no recorded ratios: {error}") from None
    return [
        f"CPU time of a request ({kind}) is {ratio:.2f} times the pass-through's, recorded is {recorded[kind]:.2f}"
        for kind, ratio in read_ratios(cells).items()
        if kind in recorded and ratio > recorded[kind] * TOLERANCE
    ]
