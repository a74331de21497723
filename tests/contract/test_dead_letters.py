"""What becomes of messages that are rejected or too old."""

from __future__ import annotations

from typing import Any

import aio_pika
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractQueue
from tests.contract.conftest import Inbox, publish, ready, take


async def test_a_delay_queue_gives_messages_back_with_their_key_and_priority(
    channel: AbstractChannel, queue: AbstractQueue, name: str
) -> None:
    """The way a retry goes round: a fanout exchange keeps the routing key for the way back."""
    jobs = await channel.declare_exchange(f"{name}.jobs", ExchangeType.DIRECT, durable=True)
    await queue.bind(jobs, routing_key="pool-a")
    retry = await channel.declare_exchange(f"{name}.retry", ExchangeType.FANOUT, durable=True)
    delay = await channel.declare_queue(
        f"{name}.retry",
        durable=True,
        arguments={"x-message-ttl": 50, "x-dead-letter-exchange": jobs.name, "x-expires": 60_000},
    )
    await delay.bind(retry)
    inbox = Inbox()
    await queue.consume(inbox)
    message = aio_pika.Message(b"job", priority=7, message_id="id-1", headers={"attempt": 2}, expiration=30)
    await retry.publish(message, routing_key="pool-a")
    (back,) = await inbox.wait_for(1)
    await back.ack()
    assert (back.body, back.priority, back.message_id) == (b"job", 7, "id-1")
    assert (back.exchange, back.routing_key) == (jobs.name, "pool-a")
    assert back.headers["attempt"] == 2
    assert back.expiration is None
    assert not back.redelivered
    death = _deaths(back)[0]
    assert (death["count"], death["reason"], death["queue"]) == (1, "expired", delay.name)


async def test_a_rejected_message_goes_to_the_dead_letter_exchange(
    channel: AbstractChannel, name: str
) -> None:
    dead = await channel.declare_queue(f"{name}.dead", durable=True)
    queue = await channel.declare_queue(
        name,
        durable=True,
        arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name},
    )
    await publish(channel, queue, "bad", headers={"traceparent": "00-1"})
    inbox = Inbox()
    await dead.consume(inbox)
    await (await take(queue)).reject(requeue=False)
    (letter,) = await inbox.wait_for(1)
    await letter.ack()
    assert letter.body == b"bad"
    assert letter.headers["traceparent"] == "00-1"
    death = _deaths(letter)[0]
    assert (death["reason"], death["queue"], death["routing-keys"]) == ("rejected", name, [name])


async def test_a_message_expires_only_at_the_head_of_its_queue(
    channel: AbstractChannel, queue: AbstractQueue, name: str
) -> None:
    await publish(channel, queue, "stays", priority=9)
    await publish(channel, queue, "too old, but behind", priority=1, expiration=0.02)
    await _let_a_message_expire(channel, name)
    assert await ready(channel, queue) == 2
    await (await take(queue)).ack()
    # Now the other one is at the head, and goes.
    assert await queue.get(fail=False) is None


async def test_a_message_with_no_time_to_live_still_reaches_a_consumer_that_waits(
    channel: AbstractChannel, name: str
) -> None:
    queue = await channel.declare_queue(name, durable=True, arguments={"x-message-ttl": 0})
    await publish(channel, queue, "nobody waits")
    assert await queue.get(fail=False) is None
    inbox = Inbox()
    await queue.consume(inbox)
    await publish(channel, queue, "somebody waits")
    await inbox.wait_for(1)
    assert inbox.bodies == ["somebody waits"]


async def test_a_dead_letter_that_goes_in_circles_is_dropped(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(
        name,
        durable=True,
        arguments={
            "x-message-ttl": 10,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": name,
        },
    )
    await publish(channel, queue, "a")
    await _let_a_message_expire(channel, name)
    assert await ready(channel, queue) == 0


async def _let_a_message_expire(channel: AbstractChannel, name: str) -> None:
    """Wait until a message of 200 ms is dead: anything published before with much less must be, too."""
    witness = await channel.declare_queue(f"{name}.witness", durable=True)
    short = await channel.declare_queue(
        f"{name}.short",
        durable=True,
        arguments={
            "x-message-ttl": 200,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": witness.name,
        },
    )
    inbox = Inbox()
    await witness.consume(inbox)
    await publish(channel, short, "witness")
    await (await inbox.wait_for(1))[0].ack()


def _deaths(message: Any) -> list[dict[str, Any]]:
    deaths: list[dict[str, Any]] = message.headers["x-death"]
    return deaths
