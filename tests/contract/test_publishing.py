"""What a publisher is told."""

from __future__ import annotations

from datetime import UTC, datetime

import aio_pika
import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from pamqp.commands import Basic
from tests.contract.conftest import publish, ready, take, take_bodies, until_ready

pytestmark = pytest.mark.matrix


async def test_a_publish_is_confirmed(channel: AbstractChannel, queue: AbstractQueue) -> None:
    confirmation = await channel.default_exchange.publish(aio_pika.Message(b"x"), queue.name, mandatory=True)
    assert isinstance(confirmation, Basic.Ack)


async def test_a_mandatory_message_for_nobody_is_returned(connection: AbstractConnection, name: str) -> None:
    async with connection.channel(on_return_raises=True) as channel:
        with pytest.raises(PublishError):
            await channel.default_exchange.publish(aio_pika.Message(b"x"), name, mandatory=True)


async def test_a_message_for_nobody_is_confirmed_and_lost_unless_it_is_mandatory(
    channel: AbstractChannel, name: str
) -> None:
    confirmation = await channel.default_exchange.publish(aio_pika.Message(b"x"), name, mandatory=False)
    assert isinstance(confirmation, Basic.Ack)


async def test_a_full_queue_nacks_the_confirm_until_there_is_room(
    channel: AbstractChannel, name: str
) -> None:
    queue = await channel.declare_queue(
        name,
        durable=True,
        arguments={"x-max-length": 2, "x-overflow": "reject-publish", "x-max-priority": 10},
    )
    await publish(channel, queue, "a", "b", priority=1)
    with pytest.raises(DeliveryError):
        await publish(channel, queue, "refused", priority=9)
    taken = await take(queue)
    await publish(channel, queue, "c", priority=1)
    await taken.ack()
    assert await take_bodies(queue) == ["b", "c"]


async def test_a_full_queue_without_reject_publish_drops_what_is_at_its_head(
    channel: AbstractChannel, name: str
) -> None:
    queue = await channel.declare_queue(name, durable=True, arguments={"x-max-length": 2})
    await publish(channel, queue, "a", "b", "c")
    assert await take_bodies(queue) == ["b", "c"]


async def test_a_publish_to_an_unknown_exchange_closes_the_channel_only(
    connection: AbstractConnection, channel: AbstractChannel, queue: AbstractQueue, name: str
) -> None:
    async with connection.channel() as other:
        unknown = await other.get_exchange(name, ensure=False)
        with pytest.raises(ChannelNotFoundEntity):
            await unknown.publish(aio_pika.Message(b"x"), "")
    assert await ready(channel, queue) == 0


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000])
async def test_a_body_of_any_size_arrives_whole(
    channel: AbstractChannel, queue: AbstractQueue, size: int
) -> None:
    body = bytes(position % 251 for position in range(size))
    await channel.default_exchange.publish(aio_pika.Message(body), queue.name)
    message = await take(queue)
    assert message.body == body
    await message.ack()


async def test_the_properties_of_a_message_arrive_as_they_were_sent(
    channel: AbstractChannel, queue: AbstractQueue
) -> None:
    sent = aio_pika.Message(
        b"{}",
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers={"traceparent": "00-abc-def-01", "attempt": 3, "nested": {"list": [1, "two"]}},
        message_id="0198",
        priority=7,
        reply_to="client-1",
        timestamp=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        type="inferfleet.job.v1",
    )
    await channel.default_exchange.publish(sent, queue.name)
    got = await take(queue)
    await got.ack()
    for property_name in (
        "content_type",
        "delivery_mode",
        "message_id",
        "priority",
        "reply_to",
        "timestamp",
        "type",
    ):
        assert getattr(got, property_name) == getattr(sent, property_name), property_name
    # A quorum queue adds how often it was delivered.
    assert {name: value for name, value in got.headers.items() if name != "x-delivery-count"} == sent.headers
    assert (got.exchange, got.routing_key) == ("", queue.name)


async def test_a_direct_exchange_goes_by_the_whole_routing_key(
    channel: AbstractChannel, queue: AbstractQueue, name: str
) -> None:
    exchange = await channel.declare_exchange(f"{name}.x", ExchangeType.DIRECT, durable=True)
    await queue.bind(exchange, routing_key="pool-a")
    await exchange.publish(aio_pika.Message(b"mine"), "pool-a", mandatory=True)
    await exchange.publish(aio_pika.Message(b"not mine"), "pool-b", mandatory=False)
    assert await take_bodies(queue) == ["mine"]
    await queue.unbind(exchange, routing_key="pool-a")
    returned = await exchange.publish(aio_pika.Message(b"x"), "pool-a", mandatory=True)
    assert not isinstance(returned, Basic.Ack)


async def test_a_fanout_exchange_reaches_every_queue_once(channel: AbstractChannel, name: str) -> None:
    exchange = await channel.declare_exchange(f"{name}.control", ExchangeType.FANOUT, durable=True)
    queues = [await channel.declare_queue(exclusive=True) for _ in range(3)]
    for each in queues:
        await each.bind(exchange)
        await each.bind(exchange, routing_key="another")
    await exchange.publish(aio_pika.Message(b"drain"), routing_key="ignored")
    for each in queues:
        await until_ready(channel, each, 1)
        assert await take_bodies(each) == ["drain"]
