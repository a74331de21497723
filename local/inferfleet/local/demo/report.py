"""What the demo says at the end, worked out from the records of its jobs."""

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

from inferfleet.schemas.job import Job, JobState, Priority
from inferfleet.schemas.printable import printable
from inferfleet.schemas.result import JobRecord


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the finished jobs of one priority waited for their start, in seconds."""

    count: int
    p50: float
    p99: float

    @classmethod
    def of(cls, waits_s: Sequence[float]) -> Waits:
        """Summarise at least one wait."""
        return cls(len(waits_s), percentile(waits_s, 0.50), percentile(waits_s, 0.99))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome. ``failed`` is every end but success; ``lost`` are jobs without a terminal result.

    ``tokens`` are generated ones, prompts not counted. ``waits`` begins with the most urgent.
    """

    services: str
    jobs: int
    succeeded: int
    failed: int
    lost: int
    duration_s: float
    tokens: int
    waits: Mapping[str, Waits]
    first_failure: str | None

    @property
    def flawless(self) -> bool:
        """Whether every job succeeded."""
        return self.succeeded == self.jobs

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
            "tokens_per_s": round(self.tokens_per_s, 1),
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
        return Group(table, Text(printable("\n".join(self._sentences()))))

    def _sentences(self) -> list[str]:
        sentences = [
            f"{self.tokens:,} tokens in {self.duration_s:.1f} s: {self.tokens_per_s:,.0f} tokens/s",
            f"{self.succeeded:,} of {self.jobs:,} jobs succeeded, {self.failed:,} failed; "
            + (f"{self.lost:,} LOST" if self.lost else "nothing lost"),
        ]
        if self.first_failure is not None:
            sentences.append(f"the first failure: {self.first_failure}")
        return sentences


def report_on(
    jobs: Sequence[Job],
    records: Mapping[str, JobRecord | None],
    *,
    total: int,
    duration_s: float,
    services: str,
) -> Report:
    """Report on ``total`` jobs, of which those in ``jobs`` were accepted."""
    waits_s: defaultdict[int, list[float]] = defaultdict(list)
    succeeded = failed = tokens = 0
    first_failure: str | None = None
    for job in jobs:
        record = records.get(job.id)
        if record is None or record.result is None:
            continue
        result = record.result
        tokens += result.usage.completion_tokens
        if result.timings is not None:
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
        waits={
            Priority(priority).name.lower(): Waits.of(waits_s[priority])
            for priority in sorted(waits_s, reverse=True)
        },
        first_failure=first_failure,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
