"""Counts the jobs that end on this worker, for the counts of its pool."""

from __future__ import annotations

import os
from collections import Counter
from itertools import count

from typing_extensions import override

from inferfleet.schemas import JobState, Result
from inferfleet.schemas.ended_counts import bucket_of
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.wire.redis.ended_counts import add_counts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun


class EndedCounting(Hooks):
    """Counts attempts that succeeded or failed, also those that will be retried, and their times.

    An attempt fails, too, if its engine dies. One that fails because of its request does not count: else
    any caller could make a pool look bad.
    """

    def __init__(self, *, pool: str, worker_id: str) -> None:
        self._pool = pool
        self._name = f"{worker_id}:{os.urandom(4).hex()}"
        self._calls = count()
        self._new: Counter[str] = Counter()
        self._adding: tuple[str, Counter[str]] | None = None

    @override
    def on_requeue(self, run: JobRun, entry: QueuedEntry) -> None:
        if entry.failure is not None and not entry.failure.code.of_request:
            self._new["failed"] += 1

    @override
    def on_engine_death(self, run: JobRun) -> None:
        self._new["failed"] += 1

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        if result.state is JobState.FAILED:
            if result.error is not None and result.error.code.of_request:
                return
            self._new["failed"] += 1
        elif result.state is JobState.SUCCEEDED:
            self._new["succeeded"] += 1
        else:
            return
        if (timings := result.timings) is not None:
            self._new[f"wait:{bucket_of(timings.queue_wait_s)}"] += 1
            if timings.time_to_first_token_s is not None:
                self._new[f"first_token:{bucket_of(timings.time_to_first_token_s)}"] += 1

    async def add(self, pipeline: CommandPipeline) -> None:
        """Add what was counted since the last call to the counts of the pool."""
        if self._adding is None and self._new:
            self._adding = f"{self._name}:{next(self._calls)}", self._new
            self._new = Counter()
        if self._adding is not None:
            call, counts = self._adding
            # By the same name if this fails: Redis may have added them all the same.
            await add_counts(pipeline, self._pool, counts, call=call)
            self._adding = None
