"""Stops an answer before it is complete: by an order, or by the job's time limit."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from types import TracebackType
from typing import Self


class Interruption(StrEnum):
    """Why an answer was stopped before it was complete."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    HAND_OVER = "hand_over"
    INTERRUPTED = "interrupted"
    PREEMPTED = "preempted"
    SUPERSEDED = "superseded"


class StopSwitch:
    """Ends a block ``async with switch.armed(timeout_s):`` from outside, or after its time limit.

    The block ends early without an exception; ``reason`` then says why. The first reason counts, but any
    other overrides ``PREEMPTED``, after which the answer would go on.
    """

    def __init__(self) -> None:
        self.reason: Interruption | None = None
        """Why the block was stopped, or is to be stopped."""
        self._timeout_s: float | None = None
        self._scope: asyncio.Timeout | None = None

    @property
    def is_guarding(self) -> bool:
        """Whether the block is running."""
        return self._scope is not None

    @property
    def preempted(self) -> bool:
        """Whether the block was stopped, or is to be stopped, only to give its slot to another job."""
        return self.reason is Interruption.PREEMPTED

    def reset(self) -> None:
        """Let another block run after a preemption."""
        if self.preempted:
            self.reason = None

    def armed(self, timeout_s: float | None) -> Self:
        """Set the time limit of the block that follows, in seconds."""
        self._timeout_s = timeout_s
        return self

    def stop(self, reason: Interruption) -> None:
        """End the block, or prevent its start. After its end this only records the reason."""
        if self.reason is None or (self.preempted and reason is not Interruption.PREEMPTED):
            self.reason = reason
            if self._scope is not None and not self._scope.expired():
                self._scope.reschedule(0)

    async def __aenter__(self) -> Self:
        self._scope = scope = asyncio.timeout(self._timeout_s)
        await scope.__aenter__()
        if self.reason is not None:
            scope.reschedule(0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        scope, self._scope = self._scope, None
        assert scope is not None  # noqa: S101 - entered before
        try:
            await scope.__aexit__(kind, error, traceback)
        except TimeoutError as expired:
            error = expired
        if scope.expired() and isinstance(error, TimeoutError):
            self.reason = self.reason or Interruption.TIMEOUT
            return True
        return False
