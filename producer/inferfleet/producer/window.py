"""How many of many jobs are in flight: more while the queue accepts them, half when it is full."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Final

FIRST_LIMIT: Final = 16
"""The limit at the start. It doubles with each round of jobs until the queue is full for the first time."""

STEADIER: Final = 0.75
"""By what a refusal lowers the limit up to which the limit doubles, if it had not got there again."""

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
"""The pause after a refusal; it doubles with each refusal until a job is accepted."""


class Window:
    """Additive increase, multiplicative decrease (AIMD), as TCP paces its packets.

    After refusals the limit doubles with each round of jobs up to a threshold, which is about half of what it
    was before them: many refusals in a row do not make it slow for long.

    A job enters before it is submitted, and leaves when it has ended. A job that was refused enters again, in
    front of those that wait for their first try; after a refusal nobody enters during a pause. Refusals of
    jobs that entered before the last pause do not count: they say nothing new.
    """

    def __init__(self, most: int) -> None:
        self.in_flight = 0
        self._most = most
        self._limit = float(min(FIRST_LIMIT, most))
        self._threshold = float(most)
        self._round = 0
        self._pause_s = 0.0
        self._pausing: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many jobs may be in flight now."""
        return int(self._limit)

    async def enter(self, *, again: bool = False) -> int:
        """Wait for a place. Return the round, which ``refused`` needs."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()
            raise
        return self._round

    def accepted(self) -> None:
        """Record that a job was accepted."""
        self._pause_s = 0.0
        growth = 1.0 if self._limit < self._threshold else 1 / self._limit
        self._limit = min(self._most, self._limit + growth)
        self._admit()

    def refused(self, entered: int, *, full: bool) -> None:
        """Record that a job was refused, which leaves. If the queue was ``full``, halve the limit."""
        self.in_flight -= 1
        if entered != self._round:
            return
        self._round += 1
        if full:
            got_there = self._threshold == self._most or self._limit >= self._threshold + 1
            half = max(1.0, self._limit / 2)
            self._threshold = half if got_there else max(half, self._threshold * STEADIER)
            self._limit = half
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
        # So that several windows do not try at the same time.
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if self._pausing is not None:
            self._pausing.cancel()
        self._pausing = asyncio.get_running_loop().call_later(pause_s, self._go_on)

    def leave(self) -> None:
        """Give back the place of a job that has ended."""
        self.in_flight -= 1
        self._admit()

    def close(self) -> None:
        """End the pause; nobody may wait for a place any more."""
        if self._pausing is not None:
            self._pausing.cancel()

    def _go_on(self) -> None:
        self._pausing = None
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._pausing is None and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
