"""The fault matrix: which cells there are, which were tested, and the figures of the run.

A test says what it shows with ``@pytest.mark.cell(row, "phases")``. Phases: A authentication, R reserve and intent,
C connect to first byte, S streaming, E end and settle, P what comes after. A test may also leave figures with the
``figures`` fixture. Invariant: a cell counts as tested only when every test that names it passed.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest

CELLS = {
    1: ("a worker is killed", "ARCSEP"),
    3: ("a worker stands still", "ARCSE"),
    5: ("Redis refuses connections", "ARCSEP"),
    6: ("Redis hangs", "ARSEP"),
    7: ("Redis is restarted, flushed, evicts", "AREP"),
    8: ("Redis refuses commands", "R"),
    9: ("PostgreSQL refuses connections", "AREP"),
    10: ("PostgreSQL hangs, or a lock is held", "AP"),
    11: ("PostgreSQL dies in COMMIT", "P"),
    12: ("Redis and PostgreSQL are both away", "ARSEP"),
    13: ("the journal's disk is full", "RSEP"),
    14: ("fsync fails", "RE"),
    15: ("power is lost", "RE"),
    20: ("an answer never ends", "SE"),
    22: ("usage is missing, doubled, zero, absurd", "SEP"),
    24: ("the client leaves", "RCSEP"),
    28: ("the clock jumps", "ARSEP"),
    29: ("a key is revoked, a budget is cut", "ASE"),
    30: ("one worker is cut off from a store", "ARE"),
    33: ("every cache is cold", "AR"),
    34: ("the provider fails while Redis is away", "RCP"),
    35: ("a worker is killed while PostgreSQL is away", "SEP"),
    37: ("Redis forgets its scripts", "R"),
    38: ("ten thousand cancellations", "ARC"),
}
"""The rows in scope, and the phases for which the matrix says what must hold."""
VARIABLE = "METERHOUSE_TEST_FAULTS"

Figures = dict[str, list[float]]


def is_full() -> bool:
    """Whether the whole matrix runs, and not only its quick sample."""
    return os.environ.get(VARIABLE) == "full"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cell(row, phases): the cells of the fault matrix that a test shows")
    config.addinivalue_line("markers", "slow_fault: runs only with the whole matrix (infra/test --faults)")
    config.pluginmanager.register(Matrix(), "matrix")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not is_full():
        slow = [item for item in items if item.get_closest_marker("slow_fault")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep figures for the summary: ``figures(kills=3, hold_back_seconds=1.2)``."""
    matrix: Matrix = request.config.pluginmanager.get_plugin("matrix")
    return matrix.note


class Matrix:
    """Collects what became of the cells."""

    def __init__(self) -> None:
        self._cells: dict[str, list[tuple[int, str]]] = {}
        self._passed: dict[str, bool] = {}
        self._figures: Figures = defaultdict(list)

    def note(self, **values: float) -> None:
        """Keep figures."""
        for name, value in values.items():
            self._figures[name].append(value)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            found = [(mark.args[0], phase) for mark in item.iter_markers("cell") for phase in mark.args[1]]
            unknown = [cell for cell in found if cell[1] not in CELLS[cell[0]][1]]
            assert not unknown, f"{item.nodeid} names cells that the matrix has no text for: {unknown}"
            if found:
                self._cells[item.nodeid] = found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._cells:
            self._passed[report.nodeid] = self._passed.get(report.nodeid, True) and report.passed

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._passed:
            return
        terminalreporter.section("fault matrix")
        for line in self._lines():
            terminalreporter.write_line(line)

    def _lines(self) -> Iterator[str]:
        states: dict[tuple[int, str], bool] = {}
        for test, passed in self._passed.items():
            for cell in self._cells[test]:
                states[cell] = states.get(cell, True) and passed
        total = sum(len(phases) for _, phases in CELLS.values())
        for row, (name, phases) in CELLS.items():
            marks = " ".join(phase if states.get((row, phase)) else "-" for phase in phases)
            failed = "".join(phase for phase in phases if states.get((row, phase)) is False)
            yield f"{row:3}  {marks:12} {name}{f'   FAILED: {failed}' if failed else ''}"
        tested = sum(states.values())
        sample = "" if is_full() else " (the quick sample; infra/test --faults runs all)"
        yield f"tested {tested} / not applicable 0 / total {total}{sample}"
        for name, values in sorted(self._figures.items()):
            yield f"  {name}: {len(values)} values, sum {sum(values):g}, most {max(values):g}"
