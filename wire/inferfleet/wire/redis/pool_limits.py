"""The admission limit of a pool for jobs that are not in its queue: turns that wait in lanes."""

from __future__ import annotations

import asyncio
from typing import Any

from inferfleet.schemas.job import Job
from inferfleet.schemas.names import pool_key, waiting_turns_key
from inferfleet.wire.redis import session_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline

ENTERING_S = 60
"""How long a turn counts before it is known to wait."""


async def note_limit(pipeline: CommandPipeline, pool: str, queue_max_length: int | None) -> None:
    """Store how many jobs the pool's queue may hold; ``None`` is no limit.

    All processes that declare the queue store the same limit, because RabbitMQ refuses other values.
    """
    if queue_max_length is None:
        await pipeline.execute("HDEL", pool_key(pool), "queue_max_length")
    else:
        await pipeline.execute("HSET", pool_key(pool), "queue_max_length", queue_max_length)


async def count_waiting_turns(pipeline: CommandPipeline, pool: str) -> int:
    """Count the turns of a pool that wait in lanes. Those whose lanes have expired may be among them."""
    return int(await pipeline.execute("ZCARD", waiting_turns_key(pool)))


class WaitingTurns:
    """Counts the turns of each pool that wait in lanes.

    A turn counts from before it enters its lane until it has left the lane. Before it is known to wait, it
    counts only for a minute, because its producer may give up, or lose Redis, in between.
    """

    def __init__(self, pipeline: CommandPipeline, *, lane_ttl_s: int) -> None:
        self._pipeline = pipeline
        self._lane_ttl_s = lane_ttl_s

    def count(self, job: Job, *, admitted: bool = False) -> asyncio.Future[Any]:
        """Count a turn that is going to wait. Return 0 if too many wait, unless it was ``admitted``."""
        keys = (pool_key(job.pool), waiting_turns_key(job.pool))
        return self._pipeline.enqueue(
            *session_scripts.waiting_turn(*keys, job=job.id, ttl_s=ENTERING_S, admitted=int(admitted))
        )

    def keep(self, job: Job) -> asyncio.Future[Any]:
        """Count a turn for as long as its lane lives, because it waits now."""
        keys = (pool_key(job.pool), waiting_turns_key(job.pool))
        return self._pipeline.enqueue(
            *session_scripts.waiting_turn(*keys, job=job.id, ttl_s=self._lane_ttl_s, admitted=2)
        )

    def forget(self, job_id: str, pool: str) -> asyncio.Future[Any]:
        """Stop counting a turn."""
        return self._pipeline.enqueue("ZREM", waiting_turns_key(pool), job_id)
