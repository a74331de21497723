"""Counters and histograms of one event loop, as cheap as they can be while jobs run.

prometheus_client's own take a lock for each value, and compare it with one bucket after the other. These take
no lock, since only the event loop writes and reads them, and become prometheus_client's families at a scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily


class Counts:
    """A counter. ``values`` has a number by labels, from the start 0 for the ``known`` combinations."""

    def __init__(
        self, name: str, what: str, labels: Sequence[str] = (), *, known: Iterable[tuple[str, ...]] = ((),)
    ) -> None:
        self._name = name
        self._what = what
        self._labels = labels
        self.values: defaultdict[tuple[str, ...], float] = defaultdict(float, dict.fromkeys(known, 0.0))

    def add(self, amount: float = 1.0) -> None:
        """Add to a counter without labels."""
        self.values[()] += amount

    def family(self, pool: str) -> CounterMetricFamily:
        """Return the values for Prometheus, labelled with the pool."""
        family = CounterMetricFamily(self._name, self._what, labels=("pool", *self._labels))
        for labels, value in self.values.items():
            family.add_metric((pool, *labels), value)
        return family


class Distribution:
    """A histogram without labels. ``bounds`` are the inclusive upper bounds of its buckets."""

    def __init__(self, name: str, what: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._what = what
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}
        """The last traced value of each bucket that has had one."""

    def observe(self, value: float, *, trace: str | None = None) -> None:
        """Count a value. ``trace`` is the id of the trace that tells more about it."""
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] += 1
        self._sum += value
        if trace is not None:
            self._exemplars[bucket] = Exemplar({"trace_id": trace}, value)

    def family(self, pool: str) -> HistogramMetricFamily:
        """Return the histogram for Prometheus, labelled with the pool."""
        total = 0
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        for place, bound in enumerate((*map(str, self._bounds), "+Inf")):
            total += self._counts[place]
            exemplar = self._exemplars.get(place)
            buckets.append((bound, total) if exemplar is None else (bound, total, exemplar))
        family = HistogramMetricFamily(self._name, self._what, labels=("pool",))
        family.add_metric((pool,), buckets, self._sum)
        return family
