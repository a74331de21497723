"""How many jobs have ended a second, lately."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

WINDOW_S: Final = 60.0


class Throughput:
    """Measures a count that only grows, over the last minute."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def per_s(self, count: int) -> float:
        """Return by how much the count has grown a second since about a minute ago."""
        now = time.monotonic()
        while len(self._counts) > 1 and self._counts[1][0] <= now - WINDOW_S:
            self._counts.popleft()
        since, before = self._counts[0]
        if now - self._counts[-1][0] >= WINDOW_S / 60:
            self._counts.append((now, count))
        return (count - before) / (now - since) if now > since else 0.0
