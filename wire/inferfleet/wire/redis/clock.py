"""Redis' time, as this process knows it.

The machines of a fleet need no clock in common but this one: whatever is compared, or shown beside what
another process wrote, is in Redis' time. No wall clock of a process has a say in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


class RedisClock:
    """How far Redis' clock is from this process' monotonic one, learnt from answers to ``TIME``.

    Each answer bounds that distance, since Redis read its clock after it was asked and before we had the
    answer. The bounds of all answers hold together, so that one slow answer makes nothing worse. When they
    contradict each other, a clock was set or drifted, or another Redis answers: then the newest is believed.

    Until the first answer this is the machine's own clock.
    """

    def __init__(self) -> None:
        own = time.time() - time.monotonic()  # noqa: TID251 - until Redis has said its own
        self._distance_s = own
        self._low, self._high = -math.inf, math.inf

    def learn(self, answer: Sequence[Any], *, asked: float, answered: float) -> None:
        """Take an answer to ``TIME``, asked and answered at these readings of ``time.monotonic``."""
        redis_s = int(answer[0]) + int(answer[1]) / 1e6
        low, high = max(self._low, redis_s - answered), min(self._high, redis_s - asked)
        if low > high:
            low, high = redis_s - answered, redis_s - asked
        self._low, self._high = low, high
        self._distance_s = (low + high) / 2

    def now(self) -> datetime:
        """The time now."""
        return datetime.fromtimestamp(time.monotonic() + self._distance_s, UTC)

    def at(self, monotonic_s: float) -> datetime:
        """The time at a reading of ``time.monotonic``."""
        return datetime.fromtimestamp(monotonic_s + self._distance_s, UTC)

    def now_ms(self) -> int:
        """The time now, in milliseconds since 1970."""
        return int((time.monotonic() + self._distance_s) * 1000)


def milliseconds(moment: datetime) -> int:
    """A time in milliseconds since 1970."""
    return int(moment.timestamp() * 1000)
