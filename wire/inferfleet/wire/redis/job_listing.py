"""Lists the unfinished jobs of a pool from their index, in pages, however many there are.

Only the index says which jobs exist, so those that have ended cannot be listed. An entry may be left behind
by a job that has ended: its record says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import compress
from typing import NamedTuple

from inferfleet.schemas.names import PRIORITY_LEVELS, open_key
from inferfleet.wire.redis import pool_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline

PAGE = 500
"""How many entries to read at once."""

PRIORITIES = tuple(reversed(range(PRIORITY_LEVELS)))
"""All priorities, the most urgent first."""


class Entry(NamedTuple):
    """A job in the index. ``since_ms`` is when it entered, was last published again, or may start."""

    id: str
    since_ms: int


BEGINNING = Entry("", 0)
"""Stands before all entries."""


async def count_unfinished(pipeline: CommandPipeline, pool: str) -> dict[int, int]:
    """Count the unfinished jobs of a pool by priority, the most urgent first, without priorities of none.

    Jobs that may not start yet do not count.
    """
    now_ms = pipeline.clock.now_ms()
    counts = await asyncio.gather(
        *(pipeline.enqueue("ZCOUNT", open_key(pool, priority), "-inf", now_ms) for priority in PRIORITIES)
    )
    return {priority: int(count) for priority, count in zip(PRIORITIES, counts, strict=True) if count}


async def not_empty(pipeline: CommandPipeline, indexes: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return those indexes, of a pool and a priority, that have jobs, in one round trip."""
    counts = await asyncio.gather(
        *(pipeline.enqueue("ZCARD", open_key(pool, priority)) for pool, priority in indexes)
    )
    return list(compress(indexes, counts))


async def unfinished(
    pipeline: CommandPipeline,
    pool: str,
    priority: int,
    *,
    behind: Entry = BEGINNING,
    until_ms: int | None = None,
    page_size: int | None = None,
) -> AsyncGenerator[list[Entry]]:
    """Yield the unfinished jobs of a priority after an entry, in pages, the oldest first.

    The entry may have left the index; without an id, it stands before all of its millisecond. ``until_ms``
    leaves out those that entered later. A job that is published again meanwhile moves to the end, and may
    come twice.
    """
    limit = page_size or PAGE
    while True:
        _, entries = await _read(pipeline, open_key(pool, priority), behind, limit=limit)
        if page := [entry for entry in entries if until_ms is None or entry.since_ms <= until_ms]:
            yield page
        if len(page) < limit:
            return
        behind = page[-1]


async def count_ahead(pipeline: CommandPipeline, pool: str, priority: int, job_id: str) -> int | None:
    """Count the unfinished jobs before one: the more urgent, and those of its priority that entered earlier.

    ``None`` if the job is not in the index.
    """
    key = open_key(pool, priority)
    counts, since_ms = await asyncio.gather(
        count_unfinished(pipeline, pool), pipeline.enqueue("ZSCORE", key, job_id)
    )
    if since_ms is None:
        return None
    with_it, _ = await _read(pipeline, key, Entry(job_id, int(float(since_ms))), limit=1)
    # It may have left the index just now.
    return sum(count for more, count in counts.items() if more > priority) + max(0, with_it - 1)


async def _read(pipeline: CommandPipeline, key: str, behind: Entry, *, limit: int) -> tuple[int, list[Entry]]:
    """Count the entries of an index up to one, and read those after it."""
    before, *found = await pipeline.execute(
        *pool_scripts.open_behind(key, behind_ms=behind.since_ms, behind_id=behind.id, limit=limit)
    )
    return before, [
        Entry(job_id.decode(), int(float(score)))
        for job_id, score in zip(found[::2], found[1::2], strict=True)
    ]
