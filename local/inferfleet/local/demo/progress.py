"""How far the demo is: what the views show while it runs."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.result import Result

RATE_WINDOW_S = 3.0


@dataclass(slots=True)
class UrgentStream:
    """The urgent job as its reader sees it. Times are seconds since its submission."""

    text: str = ""
    first_token_s: float | None = None
    finished_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts at this moment. ``queued`` and a worker's heartbeat are ``None`` while they are not known."""

    total: int
    finished: int = 0
    tokens: int = 0
    queued: int | None = None
    workers: list[Heartbeat | None] = field(default_factory=list["Heartbeat | None"])
    urgent: UrgentStream | None = None
    started: float = field(default_factory=time.monotonic)
    changed: float = field(default_factory=time.monotonic)
    """When the last job finished, on the monotonic clock."""
    _recent: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first job was submitted."""
        return time.monotonic() - self.started

    @property
    def running(self) -> int:
        """Jobs in the batches of all workers."""
        return sum(worker.running for worker in self.workers if worker is not None)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the answers that came in the last seconds, per second."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RATE_WINDOW_S:
            self._recent.popleft()
        window_s = min(RATE_WINDOW_S, now - self.started)
        return sum(tokens for _, tokens in self._recent) / window_s if window_s else 0.0

    def add(self, result: Result) -> None:
        """Count a result."""
        self.finished += 1
        self.tokens += result.usage.completion_tokens
        self.changed = time.monotonic()
        self._recent.append((self.changed, result.usage.completion_tokens))
