"""What the kernel says of this process: its memory, its time, its open files. Elsewhere than on Linux nothing.

The names and the meaning are those of prometheus_client's ``ProcessCollector``. That one counts the open files by
listing them, during which nobody is answered: with two for each of thousands of streams that is tens of milliseconds.
"""

import os
import resource
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LIST_SECONDS = 60.0
"""How often open files are listed where the kernel does not count them."""
_PROC = Path("/proc")
_START_FIELD = 19
"""Of ``/proc/self/stat`` behind the name: ``starttime`` (proc_pid_stat(5)), in ticks since the system's start."""


class ProcessFigures(Collector):
    """Reads the figures at each scrape."""

    def __init__(self) -> None:
        self._started_at = 0.0
        with suppress(OSError, StopIteration):
            self._started_at = _read_start()
        self._listed_at: float | None = None
        self._listed_files = 0

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        try:
            pages = (_PROC / "self" / "statm").read_text().split()
            open_files = self._count_open_files()
        except OSError:
            return []
        page_bytes = resource.getpagesize()
        most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        gauges = (
            ("virtual_memory_bytes", "Virtual memory size in bytes.", int(pages[0]) * page_bytes),
            ("resident_memory_bytes", "Resident memory size in bytes.", int(pages[1]) * page_bytes),
            ("start_time_seconds", "Start time of the process since unix epoch in seconds.", self._started_at),
            ("max_fds", "Maximum number of open file descriptors.", most_files),
            ("open_fds", "Number of open file descriptors.", open_files),
        )
        text = "Total user and system CPU time spent in seconds."
        cpu = CounterMetricFamily("meterhouse_process_cpu_seconds", text, value=time.process_time())
        return [cpu, *(GaugeMetricFamily(f"meterhouse_process_{name}", text, value) for name, text, value in gauges)]

    def _count_open_files(self) -> int:
        """Return how many files are open, or were at the last listing, where only a list says so."""
        folder = _PROC / "self" / "fd"
        # Its size is their number since Linux 6.2 (proc_pid_fd(5)), and 0 before.
        if counted := folder.stat().st_size:
            return counted
        now = time.monotonic()
        if self._listed_at is None or now - self._listed_at > LIST_SECONDS:
            self._listed_files, self._listed_at = sum(1 for _ in folder.iterdir()), now
        return self._listed_files


def _read_start() -> float:
    ticks = int((_PROC / "self" / "stat").read_text().rpartition(")")[2].split()[_START_FIELD])
    lines = (_PROC / "stat").read_text().splitlines()
    booted_at = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    return booted_at + ticks / os.sysconf("SC_CLK_TCK")
