"""In which order a queue gives out its messages."""

from __future__ import annotations

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractQueue
from tests.contract.conftest import Inbox, publish, take, take_bodies, until_ready

from inferfleet.local.services import Services

pytestmark = pytest.mark.matrix


async def test_higher_priorities_come_first_and_equal_ones_in_order_of_publishing(
    channel: AbstractChannel, priority_queue: AbstractQueue
) -> None:
    await publish(channel, priority_queue, "batch 1", "batch 2", priority=1)
    await publish(channel, priority_queue, "urgent 1", "urgent 2", priority=9)
    await publish(channel, priority_queue, "normal", priority=4)
    assert await take_bodies(priority_queue) == ["urgent 1", "urgent 2", "normal", "batch 1", "batch 2"]


async def test_no_priority_is_the_lowest_and_one_above_the_maximum_counts_as_the_maximum(
    channel: AbstractChannel, priority_queue: AbstractQueue
) -> None:
    await publish(channel, priority_queue, "none")
    await publish(channel, priority_queue, "ten", priority=10)
    await publish(channel, priority_queue, "two hundred", priority=200)
    await publish(channel, priority_queue, "nine", priority=9)
    assert await take_bodies(priority_queue) == ["ten", "two hundred", "nine", "none"]


async def test_without_x_max_priority_the_order_is_that_of_publishing(
    channel: AbstractChannel, name: str
) -> None:
    queue = await channel.declare_queue(name, durable=True)
    await publish(channel, queue, "first", priority=1)
    await publish(channel, queue, "second", priority=9)
    assert await take_bodies(queue) == ["first", "second"]


async def test_a_requeued_message_keeps_its_priority_and_its_place(
    channel: AbstractChannel, priority_queue: AbstractQueue
) -> None:
    await publish(channel, priority_queue, "a", "b", priority=5)
    await publish(channel, priority_queue, "low", priority=1)
    first = await take(priority_queue)
    assert not first.redelivered
    await first.nack(requeue=True)
    await until_ready(channel, priority_queue, 3)
    again = await take(priority_queue)
    assert (again.body, again.redelivered, again.priority) == (b"a", True, 5)
    await again.reject(requeue=True)
    await until_ready(channel, priority_queue, 3)
    assert await take_bodies(priority_queue) == ["a", "b", "low"]


async def test_what_a_lost_connection_had_comes_back_first_and_marked_as_redelivered(
    contract_services: Services, channel: AbstractChannel, queue: AbstractQueue
) -> None:
    await publish(channel, queue, "held", "waiting", priority=5)
    inbox = Inbox()
    other = await aio_pika.connect(contract_services.amqp_url)
    other_channel = await other.channel()
    await other_channel.set_qos(prefetch_count=1)
    await (await other_channel.get_queue(queue.name)).consume(inbox)
    await inbox.wait_for(1)
    await other.close()
    await until_ready(channel, queue, 2)
    back = await take(queue)
    assert (back.body, back.redelivered) == (b"held", True)
    assert await take_bodies(queue) == ["waiting"]
