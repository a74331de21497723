"""The progress of the demo, which the views show while it runs."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.journal import (
    FinishedEntry,
    JournalEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokensEntry,
)
from inferfleet.schemas.result import Result

RATE_WINDOW_S = 3.0


@dataclass(slots=True)
class Passage:
    """The part of an answer that one attempt generated. It begins behind ``resumed_from`` tokens."""

    worker_id: str
    resumed_from: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker was killed, ``at_s`` after the submission, when the reader had seen ``tokens_seen`` tokens."""

    worker_id: str
    tokens_seen: int
    at_s: float


@dataclass(slots=True)
class UrgentStream:
    """The urgent job as its reader sees it. Times are seconds since its submission."""

    question: str = ""
    passages: list[Passage] = field(default_factory=list[Passage])
    tokens: int = 0
    first_token_s: float | None = None
    kill: Kill | None = None
    resumed_s: float | None = None
    """When the first token after the kill arrived."""
    finished_s: float | None = None
    began_again: bool = False
    """Whether an attempt restarted an answer that the reader had seen, which must not happen."""

    @property
    def text(self) -> str:
        """The whole answer so far."""
        return "".join(passage.text for passage in self.passages)

    def read(self, entry: JournalEntry, *, at_s: float) -> None:
        """Process the next line of the journal."""
        match entry:
            case RunningEntry():
                self.passages.append(Passage(entry.worker_id, entry.resumed_from))
            case TokensEntry():
                self.passages[-1].text += "".join(chunk.text for chunk in entry.chunks)
                self.tokens = entry.offset + entry.count
                if self.first_token_s is None:
                    self.first_token_s = at_s
                elif self.kill is not None and self.resumed_s is None and len(self.passages) > 1:
                    self.resumed_s = at_s
            case RestartedEntry():
                self.began_again = True
                for passage in self.passages:
                    passage.text = ""
            case QueuedEntry() | FinishedEntry():
                pass


@dataclass(slots=True)
class WorkerView:
    """One worker process. ``heartbeat`` is ``None`` while it does not answer."""

    id: str
    heartbeat: Heartbeat | None = None
    killed: bool = False
    tokens_generated: int = 0
    """As of its last heartbeat."""

    def hear(self, heartbeat: Heartbeat | None) -> None:
        """Record the worker's heartbeat."""
        self.heartbeat = heartbeat
        if heartbeat is not None:
            self.tokens_generated = max(self.tokens_generated, heartbeat.tokens_generated)


@dataclass(slots=True, kw_only=True)
class Progress:
    """The current counts. ``queued`` is ``None`` while it is unknown."""

    total: int
    finished: int = 0
    tokens: int = 0
    queued: int | None = None
    workers: list[WorkerView] = field(default_factory=list[WorkerView])
    urgent: UrgentStream | None = None
    started: float = field(default_factory=time.monotonic)
    changed: float = field(default_factory=time.monotonic)
    """When the last job finished, on the monotonic clock."""
    _recent: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first job was submitted."""
        return time.monotonic() - self.started

    @property
    def running(self) -> int:
        """Jobs in the batches of all workers."""
        return sum(worker.heartbeat.running for worker in self.workers if worker.heartbeat is not None)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of the answers that arrived in the last seconds."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RATE_WINDOW_S:
            self._recent.popleft()
        window_s = min(RATE_WINDOW_S, now - self.started)
        return sum(tokens for _, tokens in self._recent) / window_s if window_s else 0.0

    def add(self, result: Result) -> None:
        """Count a result."""
        self.finished += 1
        self.tokens += result.usage.completion_tokens
        self.changed = time.monotonic()
        self._recent.append((self.changed, result.usage.completion_tokens))

    def number(self, worker_id: str) -> int:
        """Return the number of a worker, from 1; 0 for a worker that is not the demo's."""
        return next((n for n, worker in enumerate(self.workers, start=1) if worker.id == worker_id), 0)
