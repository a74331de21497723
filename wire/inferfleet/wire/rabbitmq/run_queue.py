"""The queue of the agents' runs that can go on: its messages, and consuming them.

A message only names a run, whose record in Redis says everything else. So it does no harm if there are
several messages of one run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import cast

import aio_pika
import aiormq.abc
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from pamqp.commands import Basic

from inferfleet.schemas import names
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors
from inferfleet.wire.rabbitmq.messages import OutgoingMessage
from inferfleet.wire.rabbitmq.topology import declaration_errors, queue_arguments

_BROKEN = (AMQPError, ChannelInvalidStateError, OSError)


def run_message(run_id: str, *, priority: int) -> OutgoingMessage:
    """Make the message of a run."""
    return OutgoingMessage(
        run_id.encode(),
        Basic.Properties(
            message_id=run_id,
            priority=priority,
            message_type=names.RUN_MESSAGE_TYPE,
            content_type="text/plain",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT.value,
        ),
    )


async def declare_run_queue(channel: AbstractChannel, queue: str, settings: ServiceSettings) -> AbstractQueue:
    """Declare the queue of runs. Idempotent. When this raises, the broker has closed the channel.

    Raises:
        ConfigurationError: The queue exists with other arguments.
        ServiceRefusedError: The broker refuses.

    """
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    # The limit is one of jobs: a run that can go on must never be refused.
    unlimited = settings.model_copy(update={"queue_max_length": None})
    with declaration_errors():
        return await channel.declare_queue(
            names.run_queue(queue), durable=True, arguments=queue_arguments(unlimited, broker_version=version)
        )


class RunDelivery:
    """A message that names a run. It is settled once; that does nothing if its connection is gone."""

    def __init__(self, message: AbstractIncomingMessage) -> None:
        self._message = message
        self.run_id = message.body.decode(errors="replace")

    async def ack(self) -> None:
        """Remove the message from the queue for good."""
        with suppress(*_BROKEN):
            await self._message.ack()

    async def requeue(self) -> None:
        """Give the message back to the queue."""
        with suppress(*_BROKEN):
            await self._message.reject(requeue=True)


class RunConsumer:
    """Deliveries of one connection, until that breaks or the queue is deleted."""

    def __init__(self, queue: AbstractQueue, channel: aiormq.abc.AbstractChannel) -> None:
        self._queue = queue
        self._arrived: asyncio.Queue[RunDelivery | None] = asyncio.Queue()
        self._tag: str | None = None
        cast("asyncio.Future[None]", channel.closing).add_done_callback(self._end)
        channel.on_consumer_cancel_callbacks.add(self._end)

    async def start(self) -> None:
        """Let the broker deliver."""
        self._tag = await self._queue.consume(self._take)

    async def next(self) -> RunDelivery | None:
        """Wait for a delivery; ``None`` if there are no more on this connection."""
        return await self._arrived.get()

    async def stop(self) -> None:
        """Let the broker deliver no more. What it has delivered stays with this consumer."""
        if self._tag is not None:
            with suppress(*_BROKEN):
                await self._queue.cancel(self._tag)

    def _end(self, _: object) -> None:
        self._arrived.put_nowait(None)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self._arrived.put_nowait(RunDelivery(message))


@asynccontextmanager
async def consuming_runs(
    settings: ServiceSettings, queue: str, *, prefetch: int, name: str
) -> AsyncGenerator[RunConsumer]:
    """Connect, declare the queue, and consume it with at most ``prefetch`` unsettled deliveries.

    Raises:
        ServiceUnreachableError: The broker does not answer, or refuses the login.
        ServiceRefusedError: The broker refuses a request.
        ConfigurationError: The queue exists with other arguments.

    """
    async with open_amqp(settings.amqp_url, timeout_s=settings.connect_timeout_s, name=name) as connection:
        with connection_errors(settings.amqp_url):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=prefetch)
            declared = await declare_run_queue(channel, queue, settings)
            consumer = RunConsumer(declared, await channel.get_underlay_channel())
            await consumer.start()
        yield consumer
