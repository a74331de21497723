"""Computes an upper bound of the wasted tokens from the journals.

A killed worker cannot report the tokens that it had generated but not written. But its engine generates at
most one token of a job in each ``DECODE_STEP_S``. So an attempt lost at most the time from its last journal
entry to the death of its worker, divided by that step, and never more than the rest of the answer. A worker
that was suspended and woke up may continue until Redis refuses its next write.

Tokens that an attempt discarded (a restart instead of a resume) are in the journal itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from inferfleet.local.chaos.harness import DECODE_STEP_S
from inferfleet.local.chaos.history import History, JobHistory, WorkerLife
from inferfleet.schemas import JournalEntry
from inferfleet.schemas.journal import (
    FinishedEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokensEntry,
)

CATCH_UP_S = 0.1
"""How far the engine's clock may catch up at once."""

NOTICE_S = 1.5
"""How long a worker that woke up may generate before it learns that another worker has its job: until the
reply
to its next flush."""


@dataclass(frozen=True, slots=True)
class Waste:
    """The tokens of all jobs. ``generated`` includes the ``wasted`` ones, which are an upper bound."""

    generated: int
    wasted: int

    @property
    def ratio(self) -> float:
        """The share of wasted tokens."""
        return self.wasted / self.generated if self.generated else 0.0


def measure(history: History) -> Waste:
    """Add up all jobs."""
    kept = wasted = 0
    for job in history.jobs:
        journal = job.journal or job.earlier_journal
        kept += _kept(journal)
        wasted += _wasted(job, journal, history.workers)
    return Waste(kept + wasted, wasted)


def _kept(journal: tuple[JournalEntry, ...]) -> int:
    tokens = 0
    for entry in journal:
        match entry:
            case TokensEntry():
                tokens = entry.offset + _count(entry)
            case RestartedEntry():
                tokens = 0
            case _:
                pass
    return tokens


def _wasted(history: JobHistory, journal: tuple[JournalEntry, ...], workers: Mapping[str, WorkerLife]) -> int:
    choices = int(history.job.body.get("n", 1))
    goal = int(history.job.body["max_tokens"]) * choices
    wasted = tokens = 0
    open_attempt: RunningEntry | None = None
    written_at: datetime | None = None
    for entry in journal:
        match entry:
            case RestartedEntry():
                wasted += entry.tokens_wasted
                tokens_before, tokens = tokens, 0
                if open_attempt is not None and written_at is not None:
                    wasted += _lost(
                        open_attempt, written_at, entry.at, workers, choices, goal - tokens_before
                    )
                    open_attempt = None
            case RunningEntry():
                if open_attempt is not None and written_at is not None:
                    wasted += _lost(open_attempt, written_at, entry.at, workers, choices, goal - tokens)
                open_attempt, written_at = entry, entry.at
            case TokensEntry():
                tokens, written_at = entry.offset + _count(entry), entry.at
            case QueuedEntry(republished=True):
                pass
            case QueuedEntry() | FinishedEntry():
                # An attempt that ended with an entry has written all its tokens with it.
                open_attempt = None
    return wasted


def _lost(
    attempt: RunningEntry,
    written_at: datetime,
    next_at: datetime,
    workers: Mapping[str, WorkerLife],
    choices: int,
    missing: int,
) -> int:
    """Return how many tokens an attempt without a last entry had generated at most since its latest entry."""
    life = workers.get(attempt.worker_id, WorkerLife())
    ended_at = life.died_at or next_at + timedelta(seconds=NOTICE_S)
    span = ended_at - written_at
    for asleep_at, awake_at in life.asleep:
        if asleep_at < ended_at and awake_at > written_at:
            # The worker may have generated before its suspension, and again until Redis refused its next
            # write.
            span = min(span, max(timedelta(), asleep_at - written_at) + timedelta(seconds=NOTICE_S))
    seconds = max(0.0, span.total_seconds()) + CATCH_UP_S
    return max(0, min(missing, choices * int(seconds / DECODE_STEP_S)))


def _count(entry: TokensEntry) -> int:
    return sum(len(chunk.token_ids) for chunk in entry.chunks)
