"""Reads from a journal what became of a job before an attempt."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from datetime import datetime

from inferfleet.schemas.journal import JournalEntry, QueuedEntry, RunningEntry


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """The last attempt before another one. ``queued_at`` is when it began to wait, if it did.

    It is ``lost`` if the journal does not say how it ended, as when its worker died.
    """

    running: RunningEntry
    queued_at: datetime | None
    lost: bool


@dataclass(frozen=True, slots=True)
class Past:
    """What came before an attempt. ``queued_at`` is when the job began to wait for it, if it did."""

    queued_at: datetime | None = None
    last: PastAttempt | None = None


async def past_of(attempt: int, entries: AsyncIterable[JournalEntry]) -> Past:
    """Read what came before an attempt."""
    queued_at: datetime | None = None
    last: PastAttempt | None = None
    async for entry in entries:
        match entry:
            case RunningEntry() if entry.attempt >= attempt:
                break
            case RunningEntry() if last is None or entry.attempt != last.running.attempt:
                last, queued_at = PastAttempt(entry, queued_at, lost=True), None
            case QueuedEntry() if not entry.preempted and not entry.promoted:
                queued_at = entry.at
                if last is not None and not entry.republished:
                    last = PastAttempt(last.running, last.queued_at, lost=False)
            case _:
                pass
    return Past(queued_at, last)
