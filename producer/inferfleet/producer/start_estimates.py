"""Estimates when jobs start, from the slots of the workers and from the jobs that are ahead."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from datetime import timedelta
from typing import Final, NamedTuple

from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError, TooLateError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import Job, OnLate
from inferfleet.schemas.work import WorkDone
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_listing import count_ahead, count_unfinished
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.work_samples import mean_work, sample_work

KEPT_S: Final = 1.0
"""How old the pace may be by which starts are estimated: finding it out takes hundreds of reads."""


class _Pace(NamedTuple):
    """How fast the jobs of a priority start. ``per_s`` is 0 while nobody knows."""

    running: int
    free: int
    """Free slots."""
    per_s: float
    """How many jobs like those ahead end per second while all slots are in use."""

    def start_s(self, ahead: int) -> float | None:
        waiting = max(0, ahead - self.running)
        if waiting < self.free:
            return 0.0
        return (waiting - self.free + 1) / self.per_s if self.per_s else None


class StartEstimates:
    """Estimates from a few hundred reads, however many jobs there are."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self._paces: dict[tuple[str, int, int], tuple[float, _Pace | None]] = {}
        """When each pace was found out, and what it is, by pool, priority, and about how many are ahead."""
        self._finding_out = asyncio.Lock()

    async def check(self, job: Job) -> None:
        """Refuse a job that asks for it if it would expire before it starts.

        The job is in the index already. Where its start cannot be estimated, as that of a job
        with ``not_before`` or ``after``, it is not refused.

        Raises:
            TooLateError: It would expire.

        """
        if job.on_late is not OnLate.REJECT or job.expires_at is None:
            return
        if job.not_before is not None or job.after is not None:
            return
        starts_in_s = None
        with suppress(ServiceUnreachableError, ServiceRefusedError):
            ahead = await count_ahead(self._pipeline, job.pool, job.priority, job.id)
            starts_in_s = None if ahead is None else await self.behind(ahead, job.pool, job.priority)
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

    async def behind(self, ahead: int, pool: str, priority: int) -> float | None:
        """Estimate in how many seconds a job starts that has so many jobs ahead of it.

        ``None`` where nobody can know: no job has ended yet, or a worker is of an older version.

        Raises:
            ServiceUnreachableError, ServiceRefusedError: Redis does not answer.

        """
        # Those who come meanwhile share what is found out, also that it cannot be.
        async with self._finding_out:
            now, place = time.monotonic(), (pool, priority, ahead.bit_length())
            self._paces = {other: kept for other, kept in self._paces.items() if now - kept[0] < KEPT_S}
            if place not in self._paces:
                self._paces[place] = now, None
                self._paces[place] = now, await self._pace(pool, priority, ahead)
            pace = self._paces[place][1]
        return None if pace is None else pace.start_s(ahead)

    async def _pace(self, pool: str, priority: int, ahead: int) -> _Pace | None:
        workers = [worker for worker in await read_heartbeats(self._pipeline) if worker.pool == pool]
        ready = [worker for worker in workers if worker.phase is WorkerPhase.READY]
        if not ready or not all(worker.slots for worker in ready):
            return None
        running = sum(worker.running for worker in workers)
        free = sum(max(0, worker.slots - worker.running - worker.waiting) for worker in ready)
        per_s = _jobs_per_s(ready)
        if per_s and (done := WorkDone.of(workers)) is not None:
            counts = await count_unfinished(self._pipeline, pool)
            before = {level: count for level, count in counts.items() if level > priority}
            # The others ahead are the oldest of its own priority.
            before[priority] = max(0, ahead - sum(before.values()))
            jobs = await sample_work(self._pipeline, pool, before)
            if (mean := mean_work((job for job in jobs if not job.running), done)) is not None:
                per_s *= done.mean / mean
        return _Pace(running, free, per_s)


def _jobs_per_s(workers: list[Heartbeat]) -> float:
    """Return how many jobs end per second while all slots are in use, by Little's law."""
    means = {worker.worker_id: worker.mean_job.seconds for worker in workers if worker.mean_job is not None}
    if not (known := [seconds for seconds in means.values() if seconds > 0]):
        return 0.0
    others = sum(known) / len(known)
    return sum(worker.slots / (means.get(worker.worker_id) or others) for worker in workers)
