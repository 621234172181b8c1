"""Rows on the terminal: as a table for people, as JSON for programs, and as bars.

Not here: where rows come from.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

EIGHTHS = " ▏▎▍▌▋▊▉"
LEAST_BAR = 10
PIPE_COLUMNS = 400


class Rows:
    """Collects rows that are printed at the end: every field as JSON, the chosen ones in a table."""

    def __init__(self, *columns: str, as_json: bool) -> None:
        self._columns = columns
        self._as_json = as_json
        self._rows: list[Mapping[str, object]] = []

    def add(self, row: Mapping[str, object]) -> None:
        """Take a row."""
        self._rows.append(row)

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Take rows."""
        self._rows.extend(rows)

    def print(self) -> None:
        """Print them."""
        if self._as_json:
            print_json(self._rows)
            return
        table = Table(*(name.replace("_", " ") for name in self._columns), box=None)
        for row in self._rows:
            table.add_row(*(Text(_cell(row.get(name))) for name in self._columns))
        console = Console()
        # A pipe has no width: a table for another program must not be cut at 80 columns.
        Console(width=None if console.is_terminal else PIPE_COLUMNS).print(table)


def print_json(value: object) -> None:
    """Print a value as JSON that people can read, too."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def print_bars(bars: Sequence[tuple[str, int, str]]) -> None:
    """Print a bar for each name: as long as its number, the longest as wide as the terminal, the text behind it."""
    if not bars:
        return
    name_width = max(cell_len(name) for name, _, _ in bars)
    text_width = max(cell_len(text) for _, _, text in bars)
    width = max(LEAST_BAR, Console().width - name_width - text_width - 4)
    most = max((number for _, number, _ in bars), default=0)
    for name, number, text in bars:
        eighths = 0 if most <= 0 else max(0, number) * width * 8 // most
        whole, part = divmod(eighths, 8)
        # What is there is seen, however little it is.
        bar = "█" * whole + (EIGHTHS[part] if part else "") or (EIGHTHS[1] if number > 0 else "")
        print(f" {name:<{name_width}}  {bar}{' ' if bar else ''}{text}")


def moment(milliseconds: int | None) -> str | None:
    """Write Unix milliseconds as minutes of UTC; None stays None."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
