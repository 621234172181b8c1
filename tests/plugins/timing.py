"""With ``--times``: how long the tests of each folder took, and which ten took longest."""

from collections import defaultdict

import pytest

from plugins.order import folder_of

SLOWEST = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", action="store_true", help="print the time by folder and the slowest tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--times"):
        config.pluginmanager.register(Times(), "times")


class Times:
    """Adds up what set-up, test and tear-down took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        by_folder: dict[str, list[float]] = defaultdict(list)
        for test, seconds in self._seconds.items():
            by_folder[folder_of(test)].append(seconds)
        terminalreporter.section("time by folder")
        for folder, durations in sorted(by_folder.items(), key=lambda item: -sum(item[1])):
            terminalreporter.write_line(f"{sum(durations):8.2f} s  {len(durations):5} tests  {folder}")
        terminalreporter.section(f"slowest {SLOWEST} tests")
        slowest = sorted(self._seconds.items(), key=lambda item: -item[1])[:SLOWEST]
        for test, seconds in slowest:
            terminalreporter.write_line(f"{seconds:8.2f} s  {test}")
