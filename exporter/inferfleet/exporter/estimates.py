"""What RabbitMQ does not tell, from what it counts: how old the oldest job is, and how fast jobs end.

Pure: the time is given, in seconds on any clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

REMEMBERED = 20_000
"""Samples with arrivals to keep: more than a day of one every 5 s."""

WINDOW_S = 60.0
"""Over how long the throughput is measured."""


class OldestAge:
    """Estimates how long the oldest ready job has waited.

    Of P jobs published so far R are ready, so P - R have left; if they left in the order they came, the
    oldest waiting one is number P - R + 1, and it came just after the counter stood at P - R. Exact to one
    interval for jobs of one priority. With several it is a lower bound: an old job of low priority behind
    newer ones is older than this says. It starts anew with the exporter and with the broker's counters, and
    until then says how long it has been looking. A job that was given back, for a retry too, counts as
    one that never left.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._times: list[float] = []
        self._counts: list[int] = []

    def observe(self, *, now: float, published: int, ready: int) -> float:
        """Take in the counters of this moment, and return the age in seconds; 0 if nothing is ready."""
        if self._counts and published < self._counts[-1]:
            self._times, self._counts = [], []
        if not self._counts:
            self._began = now
        if self._counts and published == self._counts[-1]:
            self._times[-1] = now
        else:
            self._times.append(now)
            self._counts.append(published)
        del self._times[:-REMEMBERED], self._counts[:-REMEMBERED]
        if not ready:
            return 0.0
        before = bisect_right(self._counts, published - ready) - 1
        return now - (self._times[before] if before >= 0 else self._began)


class Throughput:
    """Measures how many jobs a second end, while there are any.

    The mean of the last ``WINDOW_S`` with work. While none ends, the last measured rate of one worker times
    the workers that are ready, or one: so that a fleet that starts from zero has a prediction too.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._rate_of_one: float | None = None

    def observe(self, *, now: float, acked: int, work: int, ready_workers: int) -> float | None:
        """Take in the counters of this moment, and return jobs per second; ``None`` before the first."""
        if self._samples and (acked < self._samples[-1][1] or not work):
            self._samples.clear()
        self._samples.append((now, acked))
        while now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        if acked > before:
            rate = (acked - before) / (now - since)
            self._rate_of_one = rate / max(1, ready_workers)
            return rate
        return None if self._rate_of_one is None else self._rate_of_one * max(1, ready_workers)
