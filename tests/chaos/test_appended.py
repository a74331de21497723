"""Which results Redis has acknowledged is known even after it has forgotten them, with its files."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from inferfleet.local.chaos.appended import AppendedResults
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.schemas.names import job_key, result_key


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    if (binary := redis_binary()) is None:
        pytest.skip("there is no redis-server")
    with Reaper() as reaper:
        server = RedisProcess(server=binary, folder=tmp_path, reaper=reaper, fsync=Fsync.ALWAYS)
        await asyncio.to_thread(server.start)
        yield server
        server.close()


async def test_a_forgotten_or_replaced_result_is_lost_and_one_that_is_there_is_not(
    server: RedisProcess,
) -> None:
    appended = AppendedResults([server.data])
    following = asyncio.create_task(appended.follow())
    async with aioredis.Redis.from_url(server.url) as redis:
        # Given results that a server has acknowledged before it was killed, and lost its disk
        for job in ("kept", "replaced", "forgotten", "reset"):
            await redis.set(result_key(job), f"the result of {job}")
        for result in ("first", "second"):
            await redis.set(result_key("twice"), result)
        while not await appended.lost(redis, ["twice"]):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.kill)
        shutil.rmtree(server.data)
        server.data.mkdir()
        await asyncio.to_thread(server.start)
        await redis.connection_pool.disconnect()

        # When some come back as they were, as another one, only as a record, or not at all
        await redis.set(result_key("kept"), "the result of kept")
        await redis.set(result_key("replaced"), "another")
        await redis.hset(job_key("reset"), "state", "running")  # pyright: ignore[reportGeneralTypeIssues]

        # Then that is known
        jobs = ("kept", "replaced", "forgotten", "reset", "never seen")
        assert await appended.lost(redis, jobs) == {"replaced", "forgotten", "reset"}
        assert await appended.unknown(redis, jobs) == {"replaced", "forgotten"}
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
