"""Reads streams: many with one blocked command, or only the last line of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import AskError, MovedError, RedisError, TryAgainError

from inferfleet.wire.redis.cluster import ClusterClient, slot_of
from inferfleet.wire.redis.connection import SOCKET_TIMEOUT_S, closing_redis, redis_client
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.tasks import cancel_and_wait

BLOCK_S = 5.0
"""The longest blocked read, so that a dead connection is noticed."""

MOST_READS = 1_000
"""The most blocked reads at a time. A single server needs only one."""

REDIRECTED_PAUSE_S = 0.05
"""How long to wait before a stream is looked for again whose slot is being moved."""

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
    async def opened(cls, url: str) -> AsyncGenerator[BlockedReader]:
        """Make a reader, which connects at its first use.

        Raises:
            ConfigurationError: The URL is invalid.

        """
        client = redis_client(url, connections=MOST_READS, socket_timeout_s=BLOCK_S + SOCKET_TIMEOUT_S)
        async with closing_redis(client):
            if not isinstance(client, ClusterClient):
                yield cls(client)
                return
            reader = ClusterBlockedReader(client)
            try:
                yield reader
            finally:
                await reader.stop()

    async def read(self, positions: Mapping[bytes, bytes]) -> list[tuple[bytes, list[Line]]]:
        """Wait for lines behind these positions, for at most ``BLOCK_S``. Without lines the list is empty.

        Raises:
            redis.exceptions.RedisError, OSError: The connection broke, or Redis refuses; see ``refusals``.

        """
        streams: dict[Any, Any] = dict(positions)
        lines: Any = await self._client.xread(streams, block=int(BLOCK_S * 1000), count=1000)
        return lines or []


class ClusterBlockedReader(BlockedReader):
    """Waits for lines of many streams of a cluster, with a blocked read for each slot that has any.

    A node refuses a command whose keys are in several slots, even if it has all of them.
    """

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster
        self._reads: dict[int, tuple[dict[bytes, bytes], asyncio.Task[list[tuple[bytes, list[Line]]]]]] = {}
        """What is being read of each slot, and from where."""

    async def read(self, positions: Mapping[bytes, bytes]) -> list[tuple[bytes, list[Line]]]:
        """Wait for lines behind these positions. Reads whose positions are still wanted go on meanwhile."""
        wanted: dict[int, dict[bytes, bytes]] = {}
        for stream, position in positions.items():
            wanted.setdefault(slot_of(stream), {})[stream] = position
        await self._stop([slot for slot, (read, _) in self._reads.items() if wanted.get(slot) != read])
        for slot, read in wanted.items():
            if slot not in self._reads:
                self._reads[slot] = read, asyncio.create_task(self._read(slot, read))
        await asyncio.wait([task for _, task in self._reads.values()], return_when=asyncio.FIRST_COMPLETED)
        done = [slot for slot, (_, task) in self._reads.items() if task.done()]
        answers = [self._reads.pop(slot)[1] for slot in done]
        if failed := [error for answer in answers if (error := answer.exception()) is not None]:
            # The lines of the others are read again.
            raise failed[0]
        return [line for answer in answers for line in answer.result()]

    async def stop(self) -> None:
        """End all reads."""
        await self._stop(list(self._reads))

    async def _stop(self, slots: list[int]) -> None:
        await cancel_and_wait(*(self._reads.pop(slot)[1] for slot in slots))

    async def _read(self, slot: int, positions: dict[bytes, bytes]) -> list[tuple[bytes, list[Line]]]:
        node = self._cluster.owner(slot)
        try:
            return await BlockedReader(self._cluster.node(node)).read(positions)
        except MovedError as error:
            self._cluster.redirected(node, error)
        except (AskError, TryAgainError):
            await asyncio.sleep(REDIRECTED_PAUSE_S)
        except (RedisError, OSError):
            with suppress(RedisError, OSError):
                await self._cluster.refresh()
            raise
        return []


async def last_lines(pipeline: CommandPipeline, streams: Iterable[bytes]) -> list[bytes | None]:
    """Return the id of each stream's last line; ``None`` for a stream that is empty or gone."""
    found: list[Any] = await asyncio.gather(
        *(pipeline.enqueue("XREVRANGE", stream, "+", "-", "COUNT", 1) for stream in streams)
    )
    return [lines[0][0] if lines else None for lines in found]
