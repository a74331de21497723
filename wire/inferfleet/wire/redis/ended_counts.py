"""The counts of a pool's jobs that have ended, to which all its workers add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inferfleet.schemas.ended_counts import EndedCounts
from inferfleet.schemas.names import ended_call_key, ended_key
from inferfleet.wire.redis import pool_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.script import Argument

TTL_S: Final = 30 * 24 * 3600
"""How long the counts stay after the last job was added."""

CALL_TTL_S: Final = 3600
"""For how long an addition that is sent again is recognized."""


async def add_counts(pipeline: CommandPipeline, pool: str, counts: Mapping[str, int], *, call: str) -> None:
    """Add to the counts. ``call`` is unique to this addition.

    The names of times are ``first_token:BUCKET`` and ``wait:BUCKET``.
    """
    fields: list[Argument] = [part for pair in counts.items() for part in pair]
    command = pool_scripts.ended_add(
        ended_key(pool), ended_call_key(pool, call), *fields, call_ttl_s=CALL_TTL_S, ttl_s=TTL_S
    )
    await pipeline.execute(*command)


async def read_counts(pipeline: CommandPipeline, pool: str) -> EndedCounts:
    """Read the counts of a pool."""
    found: dict[bytes, bytes] = await pipeline.execute("HGETALL", ended_key(pool))
    counted: dict[str, int] = {}
    timed: dict[str, dict[int, int]] = {"first_token": {}, "wait": {}}
    for field, count in found.items():
        name, _, bucket = field.decode().partition(":")
        if not bucket:
            counted[name] = int(count)
        elif name in timed:
            timed[name][int(bucket)] = int(count)
    return EndedCounts.model_validate(counted | timed)
