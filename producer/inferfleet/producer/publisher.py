"""Publishing with confirms: a job is in the queue, or the caller knows that it is not.

One connection, opened on the first publish and opened again after it broke. It is used for publishing
only, because RabbitMQ blocks publishing connections when it runs out of memory or disk.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractExchange
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from inferfleet.schemas.control import Control
from inferfleet.schemas.errors import (
    PublishUnconfirmedError,
    QueueFullError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.job import Job
from inferfleet.schemas.names import CONTROL_EXCHANGE
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.amqp import declare_exchanges, declare_pool, job_message, open_amqp


@dataclass(frozen=True, slots=True)
class _Open:
    channel: AbstractChannel
    jobs: AbstractExchange
    control: AbstractExchange


class Publisher:
    """The way to RabbitMQ for one client. Safe for many tasks at once."""

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._open: _Open | None = None

    async def publish(self, job: Job) -> None:
        """Publish a job and wait until the broker has it.

        Raises:
            UnknownPoolError: No queue is bound for the pool.
            QueueFullError: The queue is at its limit.
            PublishUnconfirmedError: The connection broke, or the broker did not confirm in time.
            ServiceUnreachableError: There is no connection to be had.

        """
        message = job_message(job, reply_to=self._settings.client_id)
        try:
            # A repeat may publish the job twice. That does no harm: the fence lets one of them run.
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type((ServiceUnreachableError, PublishUnconfirmedError)),
                wait=wait_random_exponential(multiplier=0.1, max=2.0),
                stop=stop_after_delay(self._settings.patience_s),
                reraise=True,
            ):
                with attempt:
                    exchanges = await self._connected()
                    await self._confirmed(exchanges.jobs, message, routing_key=job.pool, mandatory=True)
        except PublishError as error:
            raise UnknownPoolError(
                f"no queue is bound for the pool {job.pool!r}: start a worker for it, "
                f"`inferfleet worker --pool {job.pool}`, or declare it, `inferfleet pool declare {job.pool}`"
            ) from error
        except DeliveryError as error:
            raise QueueFullError(
                f"the queue of pool {job.pool!r} is full (INFERFLEET_QUEUE_MAX_LENGTH); try again later"
            ) from error

    async def send(self, order: Control) -> None:
        """Send an order to every worker."""
        exchanges = await self._connected()
        await self._confirmed(exchanges.control, Message(order.model_dump_json().encode()), routing_key="")

    async def declare_pool(self, pool: str) -> None:
        """Make sure that the pool has its queues."""
        await declare_pool((await self._connected()).channel, pool, self._settings)

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        await self._stack.aclose()

    async def _confirmed(
        self, exchange: AbstractExchange, message: Message, *, routing_key: str, mandatory: bool = False
    ) -> None:
        try:
            await exchange.publish(
                message, routing_key, mandatory=mandatory, timeout=self._settings.publish_timeout_s
            )
        except DeliveryError:
            raise
        except TimeoutError as error:
            raise PublishUnconfirmedError(
                f"RabbitMQ did not confirm job {message.message_id} within "
                f"{self._settings.publish_timeout_s:g} s (INFERFLEET_PUBLISH_TIMEOUT_S): "
                "it may be queued or not. A broker that is out of memory or disk blocks publishers; look at its alarms"
            ) from error
        except (AMQPError, ChannelInvalidStateError, ConnectionError) as error:
            raise PublishUnconfirmedError(
                f"the connection to RabbitMQ broke before it confirmed job {message.message_id}: "
                "it may be queued or not. Submitting again with the same idempotency key is safe"
            ) from error

    async def _connected(self) -> _Open:
        if self._open is not None and not self._open.channel.is_closed:
            return self._open
        async with self._opening:
            if self._open is not None and not self._open.channel.is_closed:
                return self._open
            await self._stack.aclose()
            connection = await self._stack.enter_async_context(
                open_amqp(
                    self._settings.amqp_url,
                    timeout_s=self._settings.connect_timeout_s,
                    name=f"{self._settings.client_id} (publish)",
                )
            )
            channel = await connection.channel(on_return_raises=True)
            self._open = _Open(
                channel=channel,
                jobs=await declare_exchanges(channel),
                control=await channel.get_exchange(CONTROL_EXCHANGE, ensure=False),
            )
            return self._open
