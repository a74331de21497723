"""Reads how many jobs wait in the broker, by a passive declaration, which is answered at once."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import job_queue
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


@asynccontextmanager
async def queue_depth(amqp_url: str, pool: str) -> AsyncGenerator[Callable[[], Awaitable[int | None]]]:
    """Yield a function that reads the number of ready jobs in the pool's queue.

    The function returns ``None`` once the connection is lost, so that the demo continues without the number.

    Raises:
        ServiceUnreachableError: RabbitMQ cannot be reached.

    """
    async with open_amqp(amqp_url, timeout_s=CONNECT_TIMEOUT_S, name="inferfleet demo (view)") as connection:
        with connection_errors(amqp_url):
            channel = await (await connection.channel()).get_underlay_channel()

        async def ask() -> int | None:
            try:
                with connection_errors(amqp_url):
                    return (await channel.queue_declare(job_queue(pool), passive=True)).message_count
            except (ServiceUnreachableError, ServiceRefusedError) as error:
                logger.debug("cannot read the queue's length (%s)", error)
                return None

        yield ask
