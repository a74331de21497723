"""The times during which something did not work, so that each is told once and not at every attempt."""

from __future__ import annotations

import time


class Outage:
    """One thing that may fail again and again. ``count`` and ``seconds`` are for metrics."""

    def __init__(self) -> None:
        self.count = 0
        self.lasts = False
        """Whether it does not work at present."""
        self._since: float | None = None
        self._past_s = 0.0

    @property
    def seconds(self) -> float:
        """How long it did not work, all times together."""
        return self._past_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def began(self) -> bool:
        """Note a failure. True if it is the first since it last worked: tell it."""
        if self._since is not None:
            return False
        self._since = time.monotonic()
        self.lasts = True
        self.count += 1
        return True

    def ended(self) -> float | None:
        """Note that it works. How long it did not, in seconds, if it has just come back: tell that."""
        if self._since is None:
            return None
        lasted_s = time.monotonic() - self._since
        self._past_s += lasted_s
        self._since = None
        self.lasts = False
        return lasted_s
