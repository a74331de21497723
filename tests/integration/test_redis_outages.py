"""A Redis that cannot serve: what clients are told, and that nothing is done twice when it serves again.

These tests break their Redis, so each has one of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.exceptions import ResponseError
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartWorker,
    answer_to,
    eventually,
    kinds_of,
    read_all,
)

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.producer import Fleet
from inferfleet.producer.background import background
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import PublishUnconfirmedError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import open_key
from inferfleet.wire.redis.connection import command_pipeline, redis_client

pytestmark = pytest.mark.skipif(redis_binary() is None, reason="no redis-server here")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    server = redis_binary()
    assert server is not None
    with Reaper() as reaper:
        process = RedisProcess(server=server, folder=tmp_path / "redis", reaper=reaper)
        process.start()
        yield process
        process.close()


@pytest.fixture
async def operator(own_redis: RedisProcess) -> AsyncIterator[aioredis.Redis]:
    """Whoever administers that Redis."""
    client = aioredis.Redis.from_url(own_redis.url)
    yield client
    await client.aclose()


@pytest.fixture
async def patient(connect: Connect, own_redis: RedisProcess, pool: str) -> AsyncIterator[Fleet]:
    """A client that waits for Redis."""
    async with connect(redis_url=own_redis.url, patience_s=PATIENCE_S) as fleet:
        await fleet.declare_pool(pool)
        yield fleet


@pytest.fixture
async def impatient(connect: Connect, own_redis: RedisProcess, pool: str) -> AsyncIterator[Fleet]:
    """A client that wants to be told at once."""
    async with connect(redis_url=own_redis.url) as fleet:
        await fleet.declare_pool(pool)
        yield fleet


Outage = Callable[[aioredis.Redis], Any]


@asynccontextmanager
async def failover(operator: aioredis.Redis) -> AsyncIterator[None]:
    """It became a replica, so that it takes no writes."""
    await operator.replicaof("127.0.0.1", free_port())
    yield
    await operator.replicaof("NO", "ONE")


@asynccontextmanager
async def full_memory(operator: aioredis.Redis) -> AsyncIterator[None]:
    await operator.config_set("maxmemory", 1)
    yield
    await operator.config_set("maxmemory", 0)


@asynccontextmanager
async def no_replicas(operator: aioredis.Redis) -> AsyncIterator[None]:
    await operator.config_set("min-replicas-to-write", 1)
    yield
    await operator.config_set("min-replicas-to-write", 0)


outages = pytest.mark.parametrize("outage", [failover, full_memory, no_replicas])


@outages
async def test_a_patient_client_waits_until_redis_takes_writes_again(
    patient: Fleet, operator: aioredis.Redis, outage: Outage, pool: str
) -> None:
    async with outage(operator):
        submitting = asyncio.create_task(patient.submit("hello", pool=pool))
        done, _ = await asyncio.wait({submitting}, timeout=0.3)
        assert not done
    job = await asyncio.wait_for(submitting, PATIENCE_S)
    assert (await patient.get(job)).attempt == 0


@outages
async def test_an_impatient_client_is_told_at_once(
    impatient: Fleet, operator: aioredis.Redis, outage: Outage, pool: str
) -> None:
    async with outage(operator):
        with pytest.raises(ServiceRefusedError, match="Redis refuses") as told:
            await asyncio.wait_for(impatient.submit("hello", pool=pool), PATIENCE_S)
        assert told.value.passing
    assert await impatient.submit("hello", pool=pool)


@outages
async def test_a_worker_goes_on_when_redis_takes_writes_again(
    patient: Fleet,
    operator: aioredis.Redis,
    outage: Outage,
    own_redis: RedisProcess,
    start_worker: StartWorker,
    pool: str,
) -> None:
    job = await patient.submit("hello", pool=pool)
    async with outage(operator):
        worker = await start_worker(redis_url=own_redis.url)
        done, _ = await asyncio.wait({worker.running}, timeout=0.3)
        assert not done
    result = await patient.wait(job, timeout_s=PATIENCE_S)
    assert (result.text, result.attempts) == (answer_to(job), 1)


async def test_every_read_tells_that_redis_is_away_in_our_own_words(
    impatient: Fleet, own_redis: RedisProcess, pool: str
) -> None:
    job = await impatient.submit("hello", pool=pool)
    own_redis.kill()
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: impatient.get(job),
        lambda: impatient.get_many([job]),
        lambda: impatient.wait(job),
        lambda: anext(impatient.stream(job)),
        lambda: impatient.cancel(job),
        lambda: impatient.workers(),
    ]
    for call in calls:
        with pytest.raises(ServiceUnreachableError, match="Redis"):
            await asyncio.wait_for(call(), PATIENCE_S)


async def test_waits_and_streams_survive_a_restart_of_redis(
    patient: Fleet, own_redis: RedisProcess, start_worker: StartWorker, pool: str
) -> None:
    job = await patient.submit("hello", pool=pool)
    waiting = asyncio.create_task(patient.wait(job))
    streaming = asyncio.create_task(read_all(patient.stream(job)))
    await patient.get(job)
    own_redis.kill()
    own_redis.start()
    worker = await start_worker(redis_url=own_redis.url)
    assert (await asyncio.wait_for(waiting, PATIENCE_S)).text == answer_to(job)
    assert kinds_of(await streaming) == ["queued", "running", "tokens", "finished"]
    await worker.stop()


async def test_scripts_that_redis_has_forgotten_are_loaded_again(
    impatient: Fleet, operator: aioredis.Redis, pool: str
) -> None:
    await impatient.submit("before", pool=pool)
    await operator.script_flush()
    jobs = await impatient.submit_many([f"after {number}" for number in range(50)], pool=pool)
    records = await impatient.get_many(jobs)
    assert all(records.values())


async def test_a_redis_that_is_busy_when_it_is_connected_to_is_waited_for(
    own_redis: RedisProcess, operator: aioredis.Redis
) -> None:
    """It refuses to select the database, too."""
    await operator.config_set("busy-reply-threshold", 1)
    endless: Any = operator.eval("while true do end", 0)
    busy = asyncio.create_task(endless)
    client = redis_client(own_redis.url.removesuffix("/0") + "/1")
    pipeline = command_pipeline(client, patience_s=None)
    async with background(pipeline.run()):
        waiting = pipeline.enqueue("ECHO", "at last")
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done
        async with aioredis.Redis.from_url(own_redis.url) as another:
            await another.script_kill()
        assert await asyncio.wait_for(waiting, PATIENCE_S) == b"at last"
    with pytest.raises(ResponseError, match="killed"):
        await busy
    await client.aclose()


async def test_a_client_that_was_closed_says_so(connect: Connect, own_redis: RedisProcess) -> None:
    async with connect(redis_url=own_redis.url) as fleet:
        pass
    with pytest.raises(ServiceUnreachableError, match="closed"):
        await asyncio.wait_for(fleet.get(Job(body={})), PATIENCE_S)


async def test_a_submission_whose_repetition_redis_refuses_is_in_doubt(
    connect: Connect,
    own_redis: RedisProcess,
    operator: aioredis.Redis,
    start_worker: StartWorker,
    patient: Fleet,
    pool: str,
) -> None:
    """It recorded the job before it failed over, so the sweep publishes it."""
    async with Proxy(own_redis.url) as link, connect(redis_url=link.url) as cut_off:
        link.hold_answers_to(b"in doubt")
        submitting = asyncio.create_task(cut_off.submit("in doubt", pool=pool))

        async def is_recorded() -> bool:
            return await operator.zcard(open_key(pool, 4)) == 1

        await eventually(is_recorded)
        await link.until_held(Direction.TO_CLIENT)
        async with failover(operator):
            link.reset()
            link.heal()
            with pytest.raises(PublishUnconfirmedError, match="Redis went away") as unconfirmed:
                await submitting
    await start_worker(redis_url=own_redis.url, sweep_interval_s=0.4)
    result = await patient.wait(str(unconfirmed.value.job_id), timeout_s=PATIENCE_S)
    assert result.state is JobState.SUCCEEDED
