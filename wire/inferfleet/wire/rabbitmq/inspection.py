"""Looks at a broker without changing anything: its version, our rights there, and its queues."""

from __future__ import annotations

import os
from contextlib import suppress

import aio_pika
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelLockedResource

from inferfleet.schemas import names
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.rabbitmq.confirms import UnroutableError
from inferfleet.wire.rabbitmq.connection import Connection
from inferfleet.wire.rabbitmq.errors import connection_errors
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel, Depth
from inferfleet.wire.rabbitmq.topology import declaration_errors, exclusive_arguments, queue_arguments


def broker_version(connection: Connection) -> str:
    """Return the broker's version, as it said at the login."""
    assert connection.transport is not None  # noqa: S101 - open_amqp gives out connections that are open
    return str(connection.transport.connection.server_properties.get("version", ""))


def broker_product(connection: Connection) -> str:
    """Return what the broker called itself at the login; RabbitMQ's is ``RabbitMQ``."""
    assert connection.transport is not None  # noqa: S101 - open_amqp gives out connections that are open
    return str(connection.transport.connection.server_properties.get("product", "an unknown broker"))


async def queue_depth(connection: Connection, queue: str, *, url: str) -> Depth | None:
    """Count the ready messages and the consumers of a queue; ``None`` if there is no such queue.

    A queue that is another connection's own does not say; it counts as empty. Raises the errors of
    ``connection_errors``.
    """
    with connection_errors(url):
        try:
            async with connection.channel(publisher_confirms=False) as channel:
                declared = (await channel.declare_queue(queue, passive=True)).declaration_result
        except ChannelLockedResource:
            return Depth(0, 0)
        except ChannelNotFoundEntity:
            return None
    return Depth(declared.message_count or 0, declared.consumer_count or 0)


async def check_queue_arguments(connection: Connection, pool: str, settings: ServiceSettings) -> None:
    """Declare the existing queue of a pool as a worker would, which changes nothing.

    Raises:
        ConfigurationError: The queue has other arguments; the message says which.
        ServiceRefusedError: The permission to configure it is missing.

    """
    arguments = queue_arguments(settings, broker_version=broker_version(connection))
    with connection_errors(settings.amqp_url), declaration_errors():
        async with connection.channel(publisher_confirms=False) as channel:
            await channel.declare_queue(names.job_queue(pool), durable=True, arguments=arguments)


async def check_rights(connection: Connection, channel: ConfirmChannel, *, url: str) -> None:
    """Try what a producer and a worker do, with a queue of our own and a message for nobody.

    Raises:
        ServiceRefusedError: A permission is missing; the message has the broker's own words.
        PublishUnconfirmedError: The broker does not confirm: it is out of memory or disk.

    """
    nobody = f"doctor-{os.urandom(8).hex()}"
    with connection_errors(url):
        async with connection.channel(publisher_confirms=False) as own:
            queue = await own.declare_queue(
                names.control_queue(nobody), exclusive=True, arguments=exclusive_arguments()
            )
            if await _exchange_exists(connection, names.CONTROL_EXCHANGE):
                await queue.bind(names.CONTROL_EXCHANGE)
            await queue.get(fail=False)
            await queue.delete()
        if not await _exchange_exists(connection, names.JOBS_EXCHANGE):
            return
    # A broker out of memory takes one message of a connection, and then reads no more.
    for _ in range(2):
        with suppress(UnroutableError):
            await channel.publish(
                names.JOBS_EXCHANGE, aio_pika.Message(b""), routing_key=nobody, mandatory=True
            )


async def _exchange_exists(connection: Connection, name: str) -> bool:
    try:
        async with connection.channel(publisher_confirms=False) as channel:
            await channel.get_exchange(name, ensure=True)
    except ChannelNotFoundEntity:
        return False
    return True
