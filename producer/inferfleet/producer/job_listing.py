"""Lists the unfinished jobs that meet conditions, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime

from inferfleet.producer.job_making import check_pool
from inferfleet.schemas.errors import InvalidJobError, JobNotFoundError
from inferfleet.schemas.job import JobState
from inferfleet.schemas.message import read_job
from inferfleet.schemas.result import JobRecord
from inferfleet.wire.redis.clock import moment_of
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_listing import PRIORITIES, unfinished
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import read_pools

AT_ONCE = 64
"""How many jobs are cancelled, or how many requests are read, at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Conditions on unfinished jobs, all of which have to hold. Those that are not given always hold.

    ``state`` is ``queued`` or ``running``. ``older_than_s`` is how long ago at least a job was accepted, or
    last published again. For ``metadata`` the whole request of each job is read, so it is slow, and finds
    only jobs whose requests are in Redis (``keep_requests``).
    """

    pool: str | None = None
    state: JobState | None = None
    priority: int | None = None
    session_id: str | None = None
    tenant: str | None = None
    older_than_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def check(self) -> None:
        """Raise ``InvalidJobError`` if no unfinished job can meet the conditions."""
        if self.pool is not None:
            check_pool(self.pool)
        if self.state is not None and self.state.terminal:
            raise InvalidJobError(
                f"state: jobs that are {self.state} have ended, and only unfinished jobs can be listed: "
                "queued or running"
            )
        if self.priority is not None and self.priority not in PRIORITIES:
            raise InvalidJobError(f"priority: {self.priority} is not one of 0 to 9")

    def admits(self, record: JobRecord) -> bool:
        """Return whether a record meets the conditions on records."""
        return (
            not record.state.terminal
            and self.state in {None, record.state}
            and self.session_id in {None, record.session_id}
            and self.tenant in {None, record.tenant}
        )


EVERY_JOB = JobFilter()
"""No condition."""


class JobListing:
    """Reads the index of unfinished jobs with their records."""

    def __init__(self, pipeline: CommandPipeline, records: JobReading) -> None:
        self._pipeline = pipeline
        self._records = records

    async def jobs(self, where: JobFilter) -> AsyncGenerator[JobRecord]:
        """Yield the jobs by pool, the most urgent first, and of a priority the oldest first."""
        async with aclosing(self._pages(where)) as pages:
            async for page in pages:
                for record in page:
                    yield record

    async def cancel(
        self, where: JobFilter, cancel: Callable[[str], Awaitable[JobState]]
    ) -> AsyncGenerator[tuple[str, JobState]]:
        """Cancel the jobs, some at a time. Yield their ids and states; not those that are gone.

        If one cannot be cancelled, raise its error behind the others of its time.
        """
        async with aclosing(self._pages(where)) as pages:
            async for page in pages:
                ids = [record.id for record in page]
                states = await asyncio.gather(*map(cancel, ids), return_exceptions=True)
                for job_id, state in zip(ids, states, strict=True):
                    if isinstance(state, JobState):
                        yield job_id, state
                for state in states:
                    if not isinstance(state, JobState | JobNotFoundError):
                        raise state

    async def _pages(self, where: JobFilter) -> AsyncGenerator[list[JobRecord]]:
        until_ms = None
        if where.older_than_s is not None:
            until_ms = self._pipeline.clock.now_ms() - int(where.older_than_s * 1000)
        for pool in [where.pool] if where.pool is not None else await self.pools():
            for priority in PRIORITIES if where.priority is None else (where.priority,):
                async with aclosing(unfinished(self._pipeline, pool, priority, until_ms=until_ms)) as pages:
                    async for page in pages:
                        found = await self._records.get_many((entry.id for entry in page), results=False)
                        admitted = [it for it in found.values() if it is not None and where.admits(it)]
                        for first in range(0, len(admitted), AT_ONCE):
                            records = admitted[first : first + AT_ONCE]
                            have = await asyncio.gather(*(self._has(it, where) for it in records))
                            yield [it for it, has in zip(records, have, strict=True) if has]

    async def pools(self) -> list[str]:
        """Return the names of all pools that had a worker, a declaration or a job in the last 30 days."""
        listed = await read_pools(self._pipeline)
        # Workers of version 0.2 are only on the health map.
        return sorted({*listed, *(worker.pool for worker in await read_heartbeats(self._pipeline))})

    async def oldest_waiting(self, pool: str) -> datetime | None:
        """Return when the oldest job that does not run began to wait; ``None`` if none waits."""
        oldest: int | None = None
        for priority in PRIORITIES:
            async with aclosing(unfinished(self._pipeline, pool, priority, until_ms=oldest)) as pages:
                async for page in pages:
                    states = await self._records.states(entry.id for entry in page)
                    if waiting := [it.since_ms for it in page if states[it.id] is JobState.QUEUED]:
                        oldest = waiting[0]
                        break
        return None if oldest is None else moment_of(oldest)

    async def _has(self, record: JobRecord, where: JobFilter) -> bool:
        if not where.metadata:
            return True
        body = await self._records.request(record.id)
        try:
            job = None if body is None else read_job(body)
        except InvalidJobError:
            return False
        return job is not None and where.metadata.items() <= job.metadata.items()
