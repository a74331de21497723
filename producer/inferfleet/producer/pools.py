"""Shows pools, and pauses them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from inferfleet.producer.job_listing import JobListing
from inferfleet.producer.job_making import check_pool
from inferfleet.schemas.errors import InvalidJobError, UnknownPoolError
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.names import dead_queue, job_queue
from inferfleet.schemas.pool import PoolStatus
from inferfleet.schemas.problems import printable
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_listing import count_unfinished
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import (
    note_pool,
    pause_pool,
    read_pool_settings,
    require_identity,
    resume_pool,
)

_IDENTITY = re.compile("[0-9a-f]{16}")


class Pools:
    """Reads the state of pools, each with a few commands, however many jobs it has."""

    def __init__(
        self,
        *,
        pipeline: CommandPipeline,
        listing: JobListing,
        waiting: Callable[[str], Awaitable[int | None]],
    ) -> None:
        self._pipeline = pipeline
        self._listing = listing
        self._waiting = waiting
        """Counts the messages in a queue."""

    async def all(self) -> list[PoolStatus]:
        """Read all pools that have a queue, a worker or an unfinished job."""
        heartbeats = await read_heartbeats(self._pipeline)
        names = await self._listing.pools(heartbeats)
        found = await asyncio.gather(*(self._read(pool, heartbeats) for pool in names))
        return [pool for pool in found if pool is not None]

    async def one(self, pool: str) -> PoolStatus:
        """Read one pool. Raises ``UnknownPoolError`` if it has no queue, no worker and no unfinished job."""
        check_pool(pool)
        status = await self._read(pool, await read_heartbeats(self._pipeline))
        if status is None:
            raise _unknown(pool, await self._listing.pools())
        return status

    async def pause(self, pool: str) -> None:
        """Pause a pool. Raises ``UnknownPoolError`` if it has no queue and is not on the list."""
        check_pool(pool)
        await self._require_known(pool)
        # A paused pool stays on the list, so that people see why nothing runs.
        await asyncio.gather(note_pool(self._pipeline, pool), pause_pool(self._pipeline, pool))

    async def resume(self, pool: str) -> bool:
        """Let a pool go on. Return whether it was paused. Raises as ``pause`` does."""
        check_pool(pool)
        # Read first: the script that resumes a pool leaves a key, and a mistyped name should not get one.
        if (await read_pool_settings(self._pipeline, pool)).paused_at is None:
            await self._require_known(pool)
            return False
        return await resume_pool(self._pipeline, pool)

    async def require_identity(self, pool: str, identity: str | None) -> None:
        """Require an identity of the models of a pool's workers, or none. Raises as ``pause`` does.

        Raises:
            InvalidJobError: No model can have this identity, so no worker would serve the pool.

        """
        check_pool(pool)
        # For callers without a type checker, too.
        if identity is not None and _IDENTITY.fullmatch(given := str(identity)) is None:
            raise InvalidJobError(
                f"identity: {printable(given)!r} is not one, which has 16 hexadecimal digits"
            )
        await self._require_known(pool)
        await asyncio.gather(
            note_pool(self._pipeline, pool), require_identity(self._pipeline, pool, identity)
        )

    async def _require_known(self, pool: str) -> None:
        # One that is declared is not on the list: a declaration does not need Redis.
        known = await self._listing.pools()
        if pool not in known and await self._waiting(job_queue(pool)) is None:
            raise _unknown(pool, known)

    async def _read(self, pool: str, heartbeats: list[Heartbeat]) -> PoolStatus | None:
        workers = tuple(worker for worker in heartbeats if worker.pool == pool)
        ready, dead_letters, settings, unfinished, oldest = await asyncio.gather(
            self._waiting(job_queue(pool)),
            self._waiting(dead_queue(pool)),
            read_pool_settings(self._pipeline, pool),
            count_unfinished(self._pipeline, pool),
            self._listing.oldest_waiting(pool),
        )
        if ready is None and not workers and not unfinished:
            return None
        now = self._pipeline.clock.now()
        return PoolStatus(
            pool=pool,
            paused_at=settings.paused_at,
            queue_max_length=settings.queue_max_length,
            required_identity=settings.required_identity,
            ready=ready,
            held=sum(worker.running + worker.waiting + worker.held for worker in workers),
            dead_letters=dead_letters,
            unfinished=unfinished,
            oldest_waiting_s=None if oldest is None else max(0.0, (now - oldest).total_seconds()),
            workers=workers,
        )


def _unknown(pool: str, known: list[str]) -> UnknownPoolError:
    return UnknownPoolError(
        f"there is no pool {pool!r}: it has no queue, and no worker or job has named it lately; known are "
        f"{', '.join(known) or 'none'}"
    )
