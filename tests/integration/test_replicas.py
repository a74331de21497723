"""With ``INFERFLEET_REDIS_WAIT_REPLICAS``, what a client was told is on a replica of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from tests.integration.conftest import PATIENCE_S, Connect, ForeignClient, StartWorker, answer_to, eventually
from tests.integration.redis_pair import Pair, redis_pair
from tests.stores import running_pipeline

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.local.services.redis_process import redis_binary
from inferfleet.schemas import JobState
from inferfleet.schemas.errors import ServiceRefusedError
from inferfleet.schemas.names import job_key, open_key, reply_key, request_key, result_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.replicas import Replicas

pytestmark = pytest.mark.skipif(redis_binary() is None, reason="no redis-server here")

WAITS: dict[str, Any] = {"redis_wait_replicas": 1, "redis_wait_timeout_ms": 200}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with redis_pair() as pair:
        yield pair


async def told(pair: Pair, client: str) -> list[bytes | None]:
    """The jobs of whose ends a client was told."""
    lines: Any = await pair.master.xrange(reply_key(client))
    return [fields.get(b"job") for _, fields in lines]


async def test_an_accepted_job_and_its_end_are_on_the_replica(
    pair: Pair, connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    async with connect(redis_url=pair.url, **WAITS) as fleet:
        await fleet.declare_pool(pool)
        job = await fleet.submit("hello", pool=pool)
        assert await pair.replica.hget(job_key(job.id), "state") == b"queued"
        assert await pair.replica.exists(request_key(job.id)) == 1
        assert await pair.replica.zcard(open_key(pool, job.priority)) == 1

        await start_worker(redis_url=pair.url, **WAITS)
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        assert result.text == answer_to(job)
        assert await pair.replica.exists(result_key(job.id)) == 1


async def test_a_job_that_no_replica_has_is_refused_and_taken_back(
    pair: Pair, connect: Connect, foreign: ForeignClient, pool: str
) -> None:
    async with connect(redis_url=pair.url, **WAITS) as fleet:
        await fleet.declare_pool(pool)
        pair.link.hold(Direction.TO_CLIENT)
        with pytest.raises(ServiceRefusedError, match="0 of 1 replicas") as refused:
            await fleet.submit("hello", pool=pool)
        assert refused.value.passing
        assert await foreign.waiting() == 0
        assert [key async for key in pair.master.scan_iter("inferfleet:job:*")] == []

        pair.link.heal()
        job = await fleet.submit("hello", pool=pool)
        assert (await fleet.get(job)).state is JobState.QUEUED


async def test_a_client_is_told_of_an_end_only_when_the_replica_has_it(
    pair: Pair,
    connect: Connect,
    start_worker: StartWorker,
    foreign: ForeignClient,
    pool: str,
) -> None:
    async with connect(redis_url=pair.url, client_id=pool) as fleet:
        await fleet.declare_pool(pool)
        worker = await start_worker(redis_url=pair.url, **WAITS)
        first = await fleet.submit("first", pool=pool)
        await fleet.wait(first, timeout_s=PATIENCE_S)
        pair.link.hold(Direction.TO_CLIENT)
        second = await fleet.submit("second", pool=pool)

        async def has_ended() -> bool:
            return (await fleet.get(second)).state is JobState.SUCCEEDED

        await eventually(has_ended)
        await pair.link.until_held(Direction.TO_CLIENT)
        assert second.id.encode() not in await told(pair, pool)
        assert await pair.replica.exists(result_key(second.id)) == 0

        pair.link.heal()
        assert (await fleet.wait(second, timeout_s=PATIENCE_S)).text == answer_to(second)

        async def is_told() -> bool:
            return second.id.encode() in await told(pair, pool)

        await eventually(is_told)
        await worker.stop()
        assert await pair.replica.exists(result_key(second.id)) == 1
    assert await foreign.waiting() == 0


async def test_all_writes_that_wait_for_replicas_share_a_command(services: Services) -> None:
    """Redis answers nothing else on the connection meanwhile: leases must not wait once for each job."""
    async with running_pipeline(services.redis_url, patience_s=None) as pipeline:
        settings = ProducerSettings(redis_wait_replicas=99, redis_wait_timeout_ms=50)
        replicas = Replicas(pipeline, settings, patience_s=0.0)
        before = await waits(pipeline)
        held = await asyncio.gather(
            *(replicas.hold(partial(pipeline.execute, "TIME")) for _ in range(50)), return_exceptions=True
        )
        assert {type(error) for error in held} == {ServiceRefusedError}
        assert await waits(pipeline) - before <= 2


async def test_a_write_whose_connection_is_replaced_before_replicas_have_it_is_repeated(
    services: Services,
) -> None:
    async with (
        Proxy(services.redis_url) as link,
        running_pipeline(link.url, patience_s=None) as pipeline,
    ):
        settings = ProducerSettings(redis_wait_replicas=99, redis_wait_timeout_ms=50)
        replicas = Replicas(pipeline, settings, patience_s=0.0)
        writes = 0
        # The first command of all makes the connection that is replaced.
        await pipeline.execute("TIME")

        async def write() -> None:
            nonlocal writes
            writes += 1
            await pipeline.execute("TIME")
            if writes == 1:
                link.reset()

        with pytest.raises(ServiceRefusedError):
            await replicas.hold(write)
        assert writes == 2


async def waits(pipeline: CommandPipeline) -> int:
    """How many times this Redis was asked to wait."""
    said: dict[str, dict[str, int]] = await pipeline.execute("INFO", "commandstats")
    return said.get("cmdstat_wait", {}).get("calls", 0)
