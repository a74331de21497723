"""The story of a job as its journal tells it: what happened when, on which worker, with how many tokens.

Pure: it folds the entries of a journal, in order, into few events.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from inferfleet.schemas.failures import Failure
from inferfleet.schemas.journal import (
    FinishedEntry,
    JournalEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokensEntry,
)
from inferfleet.schemas.plural import count_of


class EventKind(StrEnum):
    """What happened to a job."""

    QUEUED = "queued"
    STARTED = "started"
    """A worker began the answer."""
    RESUMED = "resumed"
    """A worker continues the answer after ``tokens`` tokens."""
    TOKENS = "tokens"
    """``tokens`` were generated, the last of them at ``until``."""
    RETRIED = "retried"
    """The attempt failed, as ``detail`` says, and there will be another."""
    HANDED_OVER = "handed_over"
    """A draining worker gave the job back."""
    PREEMPTED = "preempted"
    """The worker gave the job's slot to a more urgent job."""
    LOST = "lost"
    """The worker gave no sign of life after the event before this one. ``at`` is when that was noticed."""
    REPUBLISHED = "republished"
    """The job's message was lost, and a worker published it again."""
    PROMOTED = "promoted"
    """The job had waited so long that a worker let it overtake more urgent jobs."""
    RESTARTED = "restarted"
    """The answer begins again, as ``detail`` says; ``tokens`` were generated for nothing."""
    RESTORED = "restored"
    """Redis had lost the record, and the worker wrote it again."""
    FINISHED = "finished"
    """The job ended in the state that ``detail`` begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a job's story."""

    kind: EventKind
    at: datetime
    attempt: int
    worker_id: str | None = None
    tokens: int = 0
    until: datetime | None = None
    model_identity: str | None = None
    detail: str | None = None

    @property
    def words(self) -> str:
        """The event as words for a person."""
        on = f" on {self.worker_id}" if self.worker_id else ""
        match self.kind:
            case EventKind.QUEUED:
                return f"queued, {self.detail}" if self.detail else "queued"
            case EventKind.STARTED:
                return f"attempt {self.attempt} started{on}"
            case EventKind.RESUMED:
                return f"attempt {self.attempt} resumed{on} after token {self.tokens:,}"
            case EventKind.TOKENS:
                lasted_s = ((self.until or self.at) - self.at).total_seconds()
                return f"{count_of(self.tokens, 'token')} in {lasted_s:.3f} s"
            case EventKind.RETRIED:
                return f"attempt {self.attempt} failed{on}: {self.detail or 'no reason was recorded'}"
            case EventKind.HANDED_OVER:
                return f"handed over by {self.worker_id or 'its worker'}"
            case EventKind.PREEMPTED:
                return f"preempted by a more urgent job{on}"
            case EventKind.LOST:
                return f"lost its worker {self.worker_id}, which gave no further sign of life"
            case EventKind.REPUBLISHED:
                return "published again, because its message was lost"
            case EventKind.PROMOTED:
                return "promoted, because it had waited longest"
            case EventKind.RESTARTED:
                return f"answer restarted ({self.detail}); {count_of(self.tokens, 'token')} wasted"
            case EventKind.RESTORED:
                return f"restored{on}, because Redis had lost the record"
            case EventKind.FINISHED:
                return f"{self.detail}, with {count_of(self.tokens, 'token')}"


class Timeline:
    """Takes the entries of one journal. ``events`` is the story so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._running: RunningEntry | None = None
        """The attempt that runs, as far as the journal says."""
        self._restarted = False

    def add(self, entry: JournalEntry) -> None:
        """Take the next entry."""
        if self._running is not None and entry.attempt > self._running.attempt:
            self._lose(entry.at)
        match entry:
            case QueuedEntry():
                self._queued(entry)
            case RunningEntry():
                self._began(entry)
            case TokensEntry():
                self._tokens(entry)
            case RestartedEntry(reason=reason, tokens_wasted=wasted):
                self._restarted = True
                self._event(EventKind.RESTARTED, entry, tokens=wasted, detail=reason)
            case FinishedEntry(state=state, failure=failure):
                worker_id = self._running.worker_id if self._running else None
                self._running = None
                self._event(
                    EventKind.FINISHED,
                    entry,
                    worker_id=worker_id,
                    tokens=entry.tokens,
                    detail=f"{state}{_reason(failure)}",
                )

    def _queued(self, entry: QueuedEntry) -> None:
        if entry.republished:
            if self._running is not None:
                self._lose(entry.at)
            self._event(EventKind.REPUBLISHED, entry)
            return
        if entry.promoted:
            self._event(EventKind.PROMOTED, entry)
            return
        worker_id = self._running.worker_id if self._running else None
        if entry.preempted:
            self._event(EventKind.PREEMPTED, entry, worker_id=worker_id)
            return
        self._running = None
        match entry.reason:
            case "submitted":
                starts = None
                if entry.not_before is not None:
                    starts = f"to start no earlier than {entry.not_before:%Y-%m-%d %H:%M:%S} UTC"
                self._event(EventKind.QUEUED, entry, detail=starts)
            case "retry":
                detail = _reason(entry.failure).removeprefix(": ") or None
                self._event(EventKind.RETRIED, entry, worker_id=worker_id, detail=detail)
            case "handed_over":
                self._event(EventKind.HANDED_OVER, entry, worker_id=worker_id)

    def _began(self, entry: RunningEntry) -> None:
        again = self._running is not None and self._running.worker_id == entry.worker_id
        preempted = bool(self.events) and self.events[-1].kind is EventKind.PREEMPTED
        restored = again and not self._restarted and not preempted
        self._running, self._restarted = entry, False
        kind = EventKind.RESUMED if entry.resumed_from else EventKind.STARTED
        self._event(
            EventKind.RESTORED if restored else kind,
            entry,
            worker_id=entry.worker_id,
            tokens=entry.resumed_from,
            model_identity=entry.model_identity,
        )

    def _tokens(self, entry: TokensEntry) -> None:
        last = self.events[-1] if self.events else None
        if last is not None and last.kind is EventKind.TOKENS and last.attempt == entry.attempt:
            self.events[-1] = replace(last, tokens=last.tokens + entry.count, until=entry.at)
            return
        worker_id = self._running.worker_id if self._running else None
        self._event(EventKind.TOKENS, entry, worker_id=worker_id, tokens=entry.count, until=entry.at)

    def _lose(self, at: datetime) -> None:
        lost, self._running = self._running, None
        if lost is not None:
            self.events.append(
                Event(kind=EventKind.LOST, at=at, attempt=lost.attempt, worker_id=lost.worker_id)
            )

    def _event(self, kind: EventKind, entry: JournalEntry, **more: Any) -> None:
        self.events.append(Event(kind=kind, at=entry.at, attempt=entry.attempt, **more))


def timeline(entries: Iterable[JournalEntry]) -> list[Event]:
    """Fold a journal into events."""
    story = Timeline()
    for entry in entries:
        story.add(entry)
    return story.events


def _reason(failure: Failure | None) -> str:
    return "" if failure is None else f": {failure.code}: {failure.message}"
