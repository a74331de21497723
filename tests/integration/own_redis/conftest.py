"""A Redis of its own for each test, which may change it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis.asyncio as aioredis

from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import RedisProcess, redis_binary

StartRedis = Callable[..., RedisProcess]


@pytest.fixture
def start_redis() -> Iterator[StartRedis]:
    with tempfile.TemporaryDirectory() as folder, Reaper() as reaper:
        started: list[RedisProcess] = []

        def start(**configuration: str) -> RedisProcess:
            server = redis_binary()
            assert server is not None
            process = RedisProcess(
                server=server,
                folder=Path(folder) / str(len(started)),
                reaper=reaper,
                configuration={name.replace("_", "-"): value for name, value in configuration.items()},
            )
            started.append(process)
            process.start()
            return process

        yield start
        for process in started:
            process.close()


@pytest.fixture
def own_redis(start_redis: StartRedis) -> RedisProcess:
    return start_redis()


@pytest.fixture
async def operator(own_redis: RedisProcess) -> AsyncIterator[aioredis.Redis]:
    """Whoever administers that Redis."""
    client = aioredis.Redis.from_url(own_redis.url)
    yield client
    await client.aclose()


def as_user(url: str, user: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:secret@{parts.hostname}:{parts.port}").geturl()


async def set_user(operator: aioredis.Redis, *rules: str, user: str = "someone") -> None:
    await operator.execute_command("ACL", "SETUSER", user, "reset", "on", ">secret", *rules)
