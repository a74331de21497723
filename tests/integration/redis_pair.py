"""A Redis master with a replica."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis
from tests.integration.conftest import eventually

from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import RedisProcess, redis_binary


@dataclass(frozen=True)
class Pair:
    """A master, its replica, and the link between them."""

    url: str
    master: aioredis.Redis
    replica: aioredis.Redis
    link: Proxy

    async def waits(self) -> int:
        """How many times the master was asked to wait for replicas."""
        said: Any = await self.master.info("commandstats")
        return said.get("cmdstat_wait", {}).get("calls", 0)


@asynccontextmanager
async def redis_pair() -> AsyncGenerator[Pair]:
    """Start a master with a replica, whose link a test can disturb."""
    server = redis_binary()
    assert server is not None
    with tempfile.TemporaryDirectory() as folder, Reaper() as reaper:
        master = RedisProcess(server=server, folder=Path(folder, "master"), reaper=reaper)
        await asyncio.to_thread(master.start)
        async with Proxy(master.url) as link:
            host, port = link.url.removeprefix("redis://").removesuffix("/0").split(":")
            replica = RedisProcess(
                server=server,
                folder=Path(folder, "replica"),
                reaper=reaper,
                configuration={"replicaof": f"{host} {port}", "repl-diskless-load": "swapdb"},
            )
            await asyncio.to_thread(replica.start)
            at_master, at_replica = map(aioredis.Redis.from_url, (master.url, replica.url))

            async def is_linked() -> bool:
                return (await at_replica.info("replication"))["master_link_status"] == "up"

            await eventually(is_linked)
            yield Pair(master.url, at_master, at_replica, link)
            for client in (at_master, at_replica):
                await client.aclose()
            replica.close()
            master.close()
