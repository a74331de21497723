"""Commands of many tasks on one connection to Redis, and what becomes of them when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as aioredis
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from tests.integration.conftest import PATIENCE_S

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.connection import closing_redis, command_pipeline, redis_client
from inferfleet.wire.redis.pipeline import WRITE_LIMIT, CommandPipeline
from inferfleet.wire.redis.pipelined_connection import PipelinedConnection
from inferfleet.wire.tasks import cancel_and_wait

SOCKET_TIMEOUT_S = 0.3


@pytest.fixture
async def link(services: Services) -> AsyncIterator[Proxy]:
    """The way to Redis, which a test may disturb."""
    async with Proxy(services.redis_url) as link:
        yield link


@asynccontextmanager
async def running(
    url: str, *, patience_s: float | None, socket_timeout_s: float = SOCKET_TIMEOUT_S
) -> AsyncGenerator[CommandPipeline]:
    client = redis_client(url, socket_timeout_s=socket_timeout_s)
    pipeline = command_pipeline(client, patience_s=patience_s)
    sending = asyncio.create_task(pipeline.run())
    try:
        yield pipeline
    finally:
        await asyncio.wait_for(cancel_and_wait(sending), PATIENCE_S)
        await client.aclose()


@pytest.fixture
async def impatient(link: Proxy) -> AsyncIterator[CommandPipeline]:
    async with running(link.url, patience_s=0) as pipeline:
        yield pipeline


@pytest.fixture
async def patient(link: Proxy) -> AsyncIterator[CommandPipeline]:
    async with running(link.url, patience_s=None) as pipeline:
        yield pipeline


@pytest.fixture
def key(pool: str) -> str:
    """A key that no other test uses."""
    return f"test:pipeline:{pool}"


async def test_commands_run_in_the_order_given_and_each_gets_its_own_answer(
    impatient: CommandPipeline, key: str
) -> None:
    answers = [impatient.enqueue("INCR", key) for _ in range(3 * WRITE_LIMIT)]
    assert await asyncio.gather(*answers) == list(range(1, 3 * WRITE_LIMIT + 1))


async def test_commands_and_answers_larger_than_any_buffer_pass_each_other(services: Services) -> None:
    """Neither side may wait with reading until the other has read."""
    texts = [bytes([number]) * 1_000_000 for number in range(60)]
    # A busy machine needs its time for 60 MB.
    async with running(services.redis_url, patience_s=0, socket_timeout_s=PATIENCE_S) as pipeline:
        answers = await asyncio.wait_for(
            asyncio.gather(*(pipeline.enqueue("ECHO", text) for text in texts)), PATIENCE_S
        )
    assert answers == texts


async def test_a_refused_command_is_an_error_for_nobody_else(impatient: CommandPipeline, key: str) -> None:
    outcomes = await asyncio.gather(
        impatient.enqueue("SET", key, "text"),
        impatient.enqueue("INCR", key),
        impatient.enqueue("GET", key),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], ServiceRefusedError)
    assert "value is not an integer" in str(outcomes[1])
    assert outcomes[2] == b"text"


async def test_what_redis_cannot_be_given_is_an_error_for_nobody_else(
    impatient: CommandPipeline, key: str
) -> None:
    outcomes = await asyncio.gather(
        impatient.enqueue("SET", key, "text"),
        impatient.enqueue("GET", "\ud800"),
        impatient.enqueue("GET", key),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], UnicodeEncodeError)
    assert outcomes[2] == b"text"


async def test_who_stops_waiting_does_not_shift_the_answers_of_others(
    impatient: CommandPipeline, key: str
) -> None:
    first, second = (asyncio.create_task(impatient.execute("INCR", key)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 2


async def test_what_has_no_answer_when_the_link_breaks_is_sent_again_in_order(
    link: Proxy, patient: CommandPipeline, store: aioredis.Redis, key: str
) -> None:
    await patient.execute("PING")
    link.hold(Direction.TO_CLIENT)
    values = [str(number) for number in range(2 * WRITE_LIMIT)]
    answers = [patient.enqueue("SET", key, value) for value in values]
    async with asyncio.timeout(PATIENCE_S):
        while await store.get(key) is None:
            await asyncio.sleep(0.01)
        await link.until_held(Direction.TO_CLIENT)
        assert link.reset()
        link.heal()
        assert len(await asyncio.gather(*answers)) == len(values)
    assert await store.get(key) == values[-1].encode()


async def test_a_redis_that_owes_an_answer_for_too_long_counts_as_away(
    link: Proxy, impatient: CommandPipeline
) -> None:
    await impatient.execute("PING")
    link.hold(Direction.TO_CLIENT)
    with pytest.raises(ServiceUnreachableError, match="does not answer") as sent:
        await asyncio.wait_for(impatient.execute("PING"), PATIENCE_S)
    assert sent.value.in_doubt
    link.heal()
    assert await impatient.execute("ECHO", "there again") == b"there again"


@pytest.mark.usefixtures("real_redis")
async def test_a_client_without_a_timeout_stays_on_one_connection(services: Services) -> None:
    client = aioredis.Redis.from_url(services.redis_url, socket_timeout=None)
    pipeline = command_pipeline(client, patience_s=0)
    sending = asyncio.create_task(pipeline.run())
    identities = {await pipeline.execute("CLIENT", "ID") for _ in range(20)}
    await asyncio.wait_for(cancel_and_wait(sending), PATIENCE_S)
    await client.aclose()
    assert len(identities) == 1


async def test_each_command_has_a_patience_of_its_own(link: Proxy) -> None:
    async with running(link.url, patience_s=2.0) as pipeline:
        await pipeline.execute("PING")
        link.hold(*Direction)
        assert link.reset()
        early = pipeline.enqueue("PING")
        await asyncio.sleep(1.5)
        late = pipeline.enqueue("ECHO", "late")
        with pytest.raises(ServiceUnreachableError, match="Redis"):
            await asyncio.wait_for(early, PATIENCE_S)
        assert not late.done()
        link.heal()
        assert await asyncio.wait_for(late, PATIENCE_S) == b"late"


@pytest.mark.usefixtures("real_redis")
async def test_an_idle_connection_that_redis_closed_costs_nobody_an_error(
    link: Proxy, impatient: CommandPipeline, store: aioredis.Redis
) -> None:
    ours: int = await impatient.execute("CLIENT", "ID")
    assert await store.execute_command("CLIENT", "KILL", "ID", ours) == 1
    async with asyncio.timeout(PATIENCE_S):
        while link.connections:  # until our end has noticed
            await asyncio.sleep(0.01)
    assert await impatient.execute("ECHO", "again") == b"again"


async def test_a_connection_that_broke_before_the_first_command_is_noticed(link: Proxy) -> None:
    """Its stream has heard of it then, and nobody else hears of it again."""
    async with aioredis.Redis.from_url(link.url) as client, PipelinedConnection.opened(client) as connection:
        await connection.learn_time(RedisClock())
        link.reset()
        # No command waits for a reply, and there is no timeout.
        while not connection.lost:
            await asyncio.sleep(0.01)
        connection.converse(on_reply=pytest.fail, on_writable=pytest.fail)
        assert isinstance(connection.ended.result(), RedisConnectionError)


async def test_a_pipeline_that_ended_says_so_to_those_who_wait_and_those_who_come(link: Proxy) -> None:
    async with running(link.url, patience_s=None) as pipeline:
        link.hold(Direction.TO_CLIENT)
        waiting = pipeline.enqueue("PING")
        await link.until_held(Direction.TO_CLIENT)
    for answer in (waiting, pipeline.enqueue("PING")):
        with pytest.raises(ServiceUnreachableError, match="closed"):
            await answer


@pytest.mark.usefixtures("real_redis")
def test_a_transport_that_is_closed_already_is_a_broken_connection(services: Services) -> None:
    """As in a worker, whose event loop raises a ``RuntimeError``."""

    async def write_to_closed() -> None:
        async with closing_redis(redis_client(services.redis_url)) as client:
            assert isinstance(client, aioredis.Redis)
            connection: Any = await client.connection_pool.get_connection()
            transport = connection._writer.transport
            transport.abort()
            while not transport.is_closing() or connection._reader.at_eof() is False:
                await asyncio.sleep(0)
            with pytest.raises(RedisConnectionError, match="closed"):
                await connection.send_packed_command([b"PING"])

    uvloop.run(write_to_closed())


async def test_what_was_never_sent_is_not_in_doubt() -> None:
    async with running(f"redis://127.0.0.1:{free_port()}", patience_s=0) as pipeline:
        with pytest.raises(ServiceUnreachableError) as unsent:
            await pipeline.execute("PING")
    assert not unsent.value.in_doubt
