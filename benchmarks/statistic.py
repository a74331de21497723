"""What is said of a figure that was measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> float:
    """The largest distance of one value from the median, as a share of the median."""
    median = statistics.median(values)
    return max(abs(value - median) for value in values) / median if median else 0.0
