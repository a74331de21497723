"""The admission limit of a pool, for what does not go to its queue at once: turns that wait in lanes."""

from __future__ import annotations

import asyncio
from typing import Any

from inferfleet.schemas.job import Job
from inferfleet.schemas.names import pool_key, waiting_turns_key
from inferfleet.wire.redis import session_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline

ENTERING_S = 60
"""How long a turn counts that is not known to wait yet."""


async def note_limit(pipeline: CommandPipeline, pool: str, queue_max_length: int | None) -> None:
    """Say how many jobs the pool's queue may hold; ``None`` is no limit.

    Everyone who declares the queue says the same, since RabbitMQ refuses other values.
    """
    if queue_max_length is None:
        await pipeline.execute("HDEL", pool_key(pool), "queue_max_length")
    else:
        await pipeline.execute("HSET", pool_key(pool), "queue_max_length", queue_max_length)


class WaitingTurns:
    """Counts the turns of each pool that wait in lanes.

    A turn is counted before it enters its lane, and no longer once it has left. Until it is known to wait it
    counts for a minute only, since its producer may give up, or lose Redis, in between.
    """

    def __init__(self, pipeline: CommandPipeline, *, lane_ttl_s: int) -> None:
        self._pipeline = pipeline
        self._lane_ttl_s = lane_ttl_s

    def count(self, job: Job, *, admitted: bool = False) -> asyncio.Future[Any]:
        """Count a turn that is going to wait. 0 if there are too many, unless it was ``admitted`` before."""
        keys = (pool_key(job.pool), waiting_turns_key(job.pool))
        return self._pipeline.enqueue(
            *session_scripts.waiting_turn(*keys, job=job.id, ttl_s=ENTERING_S, admitted=int(admitted))
        )

    def keep(self, job: Job) -> asyncio.Future[Any]:
        """Count a turn for as long as its lane lives: it waits, or has left meanwhile."""
        keys = (pool_key(job.pool), waiting_turns_key(job.pool))
        return self._pipeline.enqueue(
            *session_scripts.waiting_turn(*keys, job=job.id, ttl_s=self._lane_ttl_s, admitted=2)
        )

    def forget(self, job_id: str, pool: str) -> asyncio.Future[Any]:
        """Count a turn no longer."""
        return self._pipeline.enqueue("ZREM", waiting_turns_key(pool), job_id)
