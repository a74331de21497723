"""Watches the fleet: takes snapshots, and remembers the jobs that have just ended.

A snapshot lists no jobs, so it costs the same with a hundred thousand. Redis gets one command for each
worker, for each pool 25 and at most 50 for each priority that has jobs (more only while more than 50
of them run), for each rollout two, and for each queue of agents' runs one for each run and 521 at most.
RabbitMQ gets two passive declarations for each pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from operator import attrgetter
from statistics import median
from typing import Final

from inferfleet.producer.gates import closed_gates
from inferfleet.producer.job_listing import JobListing
from inferfleet.producer.pools import Pools
from inferfleet.producer.rollout_views import rollout_views
from inferfleet.schemas.errors import ConfigurationError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.fleet_snapshot import AgentQueueView, FleetSnapshot, PoolView
from inferfleet.schemas.heartbeat import EndedJob, Heartbeat
from inferfleet.schemas.job import DEFAULT_POOL, JobState
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.pool import PoolStatus
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import count_waiting_turns
from inferfleet.wire.redis.run_counts import count_runs

ANSWER_S: Final = 5.0
"""How long RabbitMQ may take for one answer. Redis' connection has a limit of its own."""

ENDED: Final = 25
"""How many jobs to remember that succeeded, and how many that did not."""

RECENT_S: Final = 60.0
"""For how long after its end a job counts towards the median wait of its pool."""

_AWAY = (ServiceUnreachableError, ServiceRefusedError, ConfigurationError)
"""The errors of a service that does not answer. The file with its URL may be missing during a replacement."""

_ended_at = attrgetter("ended_at")


class FleetWatch:
    """Takes snapshots of the fleet, one after the other."""

    def __init__(
        self,
        *,
        pipeline: CommandPipeline,
        listing: JobListing,
        waiting: Callable[[str], Awaitable[int | None]],
    ) -> None:
        self._pipeline = pipeline
        self._waiting = waiting
        self._pools = Pools(pipeline=pipeline, listing=listing, waiting=self._ready)
        self._asking = asyncio.Lock()
        self._rabbitmq: str | None = None
        """Why RabbitMQ has not answered during this snapshot; ``None`` if it has."""
        self._ended: list[EndedJob] = []
        self._last: FleetSnapshot | None = None

    async def snapshot(self) -> FleetSnapshot:
        """Take a snapshot. A service that does not answer is no error: the snapshot says so.

        Raises:
            ClientUnusableError: The client belongs to another event loop or process.

        """
        self._rabbitmq = None
        try:
            pools = await self._pools.all()
            turns = await asyncio.gather(*(count_waiting_turns(self._pipeline, it.pool) for it in pools))
            rollouts = await rollout_views(self._pipeline)
            agents = await self._agents()
        except _AWAY as error:
            last = self._last or FleetSnapshot(at=self._pipeline.clock.now())
            return last.model_copy(update={"unreachable": {"Redis": str(error)}})
        if not pools:
            # Nothing else would notice that RabbitMQ does not answer.
            await self._ready(job_queue(DEFAULT_POOL))
        workers = [worker for pool in pools for worker in pool.workers]
        self._remember(workers)
        at = self._pipeline.clock.now()
        views = [
            self._view(pool, at, waiting_turns=number) for pool, number in zip(pools, turns, strict=True)
        ]
        if self._rabbitmq is not None and self._last is not None:
            # A pool without jobs and workers is known by its queue alone.
            found = {pool.pool for pool in pools}
            idle = [pool for pool in self._last.pools if pool.pool not in found]
            views += [pool.model_copy(update={"ready": None, "dead_letters": None}) for pool in idle]
        self._last = FleetSnapshot(
            at=at,
            unreachable={} if self._rabbitmq is None else {"RabbitMQ": self._rabbitmq},
            pools=tuple(sorted(views, key=lambda view: view.pool)),
            rollouts=tuple(rollouts),
            agents=tuple(agents),
            ended=tuple(self._ended),
        )
        return self._last

    async def _agents(self) -> list[AgentQueueView]:
        """Count the runs of agents; none without the rights on their keys, which not every client needs."""
        try:
            return await count_runs(self._pipeline)
        except ServiceRefusedError as error:
            if error.passing:
                raise
            return []

    async def _ready(self, queue: str) -> int | None:
        """Count the messages in a queue; ``None`` if there is no queue, or RabbitMQ does not answer."""
        # One at a time, so that each has its own time limit, and none is asked after a failure.
        async with self._asking:
            if self._rabbitmq is not None:
                return None
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await self._waiting(queue)
            except TimeoutError:
                self._rabbitmq = f"RabbitMQ has not answered for {ANSWER_S:g} s"
            except _AWAY as error:
                self._rabbitmq = str(error)
            return None

    def _remember(self, workers: list[Heartbeat]) -> None:
        known = {job.id: job for job in self._ended}
        known |= {job.id: job for worker in workers for job in worker.ended}
        newest = sorted(known.values(), key=_ended_at, reverse=True)
        succeeded = [job for job in newest if job.state is JobState.SUCCEEDED]
        others = [job for job in newest if job.state is not JobState.SUCCEEDED]
        self._ended = sorted((*succeeded[:ENDED], *others[:ENDED]), key=_ended_at, reverse=True)

    def _view(self, pool: PoolStatus, at: datetime, *, waiting_turns: int) -> PoolView:
        finished_per_s = sum(worker.finished_per_s for worker in pool.workers)
        unfinished = sum(pool.unfinished.values())
        backlog_s = unfinished / finished_per_s if finished_per_s else None
        waits = [
            job.queue_wait_s
            for job in self._ended
            if job.pool == pool.pool
            and job.queue_wait_s is not None
            and (at - job.ended_at).total_seconds() <= RECENT_S
        ]
        gates = closed_gates(pool, queue_known=self._rabbitmq is None, waiting_turns=waiting_turns)
        return PoolView(
            pool=pool.pool,
            paused_at=pool.paused_at,
            required_identity=pool.required_identity,
            queue_max_length=pool.queue_max_length,
            ready=pool.ready,
            held=pool.held,
            dead_letters=pool.dead_letters,
            unfinished=pool.unfinished,
            oldest_waiting_s=pool.oldest_waiting_s,
            # ``FleetSnapshot.ended`` has the jobs of all workers.
            workers=tuple(worker.model_copy(update={"ended": ()}) for worker in pool.workers),
            finished_per_s=finished_per_s,
            tokens_per_s=sum(worker.tokens_per_s for worker in pool.workers),
            backlog_s=backlog_s if unfinished else 0.0,
            queue_wait_s=median(waits) if waits else None,
            gates=tuple(gates),
        )
