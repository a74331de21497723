"""How many messages a worker's session holds, with a broker that counts prefetch for each consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.integration.conftest import PATIENCE_S, ForeignClient

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.broker import Delivery, Subscription, subscribe


class Desk:
    """Takes deliveries and keeps them."""

    def __init__(self) -> None:
        self.taken: list[Delivery] = []
        self._news = asyncio.Condition()

    def take(self, delivery: Delivery) -> None:
        self.taken.append(delivery)

    async def until_taken(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.taken) < count:
                await asyncio.sleep(0.005)


def ignore(order: bytes) -> None:
    """Orders are for workers."""


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def session(
    services: Services, foreign: ForeignClient, fleet: Fleet, pool: str, desk: Desk
) -> AsyncIterator[Subscription]:
    """A session on a queue with 100 messages."""
    for _ in range(100):
        await foreign.publish(b"{}")
    settings = WorkerSettings(amqp_url=services.amqp_url, redis_url=services.redis_url, pool=pool)
    async with subscribe(settings, on_delivery=desk.take, on_control=ignore) as session:
        yield session


async def test_a_session_holds_up_to_its_limit(
    session: Subscription, desk: Desk, foreign: ForeignClient
) -> None:
    await session.prefetch(10)
    await desk.until_taken(10)
    assert (session.held, await foreign.waiting()) == (10, 90)
    for delivery in desk.taken[:4]:
        delivery.ack()
    await desk.until_taken(14)
    assert (session.held, await foreign.waiting()) == (10, 86)


async def test_a_lower_limit_lets_the_surplus_run_out(
    session: Subscription, desk: Desk, foreign: ForeignClient
) -> None:
    await session.prefetch(10)
    await desk.until_taken(10)
    await session.prefetch(4)
    for delivery in desk.taken[:5]:
        delivery.ack()
    session.acknowledger.flush()
    await session.prefetch(4)
    assert (session.held, len(desk.taken)) == (5, 10)
    for delivery in desk.taken[5:9]:
        delivery.ack()
    session.acknowledger.flush()
    await session.prefetch(4)
    await desk.until_taken(13)
    assert (session.held, await foreign.waiting()) == (4, 87)


async def test_a_higher_limit_is_reached_again_after_everything_older_is_settled(
    session: Subscription, desk: Desk
) -> None:
    """Otherwise a worker that was overloaded once would stay half empty for ever."""
    await session.prefetch(10)
    await desk.until_taken(10)
    await session.prefetch(8)
    await session.prefetch(10)
    for taken in (10, 20, 30):
        for delivery in desk.taken[taken - 10 : taken]:
            delivery.ack()
        session.acknowledger.flush()
        await session.prefetch(10)
        await desk.until_taken(taken + 10)
        assert session.held == 10


async def test_a_message_that_is_given_back_is_given_out_again_and_settled_once(
    session: Subscription, desk: Desk, foreign: ForeignClient
) -> None:
    await session.prefetch(3)
    await desk.until_taken(3)
    first, second, third = desk.taken
    await first.requeue()
    await desk.until_taken(4)
    second.ack()
    await second.requeue()
    first.ack()
    await first.requeue()
    third.ack()
    third.ack()
    await desk.until_taken(6)
    assert session.held == 3
    assert await foreign.waiting() == 95


async def test_a_session_ends_when_its_queue_is_deleted(
    session: Subscription, desk: Desk, foreign: ForeignClient
) -> None:
    await session.prefetch(3)
    ending = asyncio.create_task(session.wait_closed())
    await desk.until_taken(3)
    assert not ending.done()
    await foreign.channel.queue_delete(f"inferfleet.jobs.{foreign.pool}")
    await asyncio.wait_for(ending, PATIENCE_S)


async def test_a_worker_without_jobs_is_one_consumer_again(
    session: Subscription, desk: Desk, foreign: ForeignClient, pool: str
) -> None:
    """Whoever counts the consumers of a queue wants to know how many workers there are."""

    async def consumers() -> int:
        return (await foreign.channel.queue_declare(job_queue(pool), passive=True)).consumer_count or 0

    await session.prefetch(4)
    await session.prefetch(10)
    await desk.until_taken(10)
    assert await consumers() == 2
    await session.prefetch(10)
    assert await consumers() == 2
    await foreign.channel.queue_purge(job_queue(pool))
    for delivery in desk.taken:
        delivery.ack()
    session.acknowledger.flush()
    await session.prefetch(10)
    assert await consumers() == 1
    for _ in range(20):
        await foreign.publish(b"{}")
    await desk.until_taken(20)
    assert session.held == 10
