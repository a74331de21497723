"""Clients of a store, whichever topology its URL has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import redis.asyncio as aioredis

from inferfleet.wire.redis.connection import closing_redis, command_pipeline, redis_client
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.sentinel import sentinel_pool
from inferfleet.wire.redis.topology import TopologyKind, topology_of
from inferfleet.wire.tasks import cancel_and_wait


def plain_redis(url: str) -> aioredis.Redis:
    """Make a client of redis-py's, without any of our code around it."""
    options: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None}
    topology = topology_of(url)
    if topology is None:
        return aioredis.Redis.from_url(url, **options)
    if topology.kind is TopologyKind.CLUSTER:
        # What tests do with it is what both can.
        return cast("aioredis.Redis", aioredis.RedisCluster.from_url(topology.urls[0], **options))
    return aioredis.Redis.from_pool(
        sentinel_pool(topology.urls, service=topology.service, login=topology.login, **options)
    )


@asynccontextmanager
async def running_pipeline(url: str, *, patience_s: float | None) -> AsyncIterator[CommandPipeline]:
    """Run a pipeline, as clients and workers have it."""
    async with closing_redis(redis_client(url)) as client:
        pipeline = command_pipeline(client, patience_s=patience_s)
        running = asyncio.create_task(pipeline.run())
        try:
            yield pipeline
        finally:
            await cancel_and_wait(running)
