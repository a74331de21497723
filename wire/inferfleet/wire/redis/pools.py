"""The list of pools, and what is set for one: whether it is paused, which model its workers must have."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime
from typing import Any, NamedTuple

from inferfleet.schemas.names import POOLS_KEY, pool_key
from inferfleet.wire.redis import pool_scripts, process_scripts
from inferfleet.wire.redis.clock import moment_of
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.script import Argument

LISTED_S = 30 * 24 * 3600
"""How long a pool stays on the list that no worker, declaration or job has named since."""


class PoolSettings(NamedTuple):
    """What is set for a pool, for all processes. ``paused_at`` is ``None`` unless the pool is paused.

    ``required_identity`` is the identity that a worker's model must have, ``None`` if any will do.
    """

    paused_at: datetime | None
    queue_max_length: int | None
    required_identity: str | None = None


def note_pool(pipeline: CommandPipeline, pool: str) -> asyncio.Future[Any]:
    """Put a pool on the list. The future fails as those of ``CommandPipeline.enqueue`` do."""
    return pipeline.enqueue(*process_scripts.seen(POOLS_KEY, member=pool, listed_s=LISTED_S))


async def read_pools(pipeline: CommandPipeline) -> list[str]:
    """Read the names on the list, sorted."""
    listed: Any = await pipeline.execute("ZRANGE", POOLS_KEY, 0, -1)
    return sorted(name.decode() for name in listed)


async def read_pool_settings(pipeline: CommandPipeline, pool: str) -> PoolSettings:
    """Read what is set for a pool."""
    paused_ms, limit, identity = await asyncio.gather(
        pipeline.enqueue("HGET", pool_key(pool), "paused"),
        pipeline.enqueue("HGET", pool_key(pool), "queue_max_length"),
        pipeline.enqueue("HGET", pool_key(pool), "required_identity"),
    )
    return PoolSettings(
        moment_of(int(paused_ms)) if paused_ms else None,
        int(limit) if limit else None,
        identity.decode() if identity else None,
    )


async def pause_pool(pipeline: CommandPipeline, pool: str) -> None:
    """Pause a pool: its workers start no jobs until it is resumed."""
    await _change(pipeline, pool, "paused", pipeline.clock.now_ms())


async def resume_pool(pipeline: CommandPipeline, pool: str) -> bool:
    """Let a paused pool go on. Return whether it was paused."""
    return await _change(pipeline, pool, "paused", "")


async def require_identity(pipeline: CommandPipeline, pool: str, identity: str | None) -> None:
    """Let only workers take jobs of a pool whose model has this identity; with ``None`` all workers."""
    await _change(pipeline, pool, "required_identity", identity or "")


async def _change(pipeline: CommandPipeline, pool: str, field: str, value: Argument) -> bool:
    """Set a field of a pool, or clear it with ``""``. Return whether it was set before."""
    command = pool_scripts.pool_change(pool_key(pool), field=field, value=value, change=new_change())
    return bool(await pipeline.execute(*command))


def new_change() -> str:
    """Make an id of a change, by which it is known if it is sent again."""
    return os.urandom(8).hex()
