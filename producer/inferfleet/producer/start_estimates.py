"""Estimates when jobs start, from what the workers have ended lately and from the jobs that are ahead."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from datetime import timedelta
from typing import Final

from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError, TooLateError
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import Job, OnLate
from inferfleet.schemas.work import WorkDone
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_listing import count_unfinished
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.work_samples import mean_work, sample_work

KEPT_S: Final = 1.0
"""How old an estimate may be by which jobs are refused: making one takes hundreds of reads."""


class StartEstimates:
    """Estimates from a few hundred reads, however many jobs there are."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self._kept: dict[tuple[str, int], tuple[float, float | None]] = {}
        """When each estimate was made, and what it says, by pool and priority."""
        self._estimating = asyncio.Lock()

    async def check(self, job: Job) -> None:
        """Refuse a job that asks for it if it would expire before it starts.

        Where its start cannot be estimated, the job is not refused.

        Raises:
            TooLateError: It would expire.

        """
        if job.on_late is not OnLate.REJECT or job.expires_at is None:
            return
        starts_in_s = None
        with suppress(ServiceUnreachableError, ServiceRefusedError):
            starts_in_s = await self._soon(job.pool, job.priority)
        if starts_in_s is None:
            return
        now = self._pipeline.clock.now()
        if now + timedelta(seconds=min(starts_in_s, 1e9)) > job.expires_at:
            rest_s = (job.expires_at - now).total_seconds()
            raise TooLateError(
                f"on_late: a job of priority {job.priority} may start in {math.ceil(starts_in_s)} s in pool "
                f"{job.pool!r}, and this one expires in {rest_s:.0f} s; give it more time or a higher "
                "priority, or submit it with on_late=accept",
                starts_in_s=starts_in_s,
            )

    async def new_job(self, pool: str, priority: int) -> float | None:
        """Estimate in how many seconds a job starts that is submitted now; ``None`` if nobody can know."""
        heartbeats, counts = await asyncio.gather(
            read_heartbeats(self._pipeline), count_unfinished(self._pipeline, pool)
        )
        workers = [worker for worker in heartbeats if worker.pool == pool]
        ahead = sum(count for level, count in counts.items() if level >= priority)
        return await self.behind(ahead, pool=pool, priority=priority, workers=workers)

    async def behind(self, ahead: int, *, pool: str, priority: int, workers: list[Heartbeat]) -> float | None:
        """Estimate in how many seconds a job starts that has so many jobs ahead of it."""
        per_s = sum(worker.finished_per_s for worker in workers)
        if not per_s:
            return None
        waiting = max(0, ahead - sum(worker.running for worker in workers))
        heaviness = 1.0
        if waiting and (done := WorkDone.of(workers)) is not None:
            counts = await count_unfinished(self._pipeline, pool)
            before = {level: count for level, count in counts.items() if level > priority}
            # The others ahead are the oldest of its own priority.
            before[priority] = max(0, ahead - sum(before.values()))
            jobs = await sample_work(self._pipeline, pool, before)
            if (mean := mean_work((job for job in jobs if not job.running), done)) is not None:
                heaviness = mean / done.mean
        # As many jobs have to end as wait ahead of it, and one of those that run for a slot.
        return (waiting * heaviness + 1) / per_s

    async def _soon(self, pool: str, priority: int) -> float | None:
        # Callers who come meanwhile share one estimate.
        async with self._estimating:
            now = time.monotonic()
            self._kept = {place: kept for place, kept in self._kept.items() if now - kept[0] < KEPT_S}
            if (pool, priority) not in self._kept:
                self._kept[pool, priority] = now, await self.new_job(pool, priority)
            return self._kept[pool, priority][1]
