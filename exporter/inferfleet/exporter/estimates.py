"""Estimates the age of the oldest job and the throughput from RabbitMQ's counters.

Pure: the caller passes the time, in seconds of any clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

REMEMBERED = 20_000
"""How many samples with arrivals to keep: more than a day of one every 5 s."""

WINDOW_S = 60.0
"""The period over which the throughput is measured."""

STATISTICS_S = 5.0
"""How often RabbitMQ refreshes its counters by default: each change is of the jobs of up to so long."""


class OldestAge:
    """Estimates how long the oldest ready job has waited.

    If P jobs were published and R are ready, P - R have left. If they left in the order in which they
    arrived, the oldest waiting job is number P - R + 1, which arrived just after the counter stood at P - R.
    For jobs of one priority this is exact to one interval. With several priorities it is a lower bound: an
    old job of low priority behind newer ones is older than that. The estimate starts again with the exporter
    and with the broker's counters, and is first the time since that start. A job that was requeued, also for
    a retry, counts as one that never left.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._times: list[float] = []
        self._counts: list[int] = []

    def observe(self, *, now: float, published: int, ready: int) -> float:
        """Record the current counters, and return the age in seconds; 0 if no job is ready."""
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
    """Measures how many jobs end per second while there is work.

    This is the mean of the last ``WINDOW_S`` with work. While no job ends, it is the last measured rate of
    one worker times the number of ready workers, at least one, so that a fleet that starts from zero has a
    prediction too.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._rate_of_one: float | None = None

    def observe(self, *, now: float, acked: int, work: int, ready_workers: int) -> float | None:
        """Record the current counters, and return jobs per second; ``None`` while unknown."""
        if self._samples and (acked < self._samples[-1][1] or not work):
            self._samples.clear()
        self._samples.append((now, acked))
        while now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        if now - since < 2 * STATISTICS_S:
            # Nobody knows how long the first change took; the time from one change to another is known.
            changed = ((at, count) for at, count in self._samples if count > before)
            since, before = next(changed, (now, acked))
        if acked > before:
            rate = (acked - before) / (now - since)
            self._rate_of_one = rate / max(1, ready_workers)
            return rate
        return None if self._rate_of_one is None else self._rate_of_one * max(1, ready_workers)
