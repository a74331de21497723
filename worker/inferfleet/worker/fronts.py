"""What this worker's deliveries say about its pool's queue (see ``inferfleet.wire.redis.lost_messages``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.wire.redis.clock import RedisClock, milliseconds
from inferfleet.wire.redis.lost_messages import Front

AGE = 2
"""How many reports a front waits for. By then every worker has said which messages it had got before."""


class Fronts:
    """The latest front of each priority, and those of the last reports."""

    def __init__(self, clock: RedisClock) -> None:
        self._clock = clock
        self._latest: dict[int, tuple[int, float]] = {}
        self._past: deque[dict[int, tuple[int, float]]] = deque(maxlen=AGE)

    def delivered(self, priority: int, submitted_ms: int, at: float) -> None:
        """Note the first delivery of a job, at a reading of ``time.monotonic``."""
        known = self._latest.get(priority)
        if known is None or known[0] < submitted_ms:
            self._latest[priority] = (submitted_ms, at)

    def empty(self, at: float) -> None:
        """Note that the queue was empty."""
        submitted_ms = milliseconds(self._clock.at(at))
        for priority in range(PRIORITY_LEVELS):
            self.delivered(priority, submitted_ms, at)

    def aged(self) -> Mapping[int, Front]:
        """Return the fronts that are old enough to be reported."""
        aged = self._past[0] if len(self._past) == AGE else {}
        return {
            priority: Front(submitted_ms, milliseconds(self._clock.at(at)))
            for priority, (submitted_ms, at) in aged.items()
        }

    def age(self) -> None:
        """Note that a report was made."""
        self._past.append(self._latest.copy())
