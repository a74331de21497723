"""The index of the unfinished jobs of each pool, by priority and by the time of their submission.

A job that starts later is in it by the time at which it may start, and one that runs after others behind all
those. So until then it is behind all jobs that wait, and whoever reads the index up to now does not see it.

It is in other hash slots than the jobs' records, so no script changes both, and after a crash the two may
disagree. A job enters the index before it is published, and leaves it after its end. So a job that was
accepted is in the index, and so may be one that has ended or was refused; the sweep removes those
(``inferfleet.worker.sweep``). Workers enter the jobs that they hold again, in case Redis has lost the index.

A failover may forget the end of a job, but not that it has left the index: that may have been sent again to
the new master, or be on another node of a cluster. Or it forgets that a job has entered, but not the job. So
with each new connection, the jobs that entered or left lately enter again, and the sweep removes those that
have really ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from inferfleet.schemas.errors import InferfleetError, ServiceUnreachableError
from inferfleet.schemas.job import Job
from inferfleet.schemas.names import open_key
from inferfleet.wire.redis import pool_scripts
from inferfleet.wire.redis.clock import milliseconds
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import note_pool
from inferfleet.wire.redis.script import Argument

REMEMBERED_S = 10.0
"""For how long a job enters again: longer than a replica of Redis lags behind its master."""

NEVER_MS = 4 * 10**15
"""What is added to the time of jobs that run after others: nobody knows yet when they may start."""

LEAVE_S = 0.1
"""For how long jobs that leave are collected for one command. What gets lost meanwhile, the sweep removes."""

FLUSH_TIMEOUT_S = 1.0
"""How long a client that ends waits until the jobs that have left are out of the index."""

NOTE_S = 60.0
"""How often a process puts a pool on the list of pools."""

logger = logging.getLogger(__name__)


class OpenJobs:
    """Changes the index. Jobs that enter in one turn of the event loop, or leave soon, share a command."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self._entering: dict[tuple[str, int], tuple[list[Job], asyncio.Future[Any]]] = {}
        self._leaving: dict[str, list[str]] = {}
        self._noted: dict[str, float] = {}
        """When this process last put each pool on the list of pools."""
        self._lately: dict[tuple[str, str, int], tuple[float, int]] = {}
        """The jobs that have entered or left, by id, pool and priority, in the order in which they did:
        when, and when they may start."""
        pipeline.on_connect.append(self._enter_again)

    def enter(self, job: Job) -> asyncio.Future[Any]:
        """Enter a job. The future is shared by those that enter now: do not cancel it.

        It fails as those of ``CommandPipeline.enqueue`` do.
        """
        self.remember(job.id, pool=job.pool, priority=job.priority, not_before_ms=self._due_ms(job))
        return self._enter(job)

    def enter_all(self, jobs: Iterable[Job]) -> None:
        """Enter jobs that may be in the index already, and will enter again. Nobody waits for this."""
        for job in jobs:
            self._enter(job)

    def leave(self, job_id: str, *, pool: str, priority: int) -> None:
        """Remove a job that has ended. Nobody waits for this: the sweep makes up for it."""
        if not self._leaving:
            asyncio.get_running_loop().call_later(LEAVE_S, self._send_leaving)
        self._leaving.setdefault(open_key(pool, priority), []).append(job_id)
        self.remember(job_id, pool=pool, priority=priority)

    def displace(self, job_id: str, *, pool: str, priority: int) -> None:
        """Remove a job from here that is elsewhere in the index. Nobody waits for this, as for ``leave``."""
        # It is not over, so it must not enter here again.
        self._lately.pop((job_id, pool, priority), None)
        with suppress(ServiceUnreachableError):
            self._pipeline.enqueue("ZREM", open_key(pool, priority), job_id).add_done_callback(_report)

    async def entered_ms(self, job: Job) -> int | None:
        """Return the time by which a job is in the index; ``None`` if it is not there."""
        score: Any = await self._pipeline.execute("ZSCORE", open_key(job.pool, job.priority), job.id)
        return None if score is None else int(score)

    async def withdraw(self, job: Job, entered_ms: int) -> None:
        """Remove a job that its client takes back, unless it has entered again since ``entered_ms``."""
        self._lately.pop((job.id, job.pool, job.priority), None)
        key = open_key(job.pool, job.priority)
        await self._pipeline.execute(*pool_scripts.forget_open(key, job.id, entered_ms))

    async def flush(self) -> None:
        """Remove those that have left at once, because the caller is going to end. Never raises."""
        with suppress(InferfleetError, TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await asyncio.gather(*self._send_leaving())

    def remember(self, job_id: str, *, pool: str, priority: int, not_before_ms: int = 0) -> None:
        """Let a job enter again with a connection that is made soon: it has just entered or left."""
        now = time.monotonic()
        place = job_id, pool, priority
        # Behind the others, also if it was there.
        self._lately.pop(place, None)
        self._lately[place] = now, not_before_ms
        while self._lately[oldest := next(iter(self._lately))][0] < now - REMEMBERED_S:
            del self._lately[oldest]

    def _enter(self, job: Job) -> asyncio.Future[Any]:
        place = job.pool, job.priority
        group = self._entering.get(place)
        if group is None:
            loop = asyncio.get_running_loop()
            if not self._entering:
                loop.call_soon(self._send_entering)
            group = self._entering[place] = [], loop.create_future()
        group[0].append(job)
        return group[1]

    def _due_ms(self, job: Job) -> int:
        if job.after is not None:
            return NEVER_MS + self._pipeline.clock.now_ms()
        return 0 if job.not_before is None else milliseconds(job.not_before)

    def _send_entering(self) -> None:
        entering, self._entering = self._entering, {}
        now_ms = self._pipeline.clock.now_ms()
        for (pool, priority), (jobs, entered) in entering.items():
            entries: list[Argument] = []
            for job in jobs:
                # What the job says of its submission may be long ago, or yet to come.
                entries += (max(now_ms, self._due_ms(job)), job.id)
            try:
                # A job that is there may have been published again since: it keeps that place.
                sent = self._pipeline.enqueue("ZADD", open_key(pool, priority), "NX", *entries)
            except Exception as error:
                _fail(entered, error)
                continue
            sent.add_done_callback(partial(_pass_on, entered))

    def note_pool(self, pool: str) -> None:
        """Put the pool of an accepted job on the list of pools, now and then. Never raises.

        Only when RabbitMQ has its message: a caller may name pools that do not exist.
        """
        now = time.monotonic()
        if now - self._noted.get(pool, -NOTE_S) >= NOTE_S:
            self._noted[pool] = now
            with suppress(ServiceUnreachableError):
                # Nobody waits for it, and the process may end before: the next job notes the pool again.
                note_pool(self._pipeline, pool).add_done_callback(_ignore)

    def _send_leaving(self) -> list[asyncio.Future[Any]]:
        leaving, self._leaving = self._leaving, {}
        sent: list[asyncio.Future[Any]] = []
        for key, job_ids in leaving.items():
            # A client that has just been closed leaves its entry to the sweep.
            with suppress(ServiceUnreachableError):
                sent.append(self._pipeline.enqueue("ZREM", key, *job_ids))
                sent[-1].add_done_callback(_report)
        return sent

    def _enter_again(self) -> None:
        # The new connection may be to a server that has lost the ends of these jobs: the sweep removes them.
        self._leaving.clear()
        since, now_ms = time.monotonic() - REMEMBERED_S, self._pipeline.clock.now_ms()
        again: dict[str, list[Argument]] = {}
        for (job_id, pool, priority), (at, not_before_ms) in self._lately.items():
            if at >= since:
                entry = (max(now_ms, not_before_ms), job_id)
                again.setdefault(open_key(pool, priority), []).extend(entry)
        for key, entries in again.items():
            self._pipeline.enqueue("ZADD", key, "NX", *entries).add_done_callback(_report)


def _pass_on(to: asyncio.Future[Any], sent: asyncio.Future[Any]) -> None:
    if to.done():
        return
    if (error := sent.exception()) is not None:
        _fail(to, error)
    else:
        to.set_result(None)


def _fail(to: asyncio.Future[Any], error: BaseException) -> None:
    to.set_exception(error)
    # Not everybody waits for it.
    to.exception()


def _ignore(noted: asyncio.Future[Any]) -> None:
    if not noted.cancelled():
        noted.exception()


def _report(written: asyncio.Future[Any]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        logger.warning("cannot change the index of unfinished jobs (%s)", error)
