"""What a Redis server says of itself: its version, role, memory and persistence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import RedisError

from inferfleet.schemas.errors import ServiceUnreachableError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """The parts of ``INFO`` that matter to a fleet. Without a limit, ``maxmemory_bytes`` is 0.

    ``version`` is the version of Redis, or the one that another ``product`` claims to be compatible with;
    ``product_version`` is the product's own.
    ``write_errors`` are the writes to disk that failed last time.
    """

    version: str
    product: str
    product_version: str
    role: str
    replicas: int
    used_memory_bytes: int
    maxmemory_bytes: int
    eviction_policy: str
    append_only: bool
    write_errors: tuple[str, ...]


async def read_server_info(client: aioredis.Redis) -> ServerInfo:
    """Ask a server.

    Raises:
        ServiceUnreachableError: It does not answer, or not that.

    """
    try:
        # All sections: the user may be allowed INFO alone, and old servers take only one at a time.
        info: dict[str, Any] = await client.info()
    except (RedisError, OSError) as error:
        raise ServiceUnreachableError(f"Redis does not answer INFO ({error})") from error
    version = str(info.get("redis_version", ""))
    valkey = info.get("valkey_version")
    failed = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
    return ServerInfo(
        version=version,
        product="Valkey" if valkey else "Redis",
        product_version=str(valkey or version),
        role=str(info.get("role", "")),
        replicas=int(info.get("connected_slaves", 0)),
        used_memory_bytes=int(info.get("used_memory", 0)),
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        eviction_policy=str(info.get("maxmemory_policy", "")),
        append_only=str(info.get("aof_enabled", "0")) == "1",
        write_errors=tuple(name for name in failed if info.get(name, "ok") != "ok"),
    )
