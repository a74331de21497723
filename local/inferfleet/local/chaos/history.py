"""The history of a run, which the checker reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferfleet.schemas import Job, JobState, JournalEntry, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHistory:
    """One accepted job.

    ``stored`` is the result in Redis at the end, ``seen`` are the results that clients received, before and
    after. ``streams`` has, for each stream reader, the entries that it received.
    """

    job: Job
    journal: tuple[JournalEntry, ...] = ()
    stored: Result | None = None
    seen: tuple[Result, ...] = ()
    streams: tuple[tuple[JournalEntry, ...], ...] = ()
    cancel_asked: bool = False
    lost_result: bool = False
    """Redis lost a result of this job, which may have ended again since, and otherwise."""
    earlier_journal: tuple[JournalEntry, ...] = ()
    """The journal shortly before Redis lost all its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A whole run. ``leftover`` maps each queue that still had messages at the end to their number."""

    jobs: tuple[JobHistory, ...]
    dead_letters: tuple[str, ...] = ()
    leftover: Mapping[str, int] = field(default_factory=dict[str, int])
    garbage_lost: tuple[str, ...] = ()
    """Garbage of another client that was lost: it is nowhere afterwards."""
    keys_lost: bool = False
    """Redis lost data, idempotency keys included."""
    index: Mapping[str, JobState | None] = field(default_factory=dict[str, JobState | None])
    """The index of the pool's unfinished jobs, with the states in their records, ``None`` without one."""
