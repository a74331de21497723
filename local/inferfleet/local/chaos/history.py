"""Everything that is known of a run, afterwards: what the checker reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from inferfleet.schemas import Job, JournalEntry, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHistory:
    """One accepted job.

    ``stored`` is the result in Redis at the end, ``seen`` are those that clients were given, before and
    after. ``streams`` holds for each stream reader what it was given.
    """

    job: Job
    journal: tuple[JournalEntry, ...] = ()
    stored: Result | None = None
    seen: tuple[Result, ...] = ()
    streams: tuple[tuple[JournalEntry, ...], ...] = ()
    cancel_asked: bool = False
    lost_result: bool = False
    """Redis lost a result of this job, together with all its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLife:
    """When one worker process generated. ``died_at`` is when it was killed or ended.

    ``asleep`` are the spans in which it was stopped.
    """

    died_at: datetime | None = None
    asleep: tuple[tuple[datetime, datetime], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A whole run. ``leftover`` maps each queue that still had messages at the end to their number."""

    jobs: tuple[JobHistory, ...]
    dead_letters: tuple[str, ...] = ()
    leftover: Mapping[str, int] = field(default_factory=dict[str, int])
    garbage_lost: tuple[str, ...] = ()
    """What another client published that is no job, and that lies nowhere afterwards."""
    keys_lost: bool = False
    """Redis lost all its data, idempotency keys included."""
    workers: Mapping[str, WorkerLife] = field(default_factory=dict[str, WorkerLife])
