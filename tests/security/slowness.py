"""What was slow: which processes took the processors in calm and in storms, and which of them waited for one.

A neighbour that waits may wait for the gateway, or for a processor that the machine has given to somebody else; a
measurement that fails shall say which. Not here: what the neighbour waits (neighbour).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from fakes.daemon import children_of

TICKS = os.sysconf("SC_CLK_TCK")
NANOS = 1e9


@dataclass
class Taken:
    """Seconds of the processors that were taken, and seconds in which they were waited for, in so many seconds."""

    used: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0

    def add(self, other: "Taken") -> None:
        """Add what was taken in another span."""
        self.used += other.used
        self.waited += other.waited
        self.seconds += other.seconds


class Slowness:
    """Adds up what processes took, by their name and the kind of span.

    Args:
        processes: a name for the process of a number, and for the children that it has; numbers are looked up in this
            order, and belong to the first who has them.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = dict(processes)
        self._kinds: dict[str, dict[str, Taken]] = {}

    def begin(self) -> dict[int, tuple[float, float]]:
        """Look at the processes as a span begins."""
        self._began = monotonic()
        return self._look()

    def end(self, kind: str, before: dict[int, tuple[float, float]]) -> None:
        """Look again as it ends."""
        seconds = monotonic() - self._began
        found = self._kinds.setdefault(kind, {})
        now = self._look()
        for name, pids in self._families():
            taken = Taken(seconds=seconds)
            for pid in pids & now.keys():
                used, waited = before.get(pid, (0.0, 0.0))
                taken.add(Taken(now[pid][0] - used, max(0.0, now[pid][1] - waited)))
            found.setdefault(name, Taken()).add(taken)

    def __str__(self) -> str:
        lines = []
        for kind, found in self._kinds.items():
            said = [f"{name} {t.used / t.seconds:.2f} ({t.waited / t.seconds:.2f})" for name, t in found.items()]
            lines.append(f"{kind}: " + ", ".join(said))
        return "processors taken (and waited for), by " + "; ".join(lines)

    def _families(self) -> Iterator[tuple[str, set[int]]]:
        taken: set[int] = set()
        for name, pid in self._processes.items():
            pids = {pid, *children_of(pid)} - taken
            taken |= pids
            yield name, pids

    def _look(self) -> dict[int, tuple[float, float]]:
        found = {}
        for _, pids in self._families():
            for pid in pids:
                with suppress(OSError):
                    found[pid] = _used_seconds(pid), _waited_seconds(pid)
        return found


def _used_seconds(pid: int) -> float:
    """Return what all threads of a process have used, also those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _waited_seconds(pid: int) -> float:
    """Return how long the threads of a process could have run and did not."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):
            total += int(path.read_text().split()[1])
    return total / NANOS
