"""Publishes jobs that start later: RabbitMQ keeps each message until its time, whether or not we run.

There is a queue for each power of two of seconds. A message waits in those that are the bits of its delay,
the longest first, and RabbitMQ dead-letters it from one to the next, and at last into the jobs exchange,
where its pool is still the routing key. In front of each queue is an exchange of the same name, which looks
at one header of the message, and passes it either into the queue or on to the next exchange.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel

from inferfleet.schemas import names
from inferfleet.schemas.errors import ServiceRefusedError
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.rabbitmq.confirms import UnroutableError
from inferfleet.wire.rabbitmq.messages import OutgoingMessage
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.rabbitmq.topology import declaration_errors, declare_exchanges, type_arguments

LONGEST_S = sum(names.DELAYS_S)
"""The longest delay of a message. A worker that gets a job too early publishes it again."""

DECLARED_FOR_S = 60.0
"""How long a process relies on queues that it has declared: somebody may delete one between others."""


class DelayedPublishing:
    """Publishes jobs that start later for one process, and declares the queues in which they wait."""

    def __init__(self, confirm_channel: ConfirmChannel, settings: ServiceSettings) -> None:
        self._confirm_channel = confirm_channel
        self._settings = settings
        self._declared_at = -math.inf

    async def publish(self, message: OutgoingMessage, *, pool: str, due: float) -> bool:
        """Publish a job that comes into its pool's queue at ``due``, a reading of ``time.monotonic``.

        It comes up to a second earlier, during which a worker holds it; still earlier if ``due`` is more than
        ``LONGEST_S`` away; and later by as long as RabbitMQ is down in between.

        Returns the same as ``ConfirmChannel.publish_job``. Whether the pool has a queue is not checked.

        Raises:
            ConfigurationError: A queue or an exchange exists with other arguments.
            InferfleetError: What ``ConfirmChannel.publish_job`` raises.

        """
        delay_s = min(math.floor(due - time.monotonic()), LONGEST_S)
        if delay_s <= 0:
            return await self._confirm_channel.publish_job(message, pool=pool)
        if time.monotonic() - self._declared_at > DECLARED_FOR_S:
            await self._declare()
        properties = message.properties
        properties.headers = {**(properties.headers or {}), **delay_headers(delay_s)}
        first = names.delay_queue(self._settings.queue_type, 1 << delay_s.bit_length() - 1)
        publish = partial(self._confirm_channel.publish, first, message, routing_key=pool, mandatory=True)
        try:
            return await publish()
        except UnroutableError:
            await self._declare()
        except ServiceRefusedError:
            # Perhaps the exchange is gone: the next call declares it.
            self._declared_at = -math.inf
            raise
        return await publish()

    async def _declare(self) -> None:
        await self._confirm_channel.on_own_channel(partial(declare_delays, settings=self._settings))
        self._declared_at = time.monotonic()


def delay_headers(delay_s: int) -> dict[str, int]:
    """Return the headers of a message that waits for so many seconds."""
    return {names.delay_header(seconds): int(delay_s & seconds > 0) for seconds in names.DELAYS_S}


async def declare_delays(channel: AbstractChannel, settings: ServiceSettings) -> None:
    """Declare the queues in which jobs wait that start later, and their exchanges. Idempotent.

    Raises:
        ConfigurationError: One exists with other arguments.
        ServiceRefusedError: The broker refuses: a permission is missing, or there are too many queues.

    """
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    await declare_exchanges(channel)
    with declaration_errors():
        behind = await channel.get_exchange(names.JOBS_EXCHANGE, ensure=False)
        for seconds in names.DELAYS_S:
            name = names.delay_queue(settings.queue_type, seconds)
            exchange = await channel.declare_exchange(name, ExchangeType.HEADERS, durable=True)
            arguments = delay_arguments(
                seconds, to=behind.name, queue_type=settings.queue_type, version=version
            )
            queue = await channel.declare_queue(name, durable=True, arguments=arguments)
            await queue.bind(exchange, arguments={"x-match": "all", names.delay_header(seconds): 1})
            await behind.bind(exchange, arguments={"x-match": "all", names.delay_header(seconds): 0})
            behind = exchange


def delay_arguments(seconds: int, *, to: str, queue_type: QueueType, version: str) -> dict[str, Any]:
    """Return the arguments of a queue in which messages wait before they go to the exchange ``to``."""
    # Not at-least-once: messages that no queue takes would hold up those of all pools (decision 37).
    arguments = type_arguments(queue_type, version)
    return arguments | {"x-message-ttl": seconds * 1000, "x-dead-letter-exchange": to}
