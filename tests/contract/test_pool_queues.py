"""The queues of a pool, on each broker: what they keep, in which order, and whom they fit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika import DeliveryMode
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from tests.contract.conftest import PATIENCE_S, publish, take, take_bodies, until_ready
from tests.matrix import Cell

from inferfleet.local.services import Services, ServicesChoice
from inferfleet.schemas import names
from inferfleet.schemas.errors import ConfigurationError, ServiceRefusedError
from inferfleet.schemas.job import Job
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.rabbitmq.connection import Connection, open_amqp
from inferfleet.wire.rabbitmq.delays import DelayedPublishing
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.rabbitmq.topology import declare_pool, queue_arguments

pytestmark = pytest.mark.matrix

RETURNS = 25
"""More than RabbitMQ 4 lets a quorum queue return a message, if nothing is said."""


@pytest.fixture
async def connection(contract_services: Services) -> AsyncIterator[Connection]:
    async with open_amqp(contract_services.amqp_url, timeout_s=PATIENCE_S, name="pool queues") as connection:
        yield connection


@pytest.fixture
def pool() -> str:
    return f"contract-{uuid4().hex[:8]}"


@pytest.fixture
async def jobs(channel: AbstractChannel, pool: str) -> AbstractQueue:
    return await declare_pool(channel, pool, ServiceSettings())


@pytest.fixture
def real_broker(contract_services: Services) -> None:
    if contract_services.kind is ServicesChoice.EMBEDDED:
        pytest.skip("the embedded broker has classic queues only")


async def test_a_job_is_kept_however_often_it_is_returned(
    channel: AbstractChannel, jobs: AbstractQueue
) -> None:
    await publish(channel, jobs, "job")
    for _ in range(RETURNS):
        await (await take(jobs)).nack(requeue=True)
        await until_ready(channel, jobs, 1)
    for _ in range(RETURNS):
        await (await take(jobs)).reject(requeue=True)
        await until_ready(channel, jobs, 1)
    assert await take_bodies(jobs) == ["job"]


async def test_a_job_is_kept_however_many_workers_die_with_it(
    contract_services: Services, channel: AbstractChannel, jobs: AbstractQueue
) -> None:
    await publish(channel, jobs, "job")
    for _ in range(RETURNS):
        async with open_amqp(contract_services.amqp_url, timeout_s=PATIENCE_S, name="doomed") as doomed:
            taken: Any = asyncio.get_running_loop().create_future()
            queue = await (await doomed.channel()).get_queue(jobs.name)
            await queue.consume(taken.set_result)
            await asyncio.wait_for(taken, PATIENCE_S)
            doomed.stream.abort()
        await until_ready(channel, jobs, 1)
    assert await take_bodies(jobs) == ["job"]


async def test_a_dead_letter_is_kept_however_often_it_is_looked_at(
    channel: AbstractChannel, jobs: AbstractQueue, pool: str
) -> None:
    dead = await channel.get_queue(names.dead_queue(pool))
    await publish(channel, dead, "letter")
    for _ in range(RETURNS):
        await (await take(dead)).nack(requeue=True)
        await until_ready(channel, dead, 1)
    assert await take_bodies(dead) == ["letter"]


async def test_a_pools_queue_has_as_many_priorities_as_the_support_page_says(
    channel: AbstractChannel, jobs: AbstractQueue, cell: Cell | None
) -> None:
    for priority in range(10):
        await publish(channel, jobs, str(priority), priority=priority)
    order = [int(body) for body in await take_bodies(jobs)]
    match cell.priorities if cell else 10:
        case 10:
            assert order == list(reversed(range(10)))
        case 2:
            # The upper half is served first, and not alone.
            assert order[0] == 5
            assert [each for each in order if each >= 5] == [5, 6, 7, 8, 9]
            assert [each for each in order if each < 5] == [0, 1, 2, 3, 4]
        case _:
            assert order == list(range(10))


async def test_a_returned_job_goes_where_the_support_page_says(
    channel: AbstractChannel, jobs: AbstractQueue, cell: Cell | None
) -> None:
    await publish(channel, jobs, "returned", "waiting", priority=5)
    await (await take(jobs)).nack(requeue=True)
    await until_ready(channel, jobs, 2)
    in_place = cell is None or cell.returns == "goes back to its place"
    assert await take_bodies(jobs) == (["returned", "waiting"] if in_place else ["waiting", "returned"])


async def test_queues_that_a_release_before_has_declared_fit(channel: AbstractChannel, pool: str) -> None:
    if ServiceSettings().queue_type is QueueType.CLASSIC:
        await channel.declare_queue(names.job_queue(pool), durable=True, arguments={"x-max-priority": 10})
    await channel.declare_queue(names.dead_queue(pool), durable=True)
    jobs = await declare_pool(channel, pool, ServiceSettings())
    await channel.default_exchange.publish(aio_pika.Message(b"x"), jobs.name, mandatory=True)
    exchange = await channel.get_exchange(names.DEAD_EXCHANGE)
    await exchange.publish(aio_pika.Message(b"letter"), pool, mandatory=True)
    assert await take_bodies(await channel.get_queue(names.dead_queue(pool))) == ["letter"]


@pytest.mark.parametrize(
    ("change", "argument", "remedy"),
    [
        ({"x-max-priority": 5}, "x-max-priority", "INFERFLEET_QUEUE_TYPE"),
        ({"x-max-length": 7, "x-overflow": "reject-publish"}, "x-max-length", "INFERFLEET_QUEUE_MAX_LENGTH"),
    ],
)
async def test_a_queue_with_another_argument_is_named_with_both_values(
    connection: Connection, channel: AbstractChannel, pool: str, change: Any, argument: str, remedy: str
) -> None:
    name = names.job_queue(pool)
    arguments = {"x-queue-type": "classic", "x-max-priority": 10} | change
    await channel.declare_queue(name, durable=True, arguments=arguments)
    settings = ServiceSettings(queue_type=QueueType.CLASSIC, queue_max_length=None)
    with pytest.raises(ConfigurationError) as caught:
        await declare_pool(await connection.channel(), pool, settings)
    for part in (name, argument, f"'{change[argument]}'", remedy, "delete the queue once it is empty"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("real_broker")
async def test_a_queue_of_the_other_type_is_named_with_the_setting(
    connection: Connection, channel: AbstractChannel, jobs: AbstractQueue, pool: str
) -> None:
    mine = ServiceSettings().queue_type
    (other,) = set(QueueType) - {mine}
    with pytest.raises(ConfigurationError, match="INFERFLEET_QUEUE_TYPE") as caught:
        await declare_pool(await connection.channel(), pool, ServiceSettings(queue_type=other))
    assert jobs.name in str(caught.value)


@pytest.mark.usefixtures("real_broker")
async def test_a_quorum_queue_that_would_drop_jobs_is_refused(
    connection: Connection, channel: AbstractChannel, pool: str
) -> None:
    """As releases before have declared it on RabbitMQ 3, and as RabbitMQ 4 has it by default."""
    settings = ServiceSettings(queue_type=QueueType.QUORUM)
    version = str((await channel.get_underlay_channel()).connection.server_properties["version"])
    arguments = queue_arguments(settings, broker_version=version)
    limited = arguments.pop("x-delivery-limit", None)
    if limited is None:
        arguments["x-delivery-limit"] = -1
    await channel.declare_queue(names.job_queue(pool), durable=True, arguments=arguments)
    with pytest.raises(ConfigurationError, match=r"x-delivery-limit.*delete the queue once it is empty"):
        await declare_pool(await connection.channel(), pool, settings)


@pytest.mark.usefixtures("real_broker")
async def test_a_dead_letter_queue_with_other_arguments_is_named(
    connection: Connection, channel: AbstractChannel, pool: str
) -> None:
    dead = names.dead_queue(pool)
    await channel.declare_queue(dead, durable=True, arguments={"x-max-length": 5})
    settings = ServiceSettings(queue_type=QueueType.CLASSIC)
    with pytest.raises(ConfigurationError, match=f"{dead} exists with other arguments.*x-max-length"):
        await declare_pool(await connection.channel(), pool, settings)


@pytest.mark.parametrize("queue_type", QueueType)
async def test_a_message_waits_for_its_time_and_keeps_what_it_has(
    contract_services: Services,
    channel: AbstractChannel,
    jobs: AbstractQueue,
    pool: str,
    queue_type: QueueType,
) -> None:
    if queue_type is QueueType.QUORUM and contract_services.kind is ServicesChoice.EMBEDDED:
        pytest.skip("the embedded broker has classic queues only")
    async with confirm_channel(contract_services) as publishing:
        delayed = DelayedPublishing(publishing, ServiceSettings(queue_type=queue_type))
        later, soon = Job(pool=pool, body={}, priority=7), Job(pool=pool, body={}, priority=7)
        began = time.monotonic()
        for job, due in ((later, began + 4.5), (soon, began + 1.5)):
            await delayed.publish(job_message(job, reply_to="me"), pool=pool, due=due)
        arrived = [await until_taken(jobs) for _ in range(2)]
    # The first 3 or 4 s, less what the declaration took, and a second.
    assert time.monotonic() - began > 3
    assert [message.message_id for message in arrived] == [soon.id, later.id]
    for message in arrived:
        assert (message.priority, message.reply_to) == (7, "me")
        assert message.delivery_mode is DeliveryMode.PERSISTENT


@pytest.mark.parametrize("queue_type", QueueType)
async def test_messages_that_no_queue_takes_do_not_hold_up_those_of_other_pools(
    contract_services: Services,
    channel: AbstractChannel,
    jobs: AbstractQueue,
    pool: str,
    queue_type: QueueType,
) -> None:
    if queue_type is QueueType.QUORUM and contract_services.kind is ServicesChoice.EMBEDDED:
        pytest.skip("the embedded broker has classic queues only")
    async with confirm_channel(contract_services) as publishing:
        delayed = DelayedPublishing(publishing, ServiceSettings(queue_type=queue_type))
        job = Job(pool=pool, body={})
        for delayed_job in (*(Job(pool=f"{pool}-gone", body={}) for _ in range(40)), job):
            message = job_message(delayed_job, reply_to="me")
            await delayed.publish(message, pool=delayed_job.pool, due=time.monotonic() + 1.5)
        assert (await until_taken(jobs)).message_id == job.id


async def test_a_message_that_nobody_keeps_finds_the_queue_declared_again(
    contract_services: Services, channel: AbstractChannel, jobs: AbstractQueue, pool: str
) -> None:
    settings = ServiceSettings()
    async with confirm_channel(contract_services) as publishing:
        delayed = DelayedPublishing(publishing, settings)
        for loss in (None, channel.queue_delete, channel.exchange_delete):
            if loss is not None:
                for seconds in names.DELAYS_S:
                    await loss(names.delay_queue(settings.queue_type, seconds))
            job = Job(pool=pool, body={})
            message = job_message(job, reply_to="me")
            publish = partial(delayed.publish, message, pool=pool, due=time.monotonic() + 2.5)
            try:
                await publish()
            except ServiceRefusedError:
                assert loss == channel.exchange_delete
                await publish()
            assert (await until_taken(jobs)).message_id == job.id


@pytest.mark.usefixtures("real_broker")
async def test_a_delay_queue_with_other_arguments_is_named(
    contract_services: Services, channel: AbstractChannel, pool: str
) -> None:
    settings = ServiceSettings()
    name = names.delay_queue(settings.queue_type, names.DELAYS_S[-1])
    await channel.queue_delete(name)
    await channel.declare_queue(name, durable=True, arguments={"x-max-length": 5})
    async with confirm_channel(contract_services) as publishing:
        delayed = DelayedPublishing(publishing, settings)
        message = job_message(Job(pool=pool, body={}), reply_to="me")
        with pytest.raises(ConfigurationError, match=f"{name} exists with other arguments"):
            await delayed.publish(message, pool=pool, due=time.monotonic() + 60)
    await channel.queue_delete(name)


@asynccontextmanager
async def confirm_channel(services: Services) -> AsyncGenerator[ConfirmChannel]:
    publishing = ConfirmChannel(
        services.amqp_url, connect_timeout_s=PATIENCE_S, confirm_timeout_s=PATIENCE_S, name="delays"
    )
    try:
        yield publishing
    finally:
        await publishing.aclose()


async def until_taken(queue: AbstractQueue) -> AbstractIncomingMessage:
    """Take the next message as soon as there is one."""
    async with asyncio.timeout(PATIENCE_S):
        while (message := await queue.get(timeout=PATIENCE_S, fail=False)) is None:
            await asyncio.sleep(0.02)
    await message.ack()
    return message
