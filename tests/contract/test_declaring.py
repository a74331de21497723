"""What happens when queues and exchanges are declared, declared again, and deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity, ChannelPreconditionFailed
from tests.contract.conftest import PATIENCE_S, Inbox, publish, ready, take

from inferfleet.local.services import Services

pytestmark = pytest.mark.matrix


async def test_a_passive_declaration_counts_what_waits_and_not_what_is_held(
    channel: AbstractChannel, queue: AbstractQueue
) -> None:
    await publish(channel, queue, *"abc")
    held = await take(queue)
    assert await ready(channel, queue) == 2
    await held.ack()


async def test_a_passive_declaration_of_an_unknown_queue_closes_the_channel_only(
    connection: AbstractConnection, channel: AbstractChannel, queue: AbstractQueue, name: str
) -> None:
    async with connection.channel() as other:
        with pytest.raises(ChannelNotFoundEntity):
            await other.declare_queue(f"{name}.unknown", passive=True)
    assert await ready(channel, queue) == 0


async def test_a_queue_can_be_declared_again_with_the_same_arguments_only(
    connection: AbstractConnection, priority_queue: AbstractQueue
) -> None:
    async with connection.channel() as same:
        await same.declare_queue(priority_queue.name, durable=True, arguments={"x-max-priority": 10})
    others: tuple[tuple[bool, dict[str, Any] | None], ...] = (
        (True, {"x-max-priority": 5}),
        (True, {"x-max-priority": 10, "x-max-length": 100}),
        (True, None),
        (False, {"x-max-priority": 10}),
    )
    for durable, arguments in others:
        async with connection.channel() as other:
            with pytest.raises(ChannelPreconditionFailed, match="inequivalent arg"):
                await other.declare_queue(priority_queue.name, durable=durable, arguments=arguments)


async def test_an_exchange_cannot_change_its_type(
    connection: AbstractConnection, channel: AbstractChannel, name: str
) -> None:
    await channel.declare_exchange(name, ExchangeType.DIRECT, durable=True)
    await channel.declare_exchange(name, ExchangeType.DIRECT, durable=True)
    async with connection.channel() as other:
        with pytest.raises(ChannelPreconditionFailed, match="inequivalent arg 'type'"):
            await other.declare_exchange(name, ExchangeType.FANOUT, durable=True)


async def test_an_unknown_exchange_cannot_be_bound_to(
    connection: AbstractConnection, queue: AbstractQueue, name: str
) -> None:
    async with connection.channel() as other:
        mine = await other.get_queue(queue.name)
        with pytest.raises(ChannelNotFoundEntity):
            await mine.bind(f"{name}.unknown", routing_key="x")


async def test_an_exclusive_queue_is_closed_to_others_and_goes_with_its_connection(
    contract_services: Services, connection: AbstractConnection, name: str
) -> None:
    owner = await aio_pika.connect(contract_services.amqp_url)
    await (await owner.channel()).declare_queue(name, exclusive=True)
    async with connection.channel() as other:
        with pytest.raises(ChannelClosed, match="RESOURCE_LOCKED"):
            await other.declare_queue(name, passive=True)
    await owner.close()
    await _until_gone(connection, name)


async def test_an_auto_delete_queue_goes_with_its_last_consumer(
    connection: AbstractConnection, channel: AbstractChannel, name: str
) -> None:
    queue = await channel.declare_queue(name, auto_delete=True)
    tags = [await queue.consume(Inbox()), await queue.consume(Inbox())]
    await queue.cancel(tags[0])
    await channel.declare_queue(name, passive=True)
    await queue.cancel(tags[1])
    await _until_gone(connection, name)


async def test_a_purge_and_a_deletion_say_how_much_they_removed(
    connection: AbstractConnection, channel: AbstractChannel, priority_queue: AbstractQueue
) -> None:
    await publish(channel, priority_queue, *"abc")
    assert (await priority_queue.purge()).message_count == 3
    await publish(channel, priority_queue, "d")
    async with connection.channel() as other:
        with pytest.raises(ChannelPreconditionFailed, match="not empty"):
            await (await other.get_queue(priority_queue.name)).delete(if_empty=True)
    assert (await priority_queue.delete(if_empty=False)).message_count == 1
    await _until_gone(connection, priority_queue.name)


async def _until_gone(connection: AbstractConnection, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with connection.channel() as channel:
                try:
                    await channel.declare_queue(name, passive=True)
                except ChannelNotFoundEntity:
                    return
            await asyncio.sleep(0.25)
