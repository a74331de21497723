"""Counts over AMQP by passive declarations: current, but only of ready messages."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity

from inferfleet.exporter.queues import QueueCounts
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import dead_queue, job_queue
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors

TIMEOUT_S = 4.0


class PassiveQueues:
    """Queries RabbitMQ on one connection, and reconnects after it broke."""

    def __init__(self, amqp_url: str) -> None:
        self._url = amqp_url
        self._stack = AsyncExitStack()
        self._connection: AbstractConnection | None = None

    async def counts(self, pools: Collection[str]) -> Mapping[str, QueueCounts]:
        """Return the counts of these pools, without those that have no queue. See ``Queues``."""
        try:
            with connection_errors(self._url):
                async with asyncio.timeout(TIMEOUT_S):
                    counted = {pool: await self._pool(pool) for pool in sorted(pools)}
        except (ServiceUnreachableError, ServiceRefusedError):
            await self.aclose()
            raise
        return {pool: counts for pool, counts in counted.items() if counts.ready is not None}

    async def aclose(self) -> None:
        """Close the connection."""
        self._connection = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def _pool(self, pool: str) -> QueueCounts:
        return QueueCounts(ready=await self._ready(job_queue(pool)), dead=await self._ready(dead_queue(pool)))

    async def _ready(self, queue: str) -> int | None:
        if self._connection is None:
            self._connection = await self._stack.enter_async_context(
                open_amqp(self._url, timeout_s=TIMEOUT_S, name="inferfleet exporter")
            )
        # A channel for each queue: RabbitMQ closes the channel if the queue does not exist.
        channel = await self._connection.channel()
        try:
            declared = await (await channel.get_underlay_channel()).queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            return None
        await channel.close()
        return declared.message_count
