"""Reads the records of a tenant a page at a time, from a sorted set of ids that sort by time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from inferfleet.wire.redis.pipeline import CommandPipeline

T = TypeVar("T")

READ_AT_ONCE: Final = 1000


class Page(NamedTuple, Generic[T]):
    """Some records, and whether more follow."""

    records: list[T]
    more: bool


async def read_page(
    pipeline: CommandPipeline,
    key: str,
    read: Callable[[str], Awaitable[T | None]],
    *,
    after: str | None,
    limit: int,
    newest_first: bool = True,
    wanted: Callable[[T], bool] = lambda _: True,
) -> Page[T]:
    """Read at most ``limit`` wanted records after the id ``after``, which may be gone.

    Ids whose records have expired are removed from the set.
    """
    found: list[T] = []
    at_once = min(READ_AT_ONCE, limit + 1)
    while True:
        edge = ("(" + after) if after is not None else ("+" if newest_first else "-")
        span = (edge, "-") if newest_first else (edge, "+")
        how = ("BYLEX", "REV") if newest_first else ("BYLEX",)
        members: Any = await pipeline.execute("ZRANGE", key, *span, *how, "LIMIT", 0, at_once)
        ids = [member.decode() for member in members]
        records = await asyncio.gather(*map(read, ids))
        if gone := [member for member, record in zip(ids, records, strict=True) if record is None]:
            await pipeline.execute("ZREM", key, *gone)
        for record in records:
            if record is not None and wanted(record):
                if len(found) == limit:
                    return Page(found, more=True)
                found.append(record)
        if len(ids) < at_once:
            return Page(found, more=False)
        after = ids[-1]
        at_once = min(READ_AT_ONCE, 2 * at_once)
