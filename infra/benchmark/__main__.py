"""``infra/bench``: Meterhouse, a bare pass-through and the upstream itself, measured in turn in one run.

JSON answers and streams of 20 tokens. Meterhouse runs in its production form, one worker on a PostgreSQL and a Redis
of its own, unless --embedded says otherwise. The worker, or the pass-through, has a core for itself; everything else
shares the others. Figures of one run compare with one another, not with those of another machine or hour.

VOID, exit 1: the ledger has not a row for each answer that the upstream served, or a request failed; or the machine
was too disturbed to measure (the pass-through reached less than 0.10 (JSON) or 0.45 (streams) of the upstream itself at
32 connections, or the load generator held it up), which --quick only says. SLOWER, exit 1: see --judge.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from benchmark import bodies, calls, clients, comparison, hold, judge, keys, queries, shipping, soak, stages, syncing
from benchmark.plot import draw
from benchmark.report import Cell, Outcome
from benchmark.servers import BenchError
from stack.process import StackError

MEASUREMENTS = {
    "hold": hold.hold,
    "keys": keys.compare_keys,
    "ledger": queries.query_ledger,
    "ship": shipping.ship,
    "sync": syncing.compare_syncs,
    "soak": soak.soak,
    "body": bodies.compare_bodies,
    "stages": stages.measure_stages,
    "calls": calls.count_calls,
    "client": clients.compare_clients,
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="infra/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="what is judged, in 60 s, for CI; a disturbed machine fails nothing"
    )
    parser.add_argument(
        "--embedded", action="store_true", help="meterhouse dev: SQLite, a meter in memory, one process"
    )
    parser.add_argument(
        "--spool", action="store_true", help="ship nothing to PostgreSQL before the end, where its core is what is full"
    )
    parser.add_argument("--seconds", type=float, help=f"a window (default 4; quick {judge.WINDOW_SECONDS:g})")
    parser.add_argument("--rounds", type=int, help=f"windows of each cell (default {judge.PAIRS})")
    parser.add_argument("--connections", type=int, nargs="+", metavar="N", help="default 1 32 128; quick 32")
    parser.add_argument("--targets", nargs="+", choices=comparison.TARGETS, help="default: all; quick: not direct")
    parser.add_argument("--folder", metavar="DIR", help="a new folder, kept: what every process wrote, and the stores")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - for standard output")
    ratios = {"nargs": "?", "const": str(judge.RECORDED), "metavar": "FILE"}
    parser.add_argument("--record", **ratios, help="write the ratios of CPU time at 32 connections (recorded.json)")
    parser.add_argument(
        "--judge",
        **ratios,
        help=f"fail when they are {judge.TOLERANCE} times those of FILE, and again when measured once more",
    )
    parser.add_argument("--svg", metavar="FILE", help="draw the rates of the main measurement")
    other = parser.add_argument_group("other measurements, in place of the main one").add_mutually_exclusive_group()
    other.add_argument("--hold", type=int, metavar="N", help="N open streams of 2 tokens/s: memory, CPU, first token")
    parser.add_argument("--rate", type=float, default=1000.0, help="streams that --hold opens per second (1000)")
    other.add_argument("--keys", type=int, metavar="N", help="N keys in PostgreSQL, 1,000 of them in use, or each once")
    other.add_argument("--ledger", type=int, metavar="N", help="usage queries over N requests of a month")
    other.add_argument(
        "--ship", type=int, metavar="N", help="N records from a journal into PostgreSQL, and their seals"
    )
    other.add_argument("--sync", type=int, metavar="N", help="N records made durable, by the kernel and by a thread")
    other.add_argument("--soak", type=float, metavar="MINUTES", help="does memory grow under load")
    other.add_argument("--body", type=int, nargs="+", metavar="KB", help="prompts so long; 1024 is a megabyte")
    other.add_argument(
        "--stages", action="store_true", default=None, help="where the CPU time of a request goes; needs py-spy"
    )
    other.add_argument(
        "--calls", action="store_true", default=None, help="how many calls a request makes, by module; any machine does"
    )
    other.add_argument(
        "--client",
        action="store_const",
        const=True,
        help="each HTTP client to providers by itself: CPU time per answer",
    )
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or (judge.WINDOW_SECONDS if arguments.quick else 4.0)
    arguments.rounds = arguments.rounds or judge.PAIRS
    arguments.connections = arguments.connections or ([judge.CONNECTIONS] if arguments.quick else [1, 32, 128])
    arguments.targets = arguments.targets or list(judge.TARGETS if arguments.quick else comparison.TARGETS)
    chosen = next((name for name in MEASUREMENTS if getattr(arguments, name) is not None), None)
    arguments.measurement = chosen
    of_the_main = [name for name in ("embedded", "spool", "svg", "record", "judge") if getattr(arguments, name)]
    if chosen and of_the_main:
        parser.error(f"--{of_the_main[0]} is of the main measurement, and cannot be had with --{chosen}")
    if arguments.embedded and arguments.spool:
        parser.error("--spool is of the production form: leave --embedded out")
    numbers = [arguments.seconds, arguments.rounds, arguments.rate, *arguments.connections]
    given = getattr(arguments, chosen) if chosen else None
    numbers += [] if given is None else given if isinstance(given, list) else [given]
    if any(number <= 0 for number in numbers):
        parser.error("every number must be above 0")
    return arguments


def measure(arguments: argparse.Namespace) -> Outcome:
    """Measure what was asked for, in a folder that is gone afterwards unless it was given.

    Raises:
        BenchError: It could not be measured.
        StackError: PostgreSQL or Redis could not be used.
    """
    run = MEASUREMENTS.get(arguments.measurement, comparison.compare)
    if arguments.folder:
        folder = Path(arguments.folder).absolute()
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise BenchError(f"{folder} must be a new folder: {error.strerror}") from None
        return run(arguments, folder)
    with tempfile.TemporaryDirectory(prefix="meterhouse-bench-") as temporary:
        # PostgreSQL, which root starts as another user, has to pass through.
        Path(temporary).chmod(0o711)
        return run(arguments, Path(temporary))


def publish(arguments: argparse.Namespace, outcome: Outcome) -> None:
    """Print what was found, and write it where it was asked for."""
    print("\n".join(outcome.lines), file=sys.stderr if arguments.json == "-" else sys.stdout)
    for reason in (*outcome.void, *outcome.disturbed):
        print(f"VOID: {reason}", file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.svg:
        Path(arguments.svg).write_text(draw(read_cells(outcome)), encoding="utf-8")
    if arguments.json:
        figures = {**outcome.figures, "void": [*outcome.void, *outcome.disturbed]}
        text = json.dumps(figures, indent=2)
        if arguments.json == "-":
            print(text)
        else:
            Path(arguments.json).write_text(text + "\n", encoding="utf-8")


def judge_cells(arguments: argparse.Namespace, outcome: Outcome) -> list[str]:
    """Write the ratios of CPU time down, or say which have grown, as far as either was asked for.

    Raises:
        BenchError: They were not measured, or the file holds none.
    """
    if not arguments.record and not arguments.judge:
        return []
    cells = read_cells(outcome)
    if arguments.record and not outcome.void:
        judge.record(Path(arguments.record), cells)
    return judge.find_growth(Path(arguments.judge), cells) if arguments.judge else []


def read_cells(outcome: Outcome) -> list[Cell]:
    """Return the cells of the main measurement."""
    return [Cell(**cell) for cell in outcome.figures["cells"]]


def _stop(*_: object) -> None:
    """Told to stop, it still ends what it started, and is not to be interrupted at that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def main() -> int:
    """Run, print, judge."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _stop)
    try:
        outcome = measure(arguments)
        publish(arguments, outcome)
        growth = judge_cells(arguments, outcome)
        if growth and not outcome.void:
            print("measuring once more: " + "; ".join(growth), file=sys.stderr)
            outcome = measure(arguments)
            publish(arguments, outcome)
            growth = judge_cells(arguments, outcome)
    except (BenchError, StackError, ProcessLookupError) as error:
        print(f"VOID: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for line in growth:
        print(f"SLOWER: {line}", file=sys.stderr)
    if growth:
        print(judge.ADVICE, file=sys.stderr)
    return 1 if outcome.void or growth or (outcome.disturbed and not arguments.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
