"""Decides which running job gives its slot to an urgent one. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from inferfleet.worker.job_run import JobRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """Jobs of at least the priority ``from_priority`` preempt running jobs below it.

    A job is preempted at most ``limit`` times, and only once the engine has had it for ``min_run_s`` since it
    last got a slot.
    """

    from_priority: int
    min_run_s: float
    limit: int

    def urgent(self, run: JobRun) -> bool:
        """Whether a job may preempt others."""
        return run.job.priority >= self.from_priority

    def possible(self, runs: Iterable[JobRun]) -> bool:
        """Whether any of these jobs may be preempted."""
        return any(self._preemptible(runs))

    def victim(self, runs: Iterable[JobRun]) -> JobRun | None:
        """Return the job whose preemption costs least; ``None`` if none may be preempted.

        That is the least urgent one; among equals the one that was preempted least often, and then the one
        with the fewest tokens to read again.
        """
        return min(
            self._preemptible(runs),
            key=lambda run: (run.job.priority, run.preemptions, run.answer.prompt_tokens + run.answer.tokens),
            default=None,
        )

    def _preemptible(self, runs: Iterable[JobRun]) -> Iterator[JobRun]:
        latest = time.monotonic() - self.min_run_s
        return (run for run in runs if self._may_be_preempted(run, latest))

    def _may_be_preempted(self, run: JobRun, latest: float) -> bool:
        return (
            not self.urgent(run)
            and run.preemptions < self.limit
            and run.engine_began is not None
            and run.engine_began <= latest
            and run.stop_switch.is_guarding
            and run.stop_switch.reason is None
            and run.resumable
            # Resumed, a seeded sample would continue differently.
            and run.job.body.get("seed") is None
        )
