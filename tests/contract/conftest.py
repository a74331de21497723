"""The contract suite runs every test against each kind of services: they must not be told apart by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
import redis.asyncio as aioredis
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from tests.conftest import cell_services, matrix_cells
from tests.contract.conversation import Conversation
from tests.matrix import Cell
from tests.patience import PATIENCE_S as PATIENCE_S
from tests.stores import plain_redis, running_pipeline

from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.launcher import source_of
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.rabbitmq.topology import queue_arguments

KINDS = (ServicesChoice.EMBEDDED, ServicesChoice.NATIVE, ServicesChoice.DOCKER)

Publish = Callable[..., Awaitable[Any]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contract_services" in metafunc.fixturenames:
        kinds = matrix_cells(metafunc.config) or KINDS
        metafunc.parametrize("contract_services", kinds, ids=str, indirect=True, scope="session")


@pytest.fixture(scope="session")
def contract_services(request: pytest.FixtureRequest) -> Iterator[Services]:
    if isinstance(request.param, Cell):
        yield cell_services(request)
        return
    kind: ServicesChoice = request.param
    if (unavailable_reason := source_of(kind).unavailable_reason()) is not None:
        report = pytest.fail if kind in request.config.getoption("--require-services") else pytest.skip
        report(f"{kind} services cannot run here: {unavailable_reason}")
    with running_services(kind) as services:
        yield services


@pytest.fixture
async def connection(contract_services: Services) -> AsyncIterator[AbstractConnection]:
    async with await aio_pika.connect(contract_services.amqp_url) as connection:
        yield connection


@pytest.fixture
async def channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    async with connection.channel() as channel:
        yield channel


@pytest.fixture
async def store(contract_services: Services) -> AsyncIterator[aioredis.Redis]:
    client = plain_redis(contract_services.redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def talk(contract_services: Services, store: aioredis.Redis) -> AsyncIterator[Conversation]:
    """A session of which nothing is there yet."""
    async with running_pipeline(contract_services.redis_url, patience_s=None) as pipeline:
        yield Conversation(store, pipeline)


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"contract.{uuid4()}"


@pytest.fixture
async def queue(channel: AbstractChannel, name: str, arguments: dict[str, Any]) -> AbstractQueue:
    """A queue like that of a pool."""
    return await channel.declare_queue(name, durable=True, arguments=arguments)


@pytest.fixture
async def priority_queue(channel: AbstractChannel, name: str) -> AbstractQueue:
    """A classic queue with priorities, in every cell of the matrix."""
    arguments: dict[str, Any] = {"x-queue-type": "classic", "x-max-priority": 10}
    return await channel.declare_queue(f"{name}.classic", durable=True, arguments=arguments)


@pytest.fixture
async def arguments(channel: AbstractChannel) -> dict[str, Any]:
    """The arguments of a queue like that of a pool."""
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    return queue_arguments(ServiceSettings(), broker_version=version)


async def publish(channel: AbstractChannel, queue: AbstractQueue, *bodies: str, **properties: Any) -> None:
    """Put messages into a queue, in order, each confirmed."""
    for body in bodies:
        await channel.default_exchange.publish(
            aio_pika.Message(body.encode(), **properties), routing_key=queue.name
        )


async def take(queue: AbstractQueue) -> AbstractIncomingMessage:
    """Take the message at the head."""
    message = await queue.get(timeout=PATIENCE_S)
    assert message is not None
    return message


async def take_bodies(queue: AbstractQueue) -> list[str]:
    """Take and ack everything that waits, and return the bodies in order."""
    bodies: list[str] = []
    while (message := await queue.get(timeout=PATIENCE_S, fail=False)) is not None:
        bodies.append(message.body.decode())
        await message.ack()
    return bodies


class Inbox:
    """A consumer that keeps what it gets, and acks nothing by itself."""

    def __init__(self) -> None:
        self.messages: list[AbstractIncomingMessage] = []
        self._arrived = asyncio.Event()

    async def __call__(self, message: AbstractIncomingMessage) -> None:
        self.messages.append(message)
        self._arrived.set()

    @property
    def bodies(self) -> list[str]:
        return [message.body.decode() for message in self.messages]

    async def wait_for(self, count: int) -> list[AbstractIncomingMessage]:
        """Wait until so many messages have come in all."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.messages) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.messages


async def ready(channel: AbstractChannel, queue: AbstractQueue) -> int:
    """Count what waits, by a passive declaration."""
    declared = await channel.declare_queue(queue.name, passive=True)
    return declared.declaration_result.message_count or 0


async def until_ready(channel: AbstractChannel, queue: AbstractQueue, count: int) -> None:
    """Wait until so many messages wait."""
    async with asyncio.timeout(PATIENCE_S):
        while await ready(channel, queue) != count:
            await asyncio.sleep(0.01)
