"""What this worker's deliveries say about its pool's queue (see ``inferfleet.wire.redis.lost_messages``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.wire.redis.clock import RedisClock, milliseconds
from inferfleet.wire.redis.lost_messages import Front

AGE = 2
"""How many reports a front waits for. By then every worker has said which messages it had got before."""


class Fronts:
    """The latest front of each priority, and those of the last reports."""

    def __init__(self, clock: RedisClock, *, strict: bool) -> None:
        self._clock = clock
        self._strict = strict
        """Whether the queue delivers no job as long as it has one of a higher priority."""
        self._latest: dict[int, tuple[int, float]] = {}
        self._delivered: dict[int, float] = {}
        """When jobs of a priority were last delivered from the queue."""
        self._past: deque[dict[int, tuple[int, float]]] = deque(maxlen=AGE)

    def delivered(self, priority: int, entered_ms: int, at: float) -> None:
        """Note the first delivery of a job from the queue, at a reading of ``time.monotonic``."""
        known = self._latest.get(priority)
        if known is None or known[0] < entered_ms:
            self._latest[priority] = (entered_ms, at)
        self._delivered[priority] = at

    def empty(self, at: float) -> None:
        """Note that the queue was empty."""
        self._clear(range(PRIORITY_LEVELS), at)

    def forget(self) -> None:
        """Forget all: messages come back to the queue of which no worker may have told that it had them."""
        self._latest.clear()
        self._delivered.clear()
        self._past.clear()

    def _clear(self, priorities: Iterable[int], at: float) -> None:
        """Note that the queue had no job of these priorities."""
        entered_ms = milliseconds(self._clock.at(at))
        for priority in priorities:
            known = self._latest.get(priority)
            if known is None or known[0] < entered_ms:
                self._latest[priority] = (entered_ms, at)

    def aged(self) -> Mapping[int, Front]:
        """Return the fronts that are old enough to be reported."""
        aged = self._past[0] if len(self._past) == AGE else {}
        return {
            priority: Front(entered_ms, milliseconds(self._clock.at(at)))
            for priority, (entered_ms, at) in aged.items()
        }

    def age(self) -> None:
        """Note that a report was made."""
        now_ms = self._clock.now_ms()
        # What is from the future is of a clock that was set back since.
        self._latest = {priority: front for priority, front in self._latest.items() if front[0] <= now_ms}
        if self._strict:
            for priority, at in self._delivered.items():
                self._clear(range(priority + 1, PRIORITY_LEVELS), at)
        self._past.append(self._latest.copy())
