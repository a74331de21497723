"""Declares the exchanges and queues that ``schemas.names`` names."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import aio_pika
import aiormq.abc
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from inferfleet.schemas import names
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.settings import QueueType, ServiceSettings, WorkerSettings
from inferfleet.wire.rabbitmq.errors import refused

logger = logging.getLogger(__name__)

WARM_QUEUE_IDLE_S = 60.0
"""How long the queue of a worker's warm turns outlives its consumer. Turns leave it much earlier."""


async def declare_exchanges(channel: AbstractChannel) -> None:
    """Declare the three exchanges.

    Raises:
        ConfigurationError: An exchange exists with another type.

    """
    with declaration_errors():
        for name, kind in (
            (names.JOBS_EXCHANGE, aio_pika.ExchangeType.DIRECT),
            (names.DEAD_EXCHANGE, aio_pika.ExchangeType.DIRECT),
            (names.CONTROL_EXCHANGE, aio_pika.ExchangeType.FANOUT),
        ):
            await channel.declare_exchange(name, kind, durable=True)


async def declare_pool(channel: AbstractChannel, pool: str, settings: ServiceSettings) -> AbstractQueue:
    """Declare a pool's queue and its dead-letter queue, and bind both. Idempotent.

    When this raises, the broker has closed the channel.

    Raises:
        ConfigurationError: A queue or an exchange exists with other arguments.
        ServiceRefusedError: The broker refuses: a permission is missing, or there are too many queues.

    """
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    await declare_exchanges(channel)
    with declaration_errors():
        queue = await channel.declare_queue(
            names.job_queue(pool), durable=True, arguments=queue_arguments(settings, broker_version=version)
        )
        await queue.bind(names.JOBS_EXCHANGE, routing_key=pool)
        await _declare_dead_queue(connection, pool, settings.queue_type, version)
    return queue


async def declare_warm_queue(channel: AbstractChannel, settings: WorkerSettings) -> AbstractQueue:
    """Declare a worker's queue of warm turns, and bind it. Idempotent.

    RabbitMQ moves a turn to the pool's queue if it has lain here for half of ``warm_wait_s``; the worker may
    hold it for the other half. The queue holds no more turns than the worker takes. One that the same worker
    declared with other settings is deleted, once it is empty. No other process may have the worker's id.

    Raises:
        ConfigurationError: The queue exists with other arguments, and is not empty yet.
        ServiceRefusedError: The broker refuses: a permission is missing, or there are too many queues.

    """
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    arguments = type_arguments(settings.queue_type, version) | {
        "x-message-ttl": _milliseconds(settings.warm_wait_s / 2),
        "x-expires": _milliseconds(max(WARM_QUEUE_IDLE_S, 2 * settings.warm_wait_s)),
        "x-max-length": settings.max_running + settings.look_ahead,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": names.JOBS_EXCHANGE,
        "x-dead-letter-routing-key": settings.pool,
    }
    name = names.warm_queue(settings.pool, settings.worker_id)
    key = names.warm_turns(settings.pool, settings.worker_id)
    try:
        # On a separate channel, because the broker closes it if the arguments differ.
        attempt = await connection.channel()
        await attempt.queue_declare(name, durable=True, arguments=arguments)
        await attempt.close()
    except ChannelPreconditionFailed as error:
        if _DIFFERENCE.search(str(error)):
            # Unless it has expired by now.
            with suppress(ChannelNotFoundEntity):
                await _delete_former(connection, name, key)
    with declaration_errors():
        queue = await channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind(names.JOBS_EXCHANGE, routing_key=key)
    return queue


async def _delete_former(connection: aiormq.abc.AbstractConnection, name: str, key: str) -> None:
    """Delete the queue of this worker's last run, unless turns are still in it. RabbitMQ moves those."""
    channel = await connection.channel()
    await channel.queue_unbind(name, names.JOBS_EXCHANGE, routing_key=key)
    # A quorum queue does not support deletion on condition.
    queue = await channel.queue_declare(name, passive=True)
    if queue.message_count or queue.consumer_count:
        raise ConfigurationError(
            f"the queue {name} has {count_of(queue.message_count or 0, 'turn')} of this worker's last run, "
            "which had another INFERFLEET_MAX_RUNNING, INFERFLEET_LOOK_AHEAD, INFERFLEET_WARM_WAIT_S or "
            "INFERFLEET_QUEUE_TYPE. Wait a minute, or half of the former INFERFLEET_WARM_WAIT_S if that is "
            "longer, until RabbitMQ has moved them to the pool's queue, and start it again, or choose "
            "another --worker-id"
        )
    await channel.queue_delete(name)
    await channel.close()


def _milliseconds(seconds: float) -> int:
    """Convert a time to RabbitMQ's unit, within its limits."""
    return max(1, min(int(seconds * 1000), 2**32 - 1))


async def declare_dead_letters(channel: AbstractChannel, pool: str, settings: ServiceSettings) -> None:
    """Declare a pool's dead-letter queue, and bind it, as ``declare_pool`` does."""
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    await declare_exchanges(channel)
    with declaration_errors():
        await _declare_dead_queue(connection, pool, settings.queue_type, version)


async def _declare_dead_queue(
    connection: aiormq.abc.AbstractConnection, pool: str, queue_type: QueueType, version: str
) -> None:
    """Declare the dead-letter queue of a pool. Accept an existing classic queue."""
    name, arguments = names.dead_queue(pool), type_arguments(queue_type, version)
    channel = await connection.channel()
    try:
        await channel.queue_declare(name, durable=True, arguments=arguments)
    except ChannelNotFoundEntity as error:
        if not is_away(error):
            raise
        # Dead letters wait, unacked, until that node is back. Jobs need not.
        _warn(f"the dead-letter queue {name} is on a node that is down ({error})")
        return
    except ChannelPreconditionFailed as error:
        differs = _DIFFERENCE.search(str(error))
        if queue_type is QueueType.CLASSIC or differs is None or differs["argument"] != "x-queue-type":
            raise
        # Pools with quorum queues at first had classic queues for their dead letters.
        channel = await connection.channel()
        await channel.queue_declare(name, durable=True, arguments=type_arguments(QueueType.CLASSIC, version))
    await channel.queue_bind(name, names.DEAD_EXCHANGE, routing_key=pool)
    await channel.close()


def queue_arguments(settings: ServiceSettings, *, broker_version: str) -> dict[str, Any]:
    """Return the arguments of a pool's queue for a broker of this version."""
    arguments = type_arguments(settings.queue_type, broker_version)
    if settings.queue_type is QueueType.CLASSIC:
        # A quorum queue refuses the argument. It has two priorities in RabbitMQ 4.0 to 4.2, ten from 4.3 on.
        arguments["x-max-priority"] = names.PRIORITY_LEVELS
    if settings.queue_max_length is not None:
        arguments |= {"x-max-length": settings.queue_max_length, "x-overflow": "reject-publish"}
    return arguments


def type_arguments(queue_type: QueueType, broker_version: str) -> dict[str, Any]:
    """Return the arguments that give a queue this type, wherever it is declared.

    The type is always explicit, because otherwise the default of the virtual host or of the node applies. The
    fleet counts attempts itself, so a quorum queue must not drop a job by its own count: from RabbitMQ 4 on
    its limit is 20 returns unless it is -1. RabbitMQ 3 has no limit, and reads -1 as no return at all.
    """
    arguments: dict[str, Any] = {"x-queue-type": queue_type.value}
    major, _, _ = broker_version.partition(".")
    if queue_type is QueueType.QUORUM and major.isdecimal() and int(major) >= 4:
        arguments["x-delivery-limit"] = -1
    return arguments


def is_away(error: ChannelNotFoundEntity) -> bool:
    """Return whether a queue exists, on a node that is down. A classic queue has no other."""
    return "is down or inaccessible" in str(error)


@cache
def _warn(problem: str) -> None:
    logger.warning("%s", problem)


_DIFFERENCE = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>queue|exchange) '(?P<name>[^']*)'"
)


@contextmanager
def declaration_errors() -> Generator[None]:
    """Translate errors: name the queue or exchange, its different argument, and the setting of that."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        differs = _DIFFERENCE.search(str(error))
        if differs is None:
            raise refused("RabbitMQ refuses to declare a queue", error) from error
        argument, kind, name = differs["argument"], differs["kind"], differs["name"]
        setting = _SETTING_OF.get(argument)
        remedies = [f"set {setting} as it was"] if setting else []
        remedies.append(
            f"delete the {kind}{' once it is empty' if kind == 'queue' else ''}, so that it is made anew"
        )
        raise ConfigurationError(
            f"the {kind} {name} exists with other arguments than ours, {argument} (RabbitMQ says: {error}): "
            f"{', or '.join(remedies)}"
        ) from error


_SETTING_OF = {
    "x-queue-type": "INFERFLEET_QUEUE_TYPE",
    "x-max-priority": "INFERFLEET_QUEUE_TYPE",
    "x-max-length": "INFERFLEET_QUEUE_MAX_LENGTH",
    "x-overflow": "INFERFLEET_QUEUE_MAX_LENGTH",
}
"""The settings that determine a queue's arguments."""


def exclusive_arguments() -> dict[str, Any]:
    """Return the arguments of an exclusive queue, which can only be classic."""
    return {"x-queue-type": QueueType.CLASSIC.value}
