"""Counters and histograms that a request adds to with plain additions; a scrape reads them as they stand.

prometheus_client's own take a lock for each addition, and look at every bound of a histogram. Only the event loop's
thread adds here, so that no lock is needed; any thread may read. Not here: what is counted (``metrics``, ``timings``).
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One counter; whoever counts adds to ``value``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Counts(Collector):
    """Counters of one name, one for each combination of labels that was asked for."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._children: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def of(self, *labels: str) -> Count:
        """Return the counter of some labels, which is shown from now on."""
        return self._children.setdefault(labels, Count())

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give them all."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, child in tuple(self._children.items()):
            family.add_metric(labels, child.value)
        yield family


class Spread:
    """One histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By the first bound that is not exceeded; the last is of what exceeds all."""
        self.total = 0.0

    def add(self, amount: float) -> None:
        """Count an amount."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount


class Spreads(Collector):
    """Histograms of one name, one for each combination of labels that was asked for."""

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        labels: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labels = labels
        self._names = [*map(floatToGoString, bounds), "+Inf"]
        self._children: dict[tuple[str, ...], Spread] = {}
        registry.register(self)

    def of(self, *labels: str) -> Spread:
        """Return the histogram of some labels, which is shown from now on."""
        return self._children.setdefault(labels, Spread(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give them all."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, child in tuple(self._children.items()):
            buckets = list(zip(self._names, accumulate(child.counts), strict=True))
            family.add_metric(labels, buckets, child.total)
        yield family
