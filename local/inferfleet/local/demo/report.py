"""The demo's final report, computed from the records and journals of its jobs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from inferfleet.local.demo.progress import UrgentStream
from inferfleet.schemas.job import Job, JobState, Priority
from inferfleet.schemas.journal import JournalEntry, RunningEntry
from inferfleet.schemas.printable import printable
from inferfleet.schemas.result import JobRecord


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the finished jobs of one priority waited for their first start, in seconds."""

    count: int
    p50: float
    p99: float

    @classmethod
    def of(cls, waits_s: Sequence[float]) -> Waits:
        """Summarise at least one wait."""
        return cls(len(waits_s), percentile(waits_s, 0.50), percentile(waits_s, 0.99))


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What became of the answers of the killed worker.

    ``jobs`` continued on another worker, behind the ``tokens_kept`` tokens in their journals. Of the
    ``tokens_seen`` that the reader of the urgent answer had seen, ``seen_twice`` were generated again.
    """

    killed: str
    tokens_seen: int
    seen_twice: int
    pause_s: float | None
    jobs: int
    tokens_kept: int

    @property
    def kept_promise(self) -> bool:
        """Whether the urgent answer continued behind everything that its reader had seen."""
        return self.seen_twice == 0

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {
            "worker": self.killed,
            "tokens_seen": self.tokens_seen,
            "tokens_seen_twice": self.seen_twice,
            "pause_s": None if self.pause_s is None else round(self.pause_s, 3),
            "jobs_resumed": self.jobs,
            "tokens_kept": self.tokens_kept,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The report. ``failed`` counts every end but success, ``lost`` the jobs without a result.

    ``tokens`` counts those of the answers, without prompts; ``paid_twice`` counts further generated tokens.
    ``waits`` begins with the most urgent priority. ``takeover`` is ``None`` if no worker was killed.
    """

    services: str
    jobs: int
    succeeded: int
    failed: int
    lost: int
    duration_s: float
    tokens: int
    paid_twice: int
    waits: Mapping[str, Waits]
    takeover: Takeover | None
    first_failure: str | None

    @property
    def flawless(self) -> bool:
        """Whether every job succeeded, and the urgent answer was resumed where it was."""
        return self.succeeded == self.jobs and (self.takeover is None or self.takeover.kept_promise)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers per second of the whole run."""
        return self.tokens / self.duration_s

    def as_json(self) -> dict[str, Any]:
        """The report as the object that ``--json`` prints."""
        return {
            "services": self.services,
            "jobs": self.jobs,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "lost": self.lost,
            "duration_s": round(self.duration_s, 3),
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "tokens_paid_twice": self.paid_twice,
            "killed": None if self.takeover is None else self.takeover.as_json(),
            "wait_s": {
                name: {"count": waits.count, "p50": round(waits.p50, 4), "p99": round(waits.p99, 4)}
                for name, waits in self.waits.items()
            },
        }

    def as_table(self) -> RenderableType:
        """The report for a person."""
        table = Table(box=box.SIMPLE_HEAD, title="Wait for a worker, by priority", title_justify="left")
        table.add_column("priority")
        for heading in ("jobs", "p50 s", "p99 s"):
            table.add_column(heading, justify="right")
        for name, waits in self.waits.items():
            table.add_row(name, f"{waits.count:,}", f"{waits.p50:.2f}", f"{waits.p99:.2f}")
        tables = [table] if self.takeover is None else [table, _takeover_table(self.takeover, self)]
        return Group(*tables, Text(printable("\n".join(self._sentences()))))

    def _sentences(self) -> list[str]:
        sentences = [
            f"{self.tokens:,} tokens in {self.duration_s:.1f} s: {self.tokens_per_s:,.0f} tokens/s",
            f"{self.succeeded:,} of {self.jobs:,} jobs succeeded, {self.failed:,} failed; "
            + (f"{self.lost:,} LOST" if self.lost else "nothing lost"),
        ]
        if self.takeover is not None and not self.takeover.kept_promise:
            sentences.append("the urgent answer did NOT go on behind what its reader had seen")
        if self.first_failure is not None:
            sentences.append(f"the first failure: {self.first_failure}")
        return sentences


def _takeover_table(takeover: Takeover, report: Report) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_header=False,
        title=f"{takeover.killed} was killed in mid-answer",
        title_justify="left",
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_row("answers that another worker finished", f"{takeover.jobs:,}")
    table.add_row("tokens kept in their journals", f"{takeover.tokens_kept:,}")
    table.add_row("tokens paid twice", f"{report.paid_twice:,} of {report.tokens + report.paid_twice:,}")
    table.add_row("of those that a reader had seen", f"{takeover.seen_twice:,} of {takeover.tokens_seen:,}")
    return table


def report_on(
    jobs: Sequence[Job],
    records: Mapping[str, JobRecord | None],
    *,
    journals: Mapping[str, Sequence[JournalEntry]],
    urgent: UrgentStream | None,
    killed: str,
    total: int,
    tokens_generated: int,
    duration_s: float,
    services: str,
) -> Report:
    """Report on ``total`` jobs, of which those in ``jobs`` were accepted.

    ``journals`` are those of the jobs with more than one attempt. ``tokens_generated`` is the sum over all
    workers; ``killed`` is a person's name for the worker that was killed according to ``urgent``.
    """
    waits_s: defaultdict[int, list[float]] = defaultdict(list)
    succeeded = failed = tokens = 0
    first_failure: str | None = None
    for job in jobs:
        record = records.get(job.id)
        if record is None or record.result is None:
            continue
        result = record.result
        tokens += result.usage.completion_tokens
        if job.id in journals:
            waits_s[job.priority].append(_first_wait_s(journals[job.id]))
        elif result.timings is not None:
            waits_s[job.priority].append(result.timings.queue_wait_s)
        if result.state is JobState.SUCCEEDED:
            succeeded += 1
            continue
        failed += 1
        if first_failure is None:
            reason = f"{result.error.code}: {result.error.message}" if result.error else result.state.value
            first_failure = f"job {job.id}, {reason}"
    return Report(
        services=services,
        jobs=total,
        succeeded=succeeded,
        failed=failed,
        lost=total - succeeded - failed,
        duration_s=duration_s,
        tokens=tokens,
        # The killed worker may have generated a few more tokens between its last heartbeat and its end.
        paid_twice=max(0, tokens_generated - tokens),
        waits={
            Priority(priority).name.lower(): Waits.of(waits_s[priority])
            for priority in sorted(waits_s, reverse=True)
        },
        takeover=_takeover(urgent, killed, journals),
        first_failure=first_failure,
    )


def _takeover(
    urgent: UrgentStream | None, killed: str, journals: Mapping[str, Sequence[JournalEntry]]
) -> Takeover | None:
    if urgent is None or urgent.kill is None:
        return None
    resumed = [
        entry.resumed_from
        for journal in journals.values()
        for entry in journal
        if isinstance(entry, RunningEntry) and entry.resumed_from
    ]
    last = urgent.passages[-1]
    # The kill may have come after the last token: then the answer had just ended.
    kept = 0 if urgent.began_again else last.resumed_from if len(urgent.passages) > 1 else urgent.tokens
    return Takeover(
        killed=killed,
        tokens_seen=urgent.kill.tokens_seen,
        seen_twice=max(0, urgent.kill.tokens_seen - kept),
        pause_s=None if urgent.resumed_s is None else urgent.resumed_s - urgent.kill.at_s,
        jobs=len(resumed),
        tokens_kept=sum(resumed),
    )


def _first_wait_s(journal: Sequence[JournalEntry]) -> float:
    """Return the time from the first line of a journal to the start of the first attempt."""
    started = next(entry.at for entry in journal if isinstance(entry, RunningEntry))
    return (started - journal[0].at).total_seconds()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
