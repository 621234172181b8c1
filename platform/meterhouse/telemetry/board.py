"""Adds up the metrics of several processes: each leaves its figures in a folder, and whoever is scraped reads all.

Invariant: what a process counted stays counted when it has ended, so that a sum never falls. The parent calls
``bury`` for each process that ended. Figures of others are at most as old as their last ``write``. The folder is to
be in memory: a disk that hangs must not hold up a scrape. Not here: what is counted.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

LARGEST = frozenset(
    {
        "meterhouse_shipping_lag_seconds",
        "meterhouse_degraded",
        "meterhouse_stray_records",
        "meterhouse_process_open_fds",
        "meterhouse_process_start_time_seconds",
        "meterhouse_process_max_fds",
    }
)
"""Gauges of which the largest counts; others are added up."""
_COUNTED = frozenset({"counter", "histogram"})
_ENDED = "ended"
_SUFFIX = ".metrics"
_REMEMBERED = 64


class Point(msgspec.Struct, array_like=True, frozen=True):
    """One sample."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, array_like=True, frozen=True):
    """A metric with its samples, as it is kept in a file."""

    name: str
    kind: str
    help: str
    points: list[Point]


class Ended(msgspec.Struct):
    """What processes counted that have ended, and the numbers of the last of them."""

    numbers: list[int]
    families: list[Family]


def freeze(metrics: Iterable[Metric]) -> list[Family]:
    """Return what a registry collected, ready to be kept."""
    return [
        Family(
            metric.name, metric.type, metric.documentation, [Point(s.name, s.labels, s.value) for s in metric.samples]
        )
        for metric in metrics
    ]


def merge(pages: Iterable[list[Family]]) -> list[Family]:
    """Add up the figures of several processes."""
    found: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, ...], Point]] = {}
    for family in (family for page in pages for family in page):
        found.setdefault(family.name, family)
        points = values.setdefault(family.name, {})
        for point in family.points:
            key = (point.name, *(word for pair in sorted(point.labels.items()) for word in pair))
            before = points.get(key)
            points[key] = point if before is None else _join(family.name, before, point)
    return [Family(name, first.kind, first.help, list(values[name].values())) for name, first in found.items()]


class Board:
    """The folder. Each process has a number, which is never used again, and writes one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, number: int, families: list[Family]) -> None:
        """Replace what a process has left there; only the process itself does."""
        self._replace(self._path(number), msgspec.msgpack.encode(families))

    def read_others(self, number: int) -> list[list[Family]]:
        """Return the figures of every process but one, those that have ended included."""
        pages: dict[int, list[Family]] = {}
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                pages[int(path.stem)] = msgspec.msgpack.decode(path.read_bytes(), type=list[Family])
            except FileNotFoundError:
                continue  # buried since the folder was listed
        # Read last: a process that was buried meanwhile is in both, and here its number says so.
        ended = self._read_ended()
        return [ended.families, *(page for n, page in pages.items() if n != number and n not in ended.numbers)]

    def bury(self, number: int) -> None:
        """Keep what a process had counted when it ended; in the parent only."""
        path = self._path(number)
        if not path.exists():
            return
        ended = self._read_ended()
        last = msgspec.msgpack.decode(path.read_bytes(), type=list[Family])
        counted = [family for family in last if family.kind in _COUNTED]
        kept = Ended([*ended.numbers[1 - _REMEMBERED :], number], merge([ended.families, counted]))
        self._replace(self._folder / _ENDED, msgspec.msgpack.encode(kept))
        path.unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}{_SUFFIX}"

    def _read_ended(self) -> Ended:
        path = self._folder / _ENDED
        return msgspec.msgpack.decode(path.read_bytes(), type=Ended) if path.exists() else Ended([], [])

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)


class Merged(Collector):
    """Families as a collector, from which the text of a scrape is made."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Give each family back as prometheus_client knows it."""
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for point in family.points:
                metric.add_sample(point.name, point.labels, point.value)
            yield metric


def _join(family: str, one: Point, other: Point) -> Point:
    value = max(one.value, other.value) if family in LARGEST else one.value + other.value
    return Point(one.name, one.labels, value)
