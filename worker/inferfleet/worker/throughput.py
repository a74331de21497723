"""How fast a count has grown lately: the jobs that have ended, the tokens that were generated."""

from __future__ import annotations

import time
from collections import deque


class Throughput:
    """Measures a count that only grows, over the last ``window_s``."""

    def __init__(self, *, window_s: float) -> None:
        self._window_s = window_s
        self._counts: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def per_s(self, count: int) -> float:
        """Return by how much the count has grown a second in that time."""
        now = time.monotonic()
        while len(self._counts) > 1 and self._counts[1][0] <= now - self._window_s:
            self._counts.popleft()
        since, before = self._counts[0]
        if now - self._counts[-1][0] >= self._window_s / 60:
            self._counts.append((now, count))
        return (count - before) / (now - since) if now > since else 0.0
