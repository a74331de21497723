"""The admission limit of a pool, where those can see it who admit what does not go to its queue at once."""

from __future__ import annotations

from inferfleet.schemas.names import pool_key
from inferfleet.wire.pipeline import CommandPipeline


async def note_limit(pipeline: CommandPipeline, pool: str, queue_max_length: int | None) -> None:
    """Say how many jobs the pool's queue may hold; ``None`` is no limit.

    Everyone who declares the queue says the same, since RabbitMQ refuses other values.
    """
    if queue_max_length is None:
        await pipeline.execute("HDEL", pool_key(pool), "queue_max_length")
    else:
        await pipeline.execute("HSET", pool_key(pool), "queue_max_length", queue_max_length)
