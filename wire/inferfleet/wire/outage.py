"""Tracks outages, so that each is logged once and not at every attempt."""

from __future__ import annotations

import time


class Outage:
    """Something that may fail repeatedly. ``count`` and ``seconds`` are for metrics."""

    def __init__(self) -> None:
        self.count = 0
        self.lasts = False
        """Whether there is an outage now."""
        self._since: float | None = None
        self._past_s = 0.0

    @property
    def seconds(self) -> float:
        """The total duration of all outages."""
        return self._past_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def began(self) -> bool:
        """Record a failure. Return true if it is the first of an outage, which the caller should log."""
        if self._since is not None:
            return False
        self._since = time.monotonic()
        self.lasts = True
        self.count += 1
        return True

    def ended(self) -> float | None:
        """Record a success. If it ends an outage, return its duration in seconds, for the caller to log."""
        if self._since is None:
            return None
        lasted_s = time.monotonic() - self._since
        self._past_s += lasted_s
        self._since = None
        self.lasts = False
        return lasted_s
