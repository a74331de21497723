"""Lists the unfinished jobs that meet conditions, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import compress
from operator import attrgetter
from typing import NamedTuple, cast

from inferfleet.producer.job_making import check_pool
from inferfleet.producer.job_pages import JobPage, Place
from inferfleet.schemas.errors import InvalidJobError, JobNotFoundError
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import JobState
from inferfleet.schemas.limits import LONGEST_S, wait_limit
from inferfleet.schemas.message import read_job
from inferfleet.schemas.problems import kind
from inferfleet.schemas.result import JobRecord
from inferfleet.wire.redis.clock import moment_of
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_listing import BEGINNING, PRIORITIES, Entry, not_empty, unfinished
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import read_pools

FRONT = 50
"""How many entries to read at once to find the first that waits: only those that run are before it."""

AT_ONCE = 64
"""How many jobs are cancelled, or how many requests are read, at the same time."""

PAGE_READS = 2000
"""How many entries of the index a page of a list may read, whether or not their jobs meet the conditions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Conditions on unfinished jobs, all of which have to hold. Those that are not given always hold.

    ``state`` is ``queued`` or ``running``. ``since`` and ``until`` are the times between which a job was
    accepted, or last published again, and ``older_than_s`` is the shortest time since then. For ``metadata``
    the whole request of each job is read, so it is slow, and finds only jobs whose requests are in Redis
    (``keep_requests``).
    """

    pool: str | None = None
    state: JobState | None = None
    priority: int | None = None
    session_id: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    older_than_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def check(self) -> None:
        """Raise ``InvalidJobError`` if no unfinished job can meet the conditions."""
        if self.pool is not None:
            check_pool(self.pool)
        if self.state is not None and self.state not in set(JobState):
            raise InvalidJobError(f"state: {self.state!r} is not one of queued, running")
        if self.state is not None and JobState(self.state).terminal:
            raise InvalidJobError(
                f"state: jobs that are {self.state} have ended, and only unfinished jobs can be listed: "
                "queued or running"
            )
        if self.priority is not None and self.priority not in PRIORITIES:
            raise InvalidJobError(f"priority: {self.priority!r} is not one of 0 to 9")
        for name in ("session_id", "tenant"):
            if not isinstance(value := getattr(self, name), str | None):
                raise InvalidJobError(f"{name}: must be a string, not {kind(value)}")
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and not (isinstance(moment, datetime) and moment.tzinfo):
                raise InvalidJobError(
                    f"{name}: must be a time with its time zone, such as datetime.now(UTC), not {moment!r}"
                )
        if self.older_than_s is not None:
            limit_s = wait_limit(self.older_than_s, name="older_than_s")
            if limit_s is not None and not 0 <= limit_s <= LONGEST_S:
                raise InvalidJobError(
                    f"older_than_s: {limit_s:g} is not a number of seconds from 0 to {LONGEST_S}"
                )
        # For callers without a type checker.
        metadata = cast("object", self.metadata)
        pairs = cast("Mapping[object, object]", metadata).items() if isinstance(metadata, Mapping) else None
        if pairs is None or not all(isinstance(text, str) for pair in pairs for text in pair):
            raise InvalidJobError("metadata: must be an object whose keys and values are strings")

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


class _Read(NamedTuple):
    """Some entries of an index, and the records of those jobs that meet the conditions."""

    entries: list[Entry]
    found: list[tuple[Entry, JobRecord]]


class JobListing:
    """Reads the index of unfinished jobs with their records."""

    def __init__(self, pipeline: CommandPipeline, records: JobReading) -> None:
        self._pipeline = pipeline
        self._records = records

    async def jobs(self, where: JobFilter) -> AsyncGenerator[JobRecord]:
        """Yield the jobs by pool, the most urgent first, and within a priority the oldest first."""
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
                for first in range(0, len(page), AT_ONCE):
                    ids = [record.id for record in page[first : first + AT_ONCE]]
                    states = await asyncio.gather(*map(cancel, ids), return_exceptions=True)
                    for job_id, state in zip(ids, states, strict=True):
                        if isinstance(state, JobState):
                            yield job_id, state
                    for state in states:
                        if not isinstance(state, JobState | JobNotFoundError):
                            raise state

    async def page(self, where: JobFilter, *, after: str | None, limit: int) -> JobPage:
        """Read at most ``limit`` jobs after a cursor, and about ``PAGE_READS`` entries of the index at most.

        A page may have fewer jobs, even none, and more may follow. Its cursor names a pool, and only a job of
        the page: the other jobs may be of other tenants.
        """
        begin = None if after is None else Place.at(after)
        jobs: list[JobRecord] = []
        read = 0
        for pool, priority in await self._indexes(where, begin):
            if read >= PAGE_READS:
                return JobPage(jobs, next=Place(pool, priority).cursor())
            behind = begin.entry if begin and (pool, priority) == begin[:2] else BEGINNING
            found: list[tuple[Entry, JobRecord]] = []
            async with aclosing(self._index(where, pool, priority, behind)) as pages:
                async for page in pages:
                    found += page.found
                    if len(jobs) + len(found) >= limit:
                        found = found[: limit - len(jobs)]
                        jobs += [record for _, record in found]
                        return JobPage(jobs, next=Place(pool, priority, found[-1][0]).cursor())
                    read += len(page.entries)
                    # The next page begins with a millisecond, so only where another one has begun.
                    since_ms = page.entries[-1].since_ms
                    if read >= PAGE_READS and since_ms > behind.since_ms:
                        jobs += [record for entry, record in found if entry.since_ms < since_ms]
                        return JobPage(jobs, next=Place(pool, priority, Entry("", since_ms)).cursor())
            jobs += [record for _, record in found]
            read += 1
        return JobPage(jobs, next=None)

    async def _pages(self, where: JobFilter) -> AsyncGenerator[list[JobRecord]]:
        for pool, priority in await self._indexes(where):
            async with aclosing(self._index(where, pool, priority)) as pages:
                async for page in pages:
                    yield [record for _, record in page.found]

    async def _indexes(self, where: JobFilter, begin: Place | None = None) -> list[tuple[str, int]]:
        """Return the pools and priorities that have jobs, in the order of the list."""
        pools = [where.pool] if where.pool is not None else await self.pools()
        priorities = PRIORITIES if where.priority is None else (where.priority,)
        indexes = [
            (pool, priority)
            for pool in pools
            for priority in priorities
            if begin is None or (pool, -priority) >= (begin.pool, -begin.priority)
        ]
        return await not_empty(self._pipeline, indexes)

    async def _index(
        self, where: JobFilter, pool: str, priority: int, behind: Entry = BEGINNING
    ) -> AsyncGenerator[_Read]:
        """Yield the entries of an index, with the records of those jobs that meet the conditions."""
        now_ms = self._pipeline.clock.now_ms()
        until_ms = [] if where.older_than_s is None else [now_ms - int(where.older_than_s * 1000)]
        if where.until is not None:
            until_ms.append(int(where.until.timestamp() * 1000))
        if where.since is not None:
            behind = max(behind, Entry("", int(where.since.timestamp() * 1000)), key=attrgetter("since_ms"))
        pages = unfinished(
            self._pipeline, pool, priority, behind=behind, until_ms=min(until_ms, default=None)
        )
        async with aclosing(pages):
            async for entries in pages:
                records = await self._records.get_many((entry.id for entry in entries), results=False)
                admitted = [
                    (entry, record)
                    for entry in entries
                    if (record := records[entry.id]) is not None and where.admits(record)
                ]
                found: list[tuple[Entry, JobRecord]] = []
                for first in range(0, len(admitted), AT_ONCE):
                    some = admitted[first : first + AT_ONCE]
                    have = await asyncio.gather(*(self._has(record, where) for _, record in some))
                    found += compress(some, have)
                yield _Read(entries, found)

    async def pools(self, heartbeats: list[Heartbeat] | None = None) -> list[str]:
        """Return the names of all pools that had a worker, a declaration or a job in the last 30 days.

        ``heartbeats`` are those of all workers, if the caller has read them.
        """
        listed = await read_pools(self._pipeline)
        if heartbeats is None:
            heartbeats = await read_heartbeats(self._pipeline)
        # Workers of version 0.2 are only on the health map.
        return sorted({*listed, *(worker.pool for worker in heartbeats)})

    async def oldest_waiting(self, pool: str) -> datetime | None:
        """Return when the oldest job that does not run began to wait; ``None`` if none waits."""
        oldest: int | None = None
        now_ms = self._pipeline.clock.now_ms()
        for priority in PRIORITIES:
            until_ms = now_ms if oldest is None else oldest
            front = unfinished(self._pipeline, pool, priority, until_ms=until_ms, page_size=FRONT)
            async with aclosing(front) as pages:
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
