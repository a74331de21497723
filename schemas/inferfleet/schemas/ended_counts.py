"""Counts of a pool's jobs that have ended: failures, waiting times, and times to first token.

Times are counted in buckets whose bounds grow by the factor ``2 ** (1 / 16)``, which is 4.4 %, from 1 ms on:
so all workers of a pool can add to the same counts, and these stay small, however many jobs end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pydantic import Field

from inferfleet.schemas.result import Count
from inferfleet.schemas.wire_model import WireModel

PER_DOUBLING: Final = 16
_SHORTEST_S: Final = 0.001
_LAST: Final = 430
"""The bucket of more than a day."""

Histogram = dict[int, int]
"""How many jobs there are, by bucket."""


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time."""
    if seconds <= _SHORTEST_S:
        return 0
    return min(_LAST, 1 + math.floor(math.log2(seconds / _SHORTEST_S) * PER_DOUBLING))


def quantile(histogram: Mapping[int, int], share: float) -> float:
    """Return the time in seconds that a share of the jobs did not exceed; 0 without jobs."""
    left = share * sum(histogram.values())
    for bucket, count in sorted(histogram.items()):
        if count and left <= count:
            return _time_in(bucket, left / count)
        left -= count
    return 0.0


def number_above(histogram: Mapping[int, int], seconds: float) -> float:
    """Return how many jobs took longer than ``seconds``: those of its own bucket in proportion."""
    own = bucket_of(seconds)
    above = sum(count for bucket, count in histogram.items() if bucket > own)
    within = 0.0 if own == 0 else math.log2(seconds / _time_in(own, 0.0)) * PER_DOUBLING
    return above + histogram.get(own, 0) * min(1.0, max(0.0, 1.0 - within))


def _time_in(bucket: int, share: float) -> float:
    """Return the time at which a share of a bucket's range ends."""
    if bucket == 0:
        return _SHORTEST_S * share
    return _SHORTEST_S * math.exp2((bucket - 1 + share) / PER_DOUBLING)


class EndedCounts(WireModel):
    """How many attempts succeeded or failed, and the times of those that have any.

    Jobs that were cancelled or have expired are not among them. ``first_token`` is from the start of the
    last attempt to its first token, ``wait`` from the submission to that start.
    """

    succeeded: Count = 0
    failed: Count = 0
    first_token: Histogram = Field(default_factory=dict[int, int])
    wait: Histogram = Field(default_factory=dict[int, int])

    @property
    def total(self) -> int:
        """All attempts that are counted."""
        return self.succeeded + self.failed

    @property
    def error_rate(self) -> float:
        """The share of the attempts that failed; 0 without attempts."""
        return self.failed / self.total if self.total else 0.0

    def since(self, before: EndedCounts) -> EndedCounts:
        """Return what was counted since ``before``: everything, if the counts have started over since."""
        if self.total < before.total:
            return self
        return EndedCounts(
            succeeded=max(0, self.succeeded - before.succeeded),
            failed=max(0, self.failed - before.failed),
            first_token=_minus(self.first_token, before.first_token),
            wait=_minus(self.wait, before.wait),
        )


def _minus(now: Histogram, before: Histogram) -> Histogram:
    rest = {bucket: count - before.get(bucket, 0) for bucket, count in now.items()}
    return {bucket: count for bucket, count in rest.items() if count > 0}
