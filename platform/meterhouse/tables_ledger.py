"""What the ``ledger`` commands print: findings, differences, comparisons.

Not here: options and exit codes (``cli_ledger``).
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from rich.table import Table

from meterhouse.bookkeeping import Takeover
from meterhouse.db.ledger import Adjustment
from meterhouse.db.rebuild import Difference
from meterhouse.ledger.compare import Comparison
from meterhouse.ledger.seal import Finding
from meterhouse.money import format_usd
from meterhouse.tables import print_table

MAX_LINES = 200


class Lines:
    """Prints what was found, up to a number of lines, and counts the rest."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, text: str) -> None:
        """Print one more, or only count it."""
        self.count += 1
        if self.count <= MAX_LINES:
            print(text)

    def take(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Print findings as they come, and give back those that were printed."""
        for finding in findings:
            self.add(str(finding))
            if self.count <= MAX_LINES:
                yield finding

    def finish(self) -> None:
        """Say how many were not printed."""
        if self.count > MAX_LINES:
            print(f"... and {self.count - MAX_LINES} more")


def adjustment_table() -> Table:
    """Return the empty table of adjustments."""
    return Table("id", "organization", "project", "key", "for", "USD", "tokens", "made", "by", "reason", box=None)


def add_adjustment(table: Table, one: Adjustment) -> None:
    """Add an adjustment to its table."""
    table.add_row(
        *(one.id, one.organization_id, one.project_id, one.root_key_id or ""),
        *(_date(one.period_start_ms), format_usd(one.nanos), str(one.tokens)),
        *(_date(one.created_at_ms), one.created_by, one.reason),
    )


def follow_progress(how: str) -> Callable[[int], None]:
    """Return what keeps a line on the terminal up to date; nothing is written into a pipe."""
    done = [0]

    def tell(records: int) -> None:
        done[0] += records
        if sys.stderr.isatty():
            print(f"\r{how}: {done[0]:,} records", end="", file=sys.stderr, flush=True)

    return tell


def print_takeover(done: Takeover, how: str) -> None:
    """Print what came of adopting or replaying."""
    if sys.stderr.isatty():
        print(file=sys.stderr)
    report = done.report
    for line in done.damages:
        print(line)
    verb = "adopted" if how == "adopt" else "replayed"
    print(
        f"{report.journals} journals {verb}: {report.records} records were new to the database, "
        f"{report.worker_lost} attempts were lost with their process, {format_usd(report.nanos)} USD in all that was "
        f"read; {report.torn} places could not be read."
    )


def print_comparisons(compared: Iterable[Comparison]) -> None:
    """Print figures of both sides, and their ratio."""
    table = Table("day", "model", "what", "ledger", "provider", "ratio", box=None)
    for one in compared:
        form = format_usd if one.measure == "cost_nanos" else str
        name = "cost_usd" if one.measure == "cost_nanos" else one.measure
        table.add_row(_date(one.day_ms)[:10], one.model, name, form(one.ledger), form(one.provider), one.ratio)
    if table.row_count:
        print_table(table)


def describe_difference(difference: Difference) -> str:
    """Say in a line which group of the projection differs, and by how much."""
    group = {**difference.group, "hour_ms": _date(int(difference.group["hour_ms"]))}
    return f"{' '.join(f'{name}={value}' for name, value in group.items() if value != '')}: " + ", ".join(
        f"{name} {value:+d}" for name, value in difference.measures.items()
    )


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
