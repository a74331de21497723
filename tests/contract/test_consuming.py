"""How messages reach consumers, and what acks do."""

from __future__ import annotations

import aiormq
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelPreconditionFailed, QueueEmpty
from tests.contract.conftest import PATIENCE_S, Inbox, publish, ready, take, take_bodies, until_ready

from inferfleet.local.services import Services

pytestmark = pytest.mark.matrix


async def test_a_consumer_holds_no_more_than_its_prefetch(
    channel: AbstractChannel, queue: AbstractQueue
) -> None:
    await publish(channel, queue, *"abcde")
    inbox = Inbox()
    await channel.set_qos(prefetch_count=2)
    await queue.consume(inbox)
    await inbox.wait_for(2)
    assert await ready(channel, queue) == 3
    await inbox.messages[0].ack()
    await inbox.wait_for(3)
    await inbox.messages[1].nack(requeue=False)
    await inbox.wait_for(4)
    assert inbox.bodies == list("abcd")
    assert await ready(channel, queue) == 1


async def test_consumers_with_credit_take_turns(channel: AbstractChannel, queue: AbstractQueue) -> None:
    inboxes = [Inbox(), Inbox()]
    await channel.set_qos(prefetch_count=4)
    for inbox in inboxes:
        await queue.consume(inbox)
    await publish(channel, queue, *"abcdefgh")
    for inbox in inboxes:
        await inbox.wait_for(4)
    assert sorted(inboxes[0].bodies + inboxes[1].bodies) == list("abcdefgh")


async def test_an_urgent_message_overtakes_what_no_consumer_has_taken_yet(
    channel: AbstractChannel, priority_queue: AbstractQueue
) -> None:
    await publish(channel, priority_queue, "running", "batch 1", "batch 2", priority=1)
    inbox = Inbox()
    await channel.set_qos(prefetch_count=1)
    await priority_queue.consume(inbox)
    await inbox.wait_for(1)
    await publish(channel, priority_queue, "urgent", priority=9)
    for count in (2, 3, 4):
        await inbox.messages[-1].ack()
        await inbox.wait_for(count)
    assert inbox.bodies == ["running", "urgent", "batch 1", "batch 2"]


async def test_after_a_cancel_nothing_new_comes_and_what_is_held_can_be_acked(
    channel: AbstractChannel, priority_queue: AbstractQueue
) -> None:
    await publish(channel, priority_queue, "done", "given back")
    inbox = Inbox()
    tag = await priority_queue.consume(inbox)
    await inbox.wait_for(2)
    await priority_queue.cancel(tag)
    await publish(channel, priority_queue, "new")
    await inbox.messages[0].ack()
    await inbox.messages[1].nack(requeue=True)
    await until_ready(channel, priority_queue, 2)
    assert len(inbox.messages) == 2
    assert await take_bodies(priority_queue) == ["given back", "new"]


async def test_a_multiple_ack_settles_everything_up_to_its_tag(
    connection: AbstractConnection, channel: AbstractChannel, queue: AbstractQueue
) -> None:
    await publish(channel, queue, *"abcd")
    inbox = Inbox()
    async with connection.channel() as worker:
        await (await worker.get_queue(queue.name)).consume(inbox)
        await inbox.wait_for(4)
        await inbox.messages[2].ack(multiple=True)
    await until_ready(channel, queue, 1)
    assert await take_bodies(queue) == ["d"]


async def test_an_ack_of_an_unknown_delivery_closes_the_channel_and_gives_the_rest_back(
    contract_services: Services, channel: AbstractChannel, queue: AbstractQueue
) -> None:
    await publish(channel, queue, "a", "b")
    connection = await aiormq.connect(contract_services.amqp_url)
    other = await connection.channel()
    first = await other.basic_get(queue.name)
    await other.basic_get(queue.name)
    assert first.delivery_tag is not None
    await other.basic_ack(first.delivery_tag)
    await other.basic_ack(first.delivery_tag)
    with pytest.raises(ChannelPreconditionFailed, match="unknown delivery tag"):
        await other.closing
    await until_ready(channel, queue, 1)
    assert await take_bodies(queue) == ["b"]
    await connection.close()


async def test_a_rejected_message_is_gone(channel: AbstractChannel, queue: AbstractQueue) -> None:
    await publish(channel, queue, "unwanted", "next")
    await (await take(queue)).reject(requeue=False)
    assert await take_bodies(queue) == ["next"]


async def test_an_empty_queue_gives_nothing(queue: AbstractQueue) -> None:
    with pytest.raises(QueueEmpty):
        await queue.get(timeout=PATIENCE_S)


async def test_a_consumer_without_acks_needs_none(channel: AbstractChannel, queue: AbstractQueue) -> None:
    await publish(channel, queue, *"abc")
    inbox = Inbox()
    await channel.set_qos(prefetch_count=1)
    tag = await queue.consume(inbox, no_ack=True)
    await inbox.wait_for(3)
    await queue.cancel(tag)
    assert await ready(channel, queue) == 0


async def test_aiormq_alone_publishes_and_consumes(contract_services: Services, name: str) -> None:
    connection = await aiormq.connect(contract_services.amqp_url)
    channel = await connection.channel()
    await channel.queue_declare(name, durable=True)
    await channel.basic_publish(b"x", routing_key=name, mandatory=True)
    got = await channel.basic_get(name)
    assert got.body == b"x"
    assert got.delivery_tag is not None
    await channel.basic_ack(got.delivery_tag)
    await connection.close()
