"""Reads streams: many with one blocked command, or only the last line of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import redis.asyncio as aioredis

from inferfleet.wire.redis.connection import SOCKET_TIMEOUT_S, closing_redis, redis_client
from inferfleet.wire.redis.pipeline import CommandPipeline

BLOCK_S = 5.0
"""The longest blocked read, so that a dead connection is noticed."""

NO_LINE = b"0-0"
"""The place before the first line of a stream."""

Line = tuple[bytes, dict[bytes, bytes]]
"""A line of a stream: its id and its fields."""


class BlockedReader:
    """Waits for lines of many streams, on a connection of its own."""

    def __init__(self, client: aioredis.Redis) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncGenerator[Self]:
        """Make a reader, which connects at its first use.

        Raises:
            ConfigurationError: The URL is invalid.

        """
        client = redis_client(url, connections=1, socket_timeout_s=BLOCK_S + SOCKET_TIMEOUT_S)
        async with closing_redis(client):
            yield cls(client)

    async def read(self, positions: Mapping[bytes, bytes]) -> list[tuple[bytes, list[Line]]]:
        """Wait for lines behind these positions, for at most ``BLOCK_S``. Without lines the list is empty.

        Raises:
            redis.exceptions.RedisError, OSError: The connection broke, or Redis refuses; see ``refusals``.

        """
        streams: dict[Any, Any] = dict(positions)
        lines: Any = await self._client.xread(streams, block=int(BLOCK_S * 1000), count=1000)
        return lines or []


async def last_lines(pipeline: CommandPipeline, streams: Iterable[bytes]) -> list[bytes | None]:
    """Return the id of each stream's last line; ``None`` for a stream that is empty or gone."""
    found: list[Any] = await asyncio.gather(
        *(pipeline.enqueue("XREVRANGE", stream, "+", "-", "COUNT", 1) for stream in streams)
    )
    return [lines[0][0] if lines else None for lines in found]
