"""Redis' time, as this process knows it.

This is the only clock that the machines of a fleet share: every time that is compared with another process'
time, or shown beside it, is Redis' time. No process' own wall clock matters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


class RedisClock:
    """The offset between Redis' clock and this process' monotonic clock, learnt from replies to ``TIME``.

    Each reply bounds the offset, because Redis read its clock between the request and the reply. The bounds
    of all replies are combined, so a slow reply makes nothing worse. If they contradict each other, a clock
    was set or has drifted, or another Redis replies: then only the newest reply counts.

    Before the first reply this is the machine's own clock.
    """

    def __init__(self) -> None:
        own = time.time() - time.monotonic()  # noqa: TID251 - until Redis has said its own
        self._distance_s = own
        self._low, self._high = -math.inf, math.inf

    def learn(self, answer: Sequence[Any], *, asked: float, answered: float) -> None:
        """Take a reply to ``TIME``, requested and received at these readings of ``time.monotonic``."""
        redis_s = int(answer[0]) + int(answer[1]) / 1e6
        low, high = max(self._low, redis_s - answered), min(self._high, redis_s - asked)
        if low > high:
            low, high = redis_s - answered, redis_s - asked
        self._low, self._high = low, high
        self._distance_s = (low + high) / 2

    def now(self) -> datetime:
        """Return the current time."""
        return datetime.fromtimestamp(time.monotonic() + self._distance_s, UTC)

    def at(self, monotonic_s: float) -> datetime:
        """Return the time at a reading of ``time.monotonic``."""
        return datetime.fromtimestamp(monotonic_s + self._distance_s, UTC)

    def now_ms(self) -> int:
        """Return the current time in Unix milliseconds."""
        return int((time.monotonic() + self._distance_s) * 1000)


def milliseconds(moment: datetime) -> int:
    """Convert a time to Unix milliseconds."""
    return int(moment.timestamp() * 1000)


def moment_of(milliseconds: float) -> datetime:
    """Convert Unix milliseconds to a time."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
