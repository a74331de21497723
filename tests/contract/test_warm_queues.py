"""The queues of workers' warm turns, on each broker: RabbitMQ itself moves what a worker does not take."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity
from tests.contract.conftest import PATIENCE_S, Inbox, publish, ready, take, until_ready

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.schemas import names
from inferfleet.schemas.errors import ConfigurationError, PublishUnconfirmedError
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq import topology
from inferfleet.wire.rabbitmq.confirms import NackedError, UnroutableError
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.rabbitmq.topology import declare_pool, declare_warm_queue

pytestmark = pytest.mark.matrix

LONG_S = 3600.0


def settings_of(pool: str, **changes: Any) -> WorkerSettings:
    return WorkerSettings(pool=pool, worker_id="w", **{"warm_wait_s": LONG_S, "look_ahead": 0} | changes)


@pytest.fixture
def pool() -> str:
    return f"contract-{uuid4().hex[:8]}"


TakesTurn = Callable[[str], Awaitable[bool]]


@asynccontextmanager
async def publishing(url: str, name: str) -> AsyncGenerator[ConfirmChannel]:
    publisher = ConfirmChannel(url, connect_timeout_s=PATIENCE_S, confirm_timeout_s=PATIENCE_S, name=name)
    yield publisher
    await publisher.aclose()


@pytest.fixture
async def takes_turn(contract_services: Services, pool: str) -> AsyncIterator[TakesTurn]:
    """Publishes a turn for a worker, and says whether its queue has taken it.

    On a connection of its own: if a quorum queue expires at this moment, RabbitMQ 3.10 closes that with
    INTERNAL_ERROR.
    """
    async with publishing(contract_services.amqp_url, pool) as publisher:

        async def takes_turn(worker_id: str) -> bool:
            key = names.warm_turns(pool, worker_id)
            try:
                # A passive declaration would count as use of the queue.
                await publisher.publish(
                    names.JOBS_EXCHANGE, aio_pika.Message(b"turn"), routing_key=key, mandatory=True
                )
            except (UnroutableError, NackedError):
                return False
            except PublishUnconfirmedError as error:
                if not isinstance(error.__cause__, UnroutableError):
                    raise
                return False
            return True

        yield takes_turn


@pytest.fixture
async def jobs(channel: AbstractChannel, pool: str) -> AbstractQueue:
    return await declare_pool(channel, pool, settings_of(pool))


async def test_a_turn_that_nobody_takes_comes_into_the_pools_queue_as_it_was(
    channel: AbstractChannel, jobs: AbstractQueue, pool: str
) -> None:
    warm = await declare_warm_queue(channel, settings_of(pool, warm_wait_s=0.1))
    await publish(channel, warm, "turn", priority=7, headers={"own": "header"}, message_id="id", reply_to="r")
    message = await take_when_ready(channel, jobs)
    assert (message.body, message.priority, message.message_id, message.reply_to) == (b"turn", 7, "id", "r")
    assert message.headers["own"] == "header"


@pytest.mark.parametrize("requeue", [False, True])
async def test_a_turn_that_its_worker_holds_stays_until_it_is_given_back(
    channel: AbstractChannel, jobs: AbstractQueue, pool: str, *, requeue: bool
) -> None:
    warm = await declare_warm_queue(channel, settings_of(pool, warm_wait_s=LONG_S if not requeue else 0.4))
    # Before it can expire.
    inbox = Inbox()
    tag = await warm.consume(inbox)
    await publish(channel, warm, "held")
    (held,) = await inbox.wait_for(1)
    await warm.cancel(tag)
    if requeue:
        # Another that was there no shorter has expired by the time.
        await publish(channel, warm, "expires")
        assert (await take_when_ready(channel, jobs)).body == b"expires"
    await held.nack(requeue=requeue)
    assert (await take_when_ready(channel, jobs)).body == b"held"


async def test_a_turn_whose_queue_vanishes_with_the_connection_comes_into_the_pools_queue(
    contract_services: Services, channel: AbstractChannel, jobs: AbstractQueue, pool: str
) -> None:
    warm = await declare_warm_queue(channel, settings_of(pool))
    async with Proxy(contract_services.amqp_url) as link, publishing(link.url, pool) as publisher:
        link.hold_answers_to(b"moved")
        message = aio_pika.Message(b"moved")
        sending = asyncio.create_task(
            publisher.publish_job(message, pool=pool, warm=names.warm_turns(pool, "w"))
        )
        await link.until_held(Direction.TO_CLIENT)
        await warm.delete(if_unused=False, if_empty=False)
        link.reset()
        link.heal()
        # It may be queued twice, as far as the publisher knows.
        assert await asyncio.wait_for(sending, PATIENCE_S)
    assert (await take_when_ready(channel, jobs)).body == b"moved"


async def test_a_queue_takes_no_more_turns_than_its_worker(
    channel: AbstractChannel, jobs: AbstractQueue, pool: str, takes_turn: TakesTurn
) -> None:
    warm = await declare_warm_queue(channel, settings_of(pool, max_running=2))
    accepted = 0
    while await takes_turn("w"):
        accepted += 1
    # A quorum queue takes one more.
    assert accepted in {2, 3}
    assert (await ready(channel, warm), await ready(channel, jobs)) == (accepted, 0)


async def test_a_queue_vanishes_when_its_worker_has_gone_for_long(
    connection: AbstractConnection,
    channel: AbstractChannel,
    pool: str,
    takes_turn: TakesTurn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "WARM_QUEUE_IDLE_S", 1.0)
    settings = settings_of(pool, warm_wait_s=0.1)
    await declare_pool(channel, pool, settings)
    warm, tag = await consumed(connection, settings)
    await declare_warm_queue(channel, settings.model_copy(update={"worker_id": "other"}))
    async with asyncio.timeout(PATIENCE_S):
        while await takes_turn("other"):
            await asyncio.sleep(0.05)
    assert await takes_turn("w")
    await warm.cancel(tag)
    async with asyncio.timeout(PATIENCE_S):
        while await takes_turn("w"):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("changed", [{"max_running": 3}, {"look_ahead": 3}, {"warm_wait_s": 1.0}])
async def test_a_worker_with_other_settings_replaces_its_queue(
    channel: AbstractChannel, jobs: AbstractQueue, pool: str, takes_turn: TakesTurn, changed: dict[str, Any]
) -> None:
    await declare_warm_queue(channel, settings_of(pool))
    warm = await declare_warm_queue(channel, settings_of(pool, **changed))
    assert await takes_turn("w")
    assert await ready(channel, warm) == 1


async def test_a_queue_of_other_settings_stays_until_its_turns_are_moved(
    channel: AbstractChannel, jobs: AbstractQueue, pool: str
) -> None:
    former = await declare_warm_queue(channel, settings_of(pool, warm_wait_s=0.4))
    await publish(channel, former, "turn")
    changed = settings_of(pool, warm_wait_s=0.4, max_running=3)
    with suppress(ConfigurationError):
        await declare_warm_queue(channel, changed)
    assert (await take_when_ready(channel, jobs)).body == b"turn"
    await declare_warm_queue(channel, changed)


async def test_a_queue_that_has_turns_of_other_settings_names_them(
    channel: AbstractChannel, jobs: AbstractQueue, pool: str, takes_turn: TakesTurn
) -> None:
    former = await declare_warm_queue(channel, settings_of(pool))
    await publish(channel, former, "turn")
    with pytest.raises(ConfigurationError, match=r"has 1 turn .* INFERFLEET_MAX_RUNNING.* Wait a minute"):
        await declare_warm_queue(channel, settings_of(pool, max_running=3))
    assert await ready(channel, former) == 1
    # So that no more turns come into it.
    assert not await takes_turn("w")


def test_one_expression_matches_the_queues_of_one_pool() -> None:
    pools = ["a", "a.b", "a-b", "ab", "a.b.c"]
    for pool in pools:
        own = [names.job_queue(pool), names.warm_queue(pool, "w"), names.warm_queue(pool, "b.c")]
        others = [
            name
            for other in pools
            if other != pool
            for name in (names.job_queue(other), names.warm_queue(other, "w"))
        ]
        matches = re.compile(names.job_queues(pool)).search
        assert all(map(matches, own))
        assert not any(map(matches, [*others, names.dead_queue(pool), names.control_queue(pool)]))


async def take_when_ready(channel: AbstractChannel, queue: AbstractQueue) -> Any:
    await until_ready(channel, queue, 1)
    message = await take(queue)
    await message.ack()
    return message


async def consumed(connection: AbstractConnection, settings: WorkerSettings) -> tuple[AbstractQueue, str]:
    """Declare a queue and consume from it; once more if it has vanished in between."""
    while True:
        channel = await connection.channel()
        warm = await declare_warm_queue(channel, settings)
        with suppress(ChannelNotFoundEntity):
            return warm, await warm.consume(Inbox(), no_ack=True)
