"""Says why a job does not run, how many jobs are ahead of it, and when it may start."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from inferfleet.producer.start_estimates import StartEstimates
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import JobState
from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.schemas.result import JobRecord
from inferfleet.schemas.shares import preferred, times_its_share
from inferfleet.wire.redis.clock import moment_of
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_listing import count_ahead
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.lost_messages import LostMessages
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import read_pool_settings
from inferfleet.wire.redis.session_lanes import SessionLanes
from inferfleet.wire.redis.shares import read_shares


class WaitReason(StrEnum):
    """Why a job does not run."""

    SCHEDULED = "scheduled"
    """It may not start yet, because of its ``not_before``."""
    AFTER = "after"
    """It runs after other jobs, which have not all succeeded."""
    TURN = "turn"
    """Another turn of its session runs, or waits before it."""
    PAUSED = "paused"
    """Its pool is paused."""
    RETRY = "retry"
    """It waits for its next attempt."""
    NO_WORKER = "no_worker"
    """No worker of its pool is ready."""
    SLOT = "slot"
    """A worker has its message, and no free slot."""
    QUEUE = "queue"
    """It is in the queue, unless its message was lost."""
    SHARE = "share"
    """It is in the queue, and its tenant has had more than its share of the pool lately."""
    SILENT = "silent"
    """It is running by its record, but its worker has given no sign of life for longer than its lease."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job does not run, as a word and as a sentence for a person.

    ``job_id`` is the job for which it waits, and ``until`` when it may go on, where that is known.
    """

    reason: WaitReason
    detail: str
    job_id: str | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a job stands at one moment.

    ``waits`` are all reasons why it does not run, none if it runs or has ended. ``workers`` is how many
    workers of its pool are alive. ``ahead`` counts the unfinished jobs of the pool that are more urgent, or
    as urgent and entered earlier, also those that run. ``finished_per_s`` is how many jobs a second the
    workers have ended in the last minute. ``starts_in_s`` estimates when the job starts if nothing more
    urgent is submitted, from these and from how much work the jobs ahead are expected to be; ``None`` where
    that cannot be known. Both are ``None`` until the job may start.
    """

    waits: tuple[Wait, ...] = ()
    workers: int
    ahead: int | None = None
    finished_per_s: float
    starts_in_s: float | None = None


class Positions:
    """Looks for the reasons with a few commands, however many jobs there are."""

    def __init__(self, pipeline: CommandPipeline, lanes: SessionLanes, estimates: StartEstimates) -> None:
        self._pipeline = pipeline
        self._lanes = lanes
        self._estimates = estimates
        self._records = JobReading(pipeline)

    async def waits(self, record: JobRecord) -> tuple[Wait, ...]:
        """Return why a job does not run."""
        workers = await read_heartbeats(self._pipeline)
        return await self._waits(record, [worker for worker in workers if worker.pool == record.pool])

    async def of(self, record: JobRecord) -> Position:
        """Return where a job stands."""
        workers = [worker for worker in await read_heartbeats(self._pipeline) if worker.pool == record.pool]
        per_s = sum(worker.finished_per_s for worker in workers)
        waits = await self._waits(record, workers)
        if not waits or waits[0].reason in {WaitReason.SILENT, WaitReason.SCHEDULED, WaitReason.AFTER}:
            return Position(waits=waits, workers=len(workers), finished_per_s=per_s)
        ahead = await count_ahead(self._pipeline, record.pool, record.priority, record.id)
        starts_in_s = None
        if ahead is not None and waits[0].reason in {WaitReason.SLOT, WaitReason.QUEUE}:
            starts_in_s = await self._estimates.behind(ahead, record.pool, record.priority)
        return Position(
            waits=waits, workers=len(workers), ahead=ahead, finished_per_s=per_s, starts_in_s=starts_in_s
        )

    async def _waits(self, record: JobRecord, workers: list[Heartbeat]) -> tuple[Wait, ...]:
        if record.state.terminal:
            return ()
        if record.state is JobState.QUEUED and not record.attempt and record.not_before is not None:
            rest_s = (record.not_before - self._pipeline.clock.now()).total_seconds()
            if rest_s > 0:
                at = f"{record.not_before:%Y-%m-%d %H:%M:%S} UTC"
                starts = f"it starts no earlier than {at}, in {timedelta(seconds=round(rest_s))}"
                return (Wait(WaitReason.SCHEDULED, starts, until=record.not_before),)
        if record.state is JobState.QUEUED and not record.attempt and record.after is not None:
            states = await self._records.states(record.after)
            if unfinished := [it for it, state in states.items() if state is None or not state.terminal]:
                told = ", ".join(f"{job_id} ({state or 'unknown'})" for job_id, state in states.items())
                return (Wait(WaitReason.AFTER, f"it runs after {told}", job_id=unfinished[0]),)
        jobs = LostMessages(self._pipeline, pool=record.pool)
        (marks,), settings, held = await asyncio.gather(
            jobs.marks([record.id]),
            read_pool_settings(self._pipeline, record.pool),
            jobs.is_held(record.id),
        )
        until_ms = int(marks.lease or 0)
        rest_s = (until_ms - jobs.now_ms) / 1000
        if record.state is JobState.RUNNING:
            silent = f"{record.worker_id} has given no sign of life since its lease ended {-rest_s:.0f} s ago"
            return (Wait(WaitReason.SILENT, silent),) if rest_s < 0 else ()
        gates: list[Wait] = []
        if record.session_id is not None:
            owner, _ = await self._lanes.owner(record.session_id)
            if owner not in {"", record.id}:
                behind = f"behind turn {owner} of its session, and perhaps behind others"
                gates.append(Wait(WaitReason.TURN, behind, job_id=owner))
        if settings.paused_at is not None:
            since = f"{settings.paused_at:%Y-%m-%d %H:%M:%S} UTC"
            resume = f"`inferfleet pool resume {record.pool}` lets it go on"
            gates.append(
                Wait(WaitReason.PAUSED, f"pool {record.pool} has been paused since {since}; {resume}")
            )
        if record.attempt and rest_s > 0:
            retry = f"its next attempt is in {rest_s:.0f} s"
            gates.append(Wait(WaitReason.RETRY, retry, until=moment_of(until_ms)))
        if not any(worker.phase is WorkerPhase.READY for worker in workers):
            who = f"an autoscaler, or `inferfleet worker --pool {record.pool}`, has to start one"
            none = f"no worker of pool {record.pool} is ready{_phases(workers)}"
            gates.append(Wait(WaitReason.NO_WORKER, none if workers else f"{none}; {who}"))
        if gates:
            return tuple(gates)
        if held:
            return (Wait(WaitReason.SLOT, "a worker has its message, and no free slot"),)
        queue = Wait(WaitReason.QUEUE, f"in the queue of pool {record.pool}")
        if (times := await self._times_its_share(record)) is None or times <= 1:
            return (queue,)
        over = f"its tenant has had {times:.1f} times its share of the pool lately"
        return queue, Wait(WaitReason.SHARE, f"{over}; the jobs of those who had less start first")

    async def _times_its_share(self, record: JobRecord) -> float | None:
        """Return how many times its share a job's tenant has had, if the job is not preferred."""
        if preferred(record.priority, below=PRIORITY_LEVELS) is None:
            return None
        shares = await read_shares(self._pipeline, record.pool)
        return times_its_share(record.tenant, shares)


def _phases(workers: list[Heartbeat]) -> str:
    return (
        f" ({', '.join(f'{worker.worker_id}: {worker.unfit or worker.phase}' for worker in workers)})"
        if workers
        else ""
    )
