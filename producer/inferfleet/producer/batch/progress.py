"""How far a batch is, and how fast it goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from inferfleet.producer.batch.lines import LineRunner

RATE_TICKS: Final = 60
"""Over how many calls a rate is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a batch is.

    ``per_s`` and ``tokens_per_s`` are rates of the last half minute, and ``tokens`` are those that this run
    has seen. ``limit`` is how many jobs may be in flight now. ``trouble`` says why no job is accepted now.
    """

    lines: int
    succeeded: int
    failed: int
    in_flight: int = 0
    limit: int = 0
    tokens: int = 0
    per_s: float = 0.0
    tokens_per_s: float = 0.0
    trouble: str = ""

    @property
    def done(self) -> int:
        """How many lines have ended."""
        return self.succeeded + self.failed

    @property
    def remaining_s(self) -> float | None:
        """How long the rest will take at this rate, in seconds; ``None`` if nothing ends."""
        return (self.lines - self.done) / self.per_s if self.per_s else None


Tell = Callable[[BatchProgress], None]


class Rates:
    """Adds to a batch's progress what its run shows, and how fast it went lately."""

    def __init__(self, runner: LineRunner) -> None:
        self._runner = runner
        self._seen: deque[tuple[float, int, int]] = deque(maxlen=RATE_TICKS)

    def add_to(self, progress: BatchProgress) -> BatchProgress:
        """Return the progress with rates since one of the last calls."""
        runner, now = self._runner, time.monotonic()
        self._seen.append((now, progress.done, runner.tokens))
        began, done, tokens = self._seen[0]
        elapsed_s = max(now - began, 1e-9)
        return replace(
            progress,
            in_flight=runner.window.in_flight,
            limit=runner.window.limit,
            tokens=runner.tokens,
            per_s=(progress.done - done) / elapsed_s,
            tokens_per_s=(runner.tokens - tokens) / elapsed_s,
            trouble=runner.trouble,
        )
