"""The largest numbers that Redis, RabbitMQ and timers can calculate with.

A service would refuse a larger number only when it uses it, in the middle of other work.
"""

from __future__ import annotations

from math import inf, isnan
from numbers import Real
from typing import Final

from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.problems import kind

LONGEST_S: Final = 100 * 366 * 24 * 3600
"""A hundred years. Redis refuses times that it cannot add to its own, and timers overflow."""

MOST: Final = 2**53
"""The largest integer of a script in Redis."""


def wait_limit(timeout_s: float | None, *, name: str = "timeout_s") -> float | None:
    """Return for how long a caller waits; ``None`` and infinity are without a limit.

    A timer at a time that is not a number puts those of the event loop out of order, so that none may ring.

    Raises:
        InvalidJobError: It is no number. The message calls it ``name``.

    """
    if timeout_s is None:
        return None
    try:
        # For callers without a type checker, too.
        seconds = None if isinstance(timeout_s, bool) or not isinstance(timeout_s, Real) else float(timeout_s)
    except OverflowError:
        seconds = inf
    if seconds is None or isnan(seconds):
        what = "nan" if seconds is not None else kind(timeout_s)
        raise InvalidJobError(f"{name}: must be a number of seconds, or None for no limit, not {what}")
    return seconds
