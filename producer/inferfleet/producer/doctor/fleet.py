"""Checks of pools, workers and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from inferfleet.producer.doctor.finding import Check, Finding, error, warning
from inferfleet.schemas.errors import ConfigurationError, ServiceRefusedError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import JobState
from inferfleet.schemas.names import control_queue, dead_queue, job_queue
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.pool import PoolStatus
from inferfleet.schemas.rollout import RolloutPhase
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.rabbitmq.connection import Connection
from inferfleet.wire.rabbitmq.inspection import check_queue_arguments, queue_depth
from inferfleet.wire.rabbitmq.publishing import Depth
from inferfleet.wire.redis.job_listing import Entry, unfinished
from inferfleet.wire.redis.lost_messages import LostMessages, Marks
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import Kept
from inferfleet.wire.redis.session_lanes import SessionLanes

LOADING_S = 15 * 60
"""How long a worker may take to start, and to load its model, before somebody should look."""

SETTLING_S = 120.0
"""What has lasted for less may be on its way: workers sweep every half minute, and a lease lasts 15 s."""


async def queue_findings(
    connection: Connection, pool: PoolStatus, settings: ServiceSettings
) -> AsyncGenerator[Finding]:
    """Check the queues of a pool."""
    if await queue_depth(connection, job_queue(pool.pool), url=settings.amqp_url) is None:
        if pool.unfinished or pool.workers:
            yield error(
                Check.QUEUE_MISSING,
                pool.pool,
                f"it has no queue {job_queue(pool.pool)}, so it accepts no job",
                f"start a worker for it, or `inferfleet pool declare {pool.pool}`",
            )
        return
    try:
        await check_queue_arguments(connection, pool.pool, settings)
    except ServiceRefusedError:
        # A permission is missing, which is a finding already.
        pass
    except ConfigurationError as problem:
        yield error(
            Check.QUEUE_ARGUMENTS,
            pool.pool,
            str(problem),
            "use the same INFERFLEET_QUEUE_TYPE and INFERFLEET_QUEUE_MAX_LENGTH everywhere",
        )
    if await queue_depth(connection, dead_queue(pool.pool), url=settings.amqp_url) is None:
        yield error(
            Check.DEAD_QUEUE_MISSING,
            pool.pool,
            f"it has no queue {dead_queue(pool.pool)} for its dead letters",
            f"start a worker for it, or `inferfleet pool declare {pool.pool}`",
        )
    for worker in pool.workers:
        queue = control_queue(worker.worker_id)
        if await queue_depth(connection, queue, url=settings.amqp_url) is None:
            yield error(
                Check.WORKER_CUT_OFF,
                worker.worker_id,
                "it is alive in Redis, and has no queue in RabbitMQ: it gets no jobs and no commands",
                "look at its log, and at the network between it and RabbitMQ",
            )


def pool_findings(pool: PoolStatus, settings: ServiceSettings, now: datetime) -> Iterator[Finding]:
    """Check what is known of a pool and its workers."""
    number = sum(pool.unfinished.values())
    if pool.paused_at is not None and number:
        yield warning(
            Check.PAUSED,
            pool.pool,
            f"it is paused since {pool.paused_at:%Y-%m-%d %H:%M:%S} UTC, with "
            f"{count_of(number, 'unfinished job')}",
            f"`inferfleet pool resume {pool.pool}`",
        )
    if pool.workers and pool.queue_max_length != settings.queue_max_length:
        yield warning(
            Check.QUEUE_LIMIT,
            pool.pool,
            f"its workers have INFERFLEET_QUEUE_MAX_LENGTH {pool.queue_max_length}, and here it is "
            f"{settings.queue_max_length}",
            "use the same value everywhere",
        )
    if pool.dead_letters:
        yield warning(
            Check.DEAD_LETTERS,
            pool.pool,
            f"{pool.dead_letters:,} dead letters wait for somebody",
            f"`inferfleet dead list --pool {pool.pool}`, then replay or purge them",
        )
    yield from _worker_findings(pool, now)


def rollout_findings(kept: Kept) -> Iterator[Finding]:
    """Check that somebody takes the rollout of a pool further, or aborts it."""
    if kept.rollout is None or kept.controller or not kept.rollout.phase.controlled:
        return
    aborting = kept.rollout.phase is RolloutPhase.ABORTING
    yield (error if aborting else warning)(
        Check.ROLLOUT_UNCONTROLLED,
        kept.rollout.pool,
        f"no gateway controls its rollout to {kept.rollout.to}, which is {kept.rollout.phase}: "
        + ("jobs that wait there do not move back" if aborting else "it makes no step, and does not abort"),
        "start a gateway, or look at the log of those that run",
    )


def _worker_findings(pool: PoolStatus, now: datetime) -> Iterator[Finding]:
    for worker in pool.workers:
        loads_s = (now - worker.started_at).total_seconds()
        if worker.unfit:
            yield error(
                Check.UNFIT,
                worker.worker_id,
                f"it serves nothing: {worker.unfit}",
                "give it the required model (`inferfleet model swap`), or change what the pool requires "
                f"(`inferfleet pool require-identity {pool.pool}`)",
            )
        elif worker.swap is not None and worker.swap.busy:
            pass
        elif worker.phase is WorkerPhase.LOADING and loads_s > LOADING_S:
            yield warning(
                Check.WORKER_LOADING,
                worker.worker_id,
                f"it has been loading its model for {loads_s / 60:.0f} minutes",
                "look at its log",
            )
    if len(identities := _by(pool.workers, "model_identity")) > 1:
        yield warning(
            Check.IDENTITIES,
            pool.pool,
            f"its workers run different models ({_shown(identities)}): an answer that moves to another model "
            "starts again",
            "give a pool one model; compare the parts of the identities in the workers' first log lines",
        )
    if len(versions := _by(pool.workers, "version")) > 1:
        yield warning(
            Check.VERSIONS,
            pool.pool,
            f"its workers have different versions of inferfleet ({_shown(versions)})",
            "finish the upgrade",
        )


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A job in the index, and what its record says."""

    entry: Entry
    priority: int
    marks: Marks


class JobChecks:
    """Checks the oldest jobs in the index of one pool."""

    def __init__(
        self,
        pipeline: CommandPipeline,
        lanes: SessionLanes,
        pool: PoolStatus,
        *,
        depth: Callable[[str], Awaitable[Depth | None]],
    ) -> None:
        self._pipeline = pipeline
        self._lanes = lanes
        self._pool = pool
        self._depth = depth
        """Counts what is in a queue; ``None`` if that is not known."""
        self._jobs = LostMessages(pipeline, pool=pool.pool)

    async def findings(self, settings: ServiceSettings) -> AsyncGenerator[Finding]:
        """Compare the index with records, requests, lanes and the queue."""
        sample = await self._sample()
        if finding := self._no_worker([it for it in sample if not it.marks.over]):
            yield finding
        sample = [it for it in sample if self._age_s(it.entry.since_ms) > SETTLING_S]
        if over := [it for it in sample if self._long_over(it.marks)]:
            yield warning(
                Check.INDEX_STALE,
                self._pool.pool,
                f"{len(over):,} of the {len(sample):,} oldest entries of its index are of jobs that have "
                f"ended or have no record, such as {over[0].entry.id}",
                "start a worker: it removes them",
            )
        there = [it for it in sample if not it.marks.over]
        if settings.keep_requests:
            kept = await asyncio.gather(*(self._jobs.has_request(it.entry.id) for it in there))
            lacking = [it for it, has in zip(there, kept, strict=True) if not has]
            if lacking := await self._unchanged(lacking):
                yield warning(
                    Check.REQUEST_MISSING,
                    self._pool.pool,
                    f"Redis has no request of {count_of(len(lacking), 'unfinished job')}, such as "
                    f"{lacking[0].entry.id}: if their messages are lost, nobody can publish them again",
                    "set INFERFLEET_KEEP_REQUESTS in all processes, or submit these jobs again",
                )
        silent = [
            it
            for it in there
            if it.marks.state == JobState.RUNNING and self._age_s(it.marks.had_until_ms) > SETTLING_S
        ]
        if silent:
            yield error(
                Check.JOB_SILENT,
                self._pool.pool,
                f"{len(silent):,} running jobs have had no sign of life since their leases ended, such as "
                f"{silent[0].entry.id}",
                "start a worker: it continues them; if there is one, look at its log",
            )
        turns = [it for it in there if it.marks.session and it.marks.state == JobState.QUEUED]
        owners = await asyncio.gather(*(self._owner(it) for it in turns))
        ahead = sorted({*owners} - {""})
        ended = dict(zip(ahead, await self._jobs.marks(ahead), strict=True))
        if stuck := [
            it for it, owner in zip(turns, owners, strict=True) if owner and self._long_over(ended[owner])
        ]:
            yield error(
                Check.LANE_ORPHANED,
                self._pool.pool,
                f"{len(stuck):,} turns wait behind one that has ended, such as {stuck[0].entry.id} of "
                f"session {stuck[0].marks.session}",
                "start a worker: it lets the next one run; or submit the turn again",
            )
        waiting = [it for it in there if it.marks.state == JobState.QUEUED]
        if finding := await self._lost(waiting, settings.queue_type):
            yield finding

    def _no_worker(self, live: list[_Sampled]) -> Finding | None:
        if not live or self._pool.workers:
            return None
        waited_s = max(self._age_s(it.entry.since_ms) for it in live)
        return (error if waited_s > LOADING_S else warning)(
            Check.NO_WORKER,
            self._pool.pool,
            f"it has {count_of(sum(self._pool.unfinished.values()), 'unfinished job')} and no live worker",
            "start a worker for it; if KEDA should, look at its ScaledObject",
        )

    async def _lost(self, waiting: list[_Sampled], queue_type: QueueType) -> Finding | None:
        """Find jobs that wait although the queue is empty and no worker has their messages."""
        # Asked only now, because what was in the queue may have been delivered since. Without its leader, a
        # quorum queue only looks empty.
        depth = await self._depth(job_queue(self._pool.pool))
        if depth is None or depth.ready or (queue_type is QueueType.QUORUM and not depth.consumers):
            return None
        plain = [
            it for it in waiting if not it.marks.session and self._age_s(it.marks.had_until_ms) > SETTLING_S
        ]
        held = await asyncio.gather(*(self._jobs.is_held(it.entry.id) for it in plain))
        lost = await self._unchanged([it for it, is_held in zip(plain, held, strict=True) if not is_held])
        if not lost:
            return None
        return error(
            Check.MESSAGES_LOST,
            self._pool.pool,
            f"{len(lost):,} jobs wait, such as {lost[0].entry.id}, and the queue is empty: their messages "
            "are lost",
            "start a worker: it publishes them again",
        )

    async def _unchanged(self, found: list[_Sampled]) -> list[_Sampled]:
        """Return the jobs that have not gone on since they were read."""
        marks = await self._jobs.marks(it.entry.id for it in found)
        return [it for it, its in zip(found, marks, strict=True) if its == it.marks]

    def _long_over(self, marks: Marks) -> bool:
        """Return whether a job has no record, or ended so long ago that nobody is about to clear up."""
        return marks.over and self._age_s(int(marks.finished_at or 0)) > SETTLING_S

    async def _owner(self, it: _Sampled) -> str:
        """Return the turn before this one, if it has owned the session for long enough."""
        owner, since_ms = await self._lanes.owner(it.marks.session)
        return "" if owner == it.entry.id or self._age_s(since_ms) < SETTLING_S else owner

    async def _sample(self) -> list[_Sampled]:
        sample: list[_Sampled] = []
        for priority in self._pool.unfinished:
            async with aclosing(unfinished(self._pipeline, self._pool.pool, priority)) as pages:
                page = await anext(pages, list[Entry]())
            marks = await self._jobs.marks(entry.id for entry in page)
            sample += [_Sampled(entry, priority, its) for entry, its in zip(page, marks, strict=True)]
        return sample

    def _age_s(self, at_ms: int) -> float:
        return (self._jobs.now_ms - at_ms) / 1000


def _by(workers: tuple[Heartbeat, ...], field: str) -> dict[str, list[str]]:
    """Return the workers of each value of a field, without those that have none yet."""
    found: dict[str, list[str]] = {}
    for worker in workers:
        if value := str(getattr(worker, field)):
            found.setdefault(value, []).append(worker.worker_id)
    return found


def _shown(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{value}: {', '.join(workers)}" for value, workers in groups.items())
