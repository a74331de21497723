"""Lists the unfinished jobs of a pool from their index, in pages, however many there are.

Only the index says which jobs exist, so those that have ended cannot be listed. An entry may be left behind
by a job that has ended: its record says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import chain
from typing import Any, NamedTuple

from inferfleet.schemas.names import PRIORITY_LEVELS, open_key
from inferfleet.wire.redis.pipeline import CommandPipeline

PAGE = 500
"""How many entries to read at once."""

PRIORITIES = tuple(reversed(range(PRIORITY_LEVELS)))
"""All priorities, the most urgent first."""


class Entry(NamedTuple):
    """A job in the index. ``since_ms`` is when it entered, or was last published again."""

    id: str
    since_ms: int


async def count_unfinished(pipeline: CommandPipeline, pool: str) -> dict[int, int]:
    """Count the unfinished jobs of a pool by priority, the most urgent first, without priorities of none."""
    counts = await asyncio.gather(
        *(pipeline.enqueue("ZCARD", open_key(pool, priority)) for priority in PRIORITIES)
    )
    return {priority: int(count) for priority, count in zip(PRIORITIES, counts, strict=True) if count}


async def unfinished(
    pipeline: CommandPipeline, pool: str, priority: int, *, until_ms: int | None = None
) -> AsyncGenerator[list[Entry]]:
    """Yield the unfinished jobs of a priority in pages, the oldest first.

    ``until_ms`` leaves out those that entered later. A job that is published again meanwhile moves to the
    end, and may come twice.
    """
    last_ms = 0
    seen: set[str] = set()
    """The entries of that millisecond that were yielded."""
    while True:
        # Many jobs may have entered in the same millisecond, so a page begins with those of the last one.
        limit = PAGE + len(seen)
        answer: Any = await pipeline.execute(
            *("ZRANGE", open_key(pool, priority), last_ms, "+inf" if until_ms is None else until_ms),
            *("BYSCORE", "LIMIT", 0, limit, "WITHSCORES"),
        )
        # By RESP3, each member and its score are a pair.
        flat: list[Any] = answer if answer and isinstance(answer[0], bytes) else [*chain(*answer)]
        found = [
            Entry(job_id.decode(), int(float(score)))
            for job_id, score in zip(flat[::2], flat[1::2], strict=True)
        ]
        if page := [entry for entry in found if entry.id not in seen]:
            yield page
        if len(found) < limit:
            return
        if found[-1].since_ms != last_ms:
            last_ms = found[-1].since_ms
            seen.clear()
        seen |= {entry.id for entry in found if entry.since_ms == last_ms}
