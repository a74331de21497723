"""The connections of a command that orders workers to do something, and watches them do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from aio_pika import Message

from inferfleet.schemas.control import Control
from inferfleet.schemas.names import CONTROL_EXCHANGE
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.connection import command_pipeline, open_redis
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.tasks import cancel_and_wait

SendOrder = Callable[[Control], Awaitable[None]]


@asynccontextmanager
async def ordering(
    settings: ServiceSettings, *, name: str, patience_s: float = 0.0
) -> AsyncGenerator[tuple[CommandPipeline, SendOrder]]:
    """Connect; yield what reads Redis, and what sends an order to all workers.

    Once connected, what reads waits out an outage for up to ``patience_s``; what sends does not.

    Raises:
        InferfleetError: Redis does not answer.

    """
    channel = ConfirmChannel(
        settings.amqp_url,
        connect_timeout_s=settings.connect_timeout_s,
        confirm_timeout_s=settings.publish_timeout_s,
        name=name,
    )

    async def send(order: Control) -> None:
        await channel.publish(CONTROL_EXCHANGE, Message(order.model_dump_json().encode()))

    async with open_redis(settings.redis_url) as client, aclosing(channel):
        pipeline = command_pipeline(client, patience_s=patience_s)
        running = asyncio.create_task(pipeline.run())
        try:
            yield pipeline, send
        finally:
            await cancel_and_wait(running)
