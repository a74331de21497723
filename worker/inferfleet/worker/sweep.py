"""Publishes jobs again whose messages RabbitMQ has lost, or whose ends Redis has lost.

Every worker reports regularly which messages it holds, and one of them sweeps the pool. It looks only at the
jobs that the queue cannot have any more, as ``inferfleet.wire.redis.lost_messages`` explains. Such a job has
lost its message if no worker holds the job or its message, and nobody has held it since the queue was seen
without it. The sweep may be wrong, for example when messages come back from a dead worker while all others
are busy. Then the job has two messages, which does no harm, because the fence lets only one run.

A sweep reads and publishes a limited number of jobs, and the next one continues where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import aclosing
from itertools import count

from inferfleet.schemas import Job
from inferfleet.schemas.errors import (
    ConfigurationError,
    PublishUnconfirmedError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.names import PRIORITY_LEVELS, job_queue
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.rabbitmq.confirms import NackedError, RefusedError
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.followers import Followers, Looked
from inferfleet.wire.redis.job_listing import Entry
from inferfleet.wire.redis.lost_messages import Front, LostMessages, Marks, OpenJob, Revival, SweepTurn
from inferfleet.wire.redis.open_jobs import NEVER_MS, OpenJobs
from inferfleet.wire.redis.session_lanes import SessionLanes
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.lanes import LaneAdvance
from inferfleet.worker.processor import Processor
from inferfleet.worker.republishing import Republishing

logger = logging.getLogger(__name__)

REPORTS_PER_INTERVAL = 4
"""How often a worker reports in each ``sweep_interval_s``. A job is published again two reports after the
queue was seen without it, at the earliest."""

BATCH = 500
"""How many jobs a sweep reads at once."""

SHARE = 0.1
"""For how much of its time a worker at most reads jobs of which none was lost. The next sweep continues."""

FOLLOWERS = 100
"""How many jobs of a priority that run after others a sweep looks at. The next sweep continues."""

AT_ONCE = 64
"""How many jobs are published at the same time."""

UNPUBLISHED = (
    ServiceUnreachableError,
    ServiceRefusedError,
    PublishUnconfirmedError,
    RefusedError,
    ConfigurationError,
    OSError,
)
"""Why jobs cannot be published again now."""

_FOR_ALL = (ServiceUnreachableError, PublishUnconfirmedError, NackedError)
"""RabbitMQ is unreachable, or the queue is full."""


class Sweep:
    """The part of one worker in the sweeps of its pool."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        lost_messages: LostMessages,
        open_jobs: OpenJobs,
        session_lanes: SessionLanes,
        lanes: LaneAdvance,
        confirm_channel: ConfirmChannel,
        republishing: Republishing,
        fronts: Fronts,
        processor: Processor,
        hooks: Hooks,
        followers: Followers,
    ) -> None:
        self._settings = settings
        self._lost_messages = lost_messages
        self._open_jobs = open_jobs
        self._session_lanes = session_lanes
        self._lanes = lanes
        self._confirm_channel = confirm_channel
        self._republishing = republishing
        self._fronts = fronts
        self._processor = processor
        self._hooks = hooks
        self._followers = followers
        self._followed: dict[int, Entry] = {}
        """By priority, the job that runs after others behind which to look next."""
        self._pause_s = settings.sweep_interval_s / REPORTS_PER_INTERVAL
        self._name = f"sweep-{settings.worker_id}:{os.urandom(4).hex()}"
        self._calls = count()
        self._failing = Outage()
        self._unkept: dict[int, set[str]] = {}
        """By priority, lost jobs without a request in Redis, since the index was read from its start."""
        self._told_unkept = 0
        self._errors: list[Exception] = []
        self._passed_over: set[str] = set()
        """Ended turns behind which the current sweep has let the next one run."""

    async def run(self) -> None:
        """Report and sweep until cancelled."""
        while True:
            await asyncio.sleep(self._pause_s)
            try:
                await self._report_and_sweep()
            except UNPUBLISHED as error:
                if self._failing.began():
                    logger.warning("cannot look for jobs that have lost their messages; retrying (%s)", error)
            except Exception:
                if self._failing.began():
                    logger.exception("cannot look for jobs that have lost their messages; retrying")
            else:
                if (lasted_s := self._failing.ended()) is not None:
                    logger.warning("looking for lost jobs works again after %.1f s", lasted_s)
            finally:
                self._fronts.age()

    async def _report_and_sweep(self) -> None:
        # In case Redis has lost the index.
        self._open_jobs.enter_all(run.job for run in self._processor.runs.values())
        turn = await self._lost_messages.report(
            sweeper=f"{self._name}:{next(self._calls)}",
            lease_s=self._pause_s * 0.9,
            held=self._processor.held,
            held_s=self._pause_s * 2.5,
            fronts=self._fronts.aged(),
        )
        if turn is None:
            return
        # Nobody may wait for this worker's next report for long.
        try:
            async with asyncio.timeout(self._pause_s):
                await self._sweep_all(turn)
        except TimeoutError as error:
            told = f"a sweep takes more than {self._pause_s:g} s, a quarter of INFERFLEET_SWEEP_INTERVAL_S"
            raise TimeoutError(told) from error

    async def _sweep_all(self, turn: SweepTurn) -> None:
        await self._look_at_queue()
        self._passed_over.clear()
        self._errors.clear()
        deadline = time.monotonic() + self._pause_s * SHARE
        for priority, front in turn.fronts.items():
            await self._sweep(turn, priority, front, deadline)
            if self._cannot_publish:
                break
        await self._look_at_followers()
        unkept = sum(map(len, self._unkept.values()))
        if unkept > self._told_unkept:
            logger.warning(
                "cannot publish jobs again whose messages were lost, because Redis does not have their "
                "requests (INFERFLEET_KEEP_REQUESTS): %d",
                unkept,
            )
        self._told_unkept = unkept
        if self._errors:
            raise self._errors[0]

    async def _look_at_followers(self) -> None:
        """Look at some jobs that run after others, in case nobody has let them go on."""
        for priority in range(PRIORITY_LEVELS):
            behind = self._followed.pop(priority, Entry("", NEVER_MS))
            entries: list[Entry] = []
            reading = self._lost_messages.unfinished(priority, behind=behind, page_size=FOLLOWERS)
            async with aclosing(reading) as pages:
                entries = await anext(pages, entries)
            if len(entries) == FOLLOWERS:
                self._followed[priority] = entries[-1]
            jobs = [OpenJob(entry.id, entry.since_ms, 0) for entry in entries]
            marks = await self._lost_messages.marks(job.id for job in jobs)
            over = [job for job, its in zip(jobs, marks, strict=True) if its.over]
            await self._lost_messages.forget(priority, over)
            waiting = (self._look_at_follower(job.id) for job in jobs if job not in over)
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(outcome, Exception):
                    self._errors.append(outcome)
                elif outcome is not None:
                    raise outcome

    async def _look_at_follower(self, job_id: str) -> None:
        if await self._followers.look(job_id) is Looked.ENDED:
            await self._followers.ended(job_id)

    @property
    def _cannot_publish(self) -> bool:
        """Whether the other jobs of this sweep would fare no better, and wait for the next one."""
        return any(isinstance(error, _FOR_ALL) for error in self._errors)

    async def _look_at_queue(self) -> None:
        """Note if the queue is empty. Without its leader, a quorum queue only looks empty."""
        asked = time.monotonic()
        depth = await self._confirm_channel.depth(job_queue(self._settings.pool))
        if depth is not None and not depth.ready and depth.consumers:
            self._fronts.empty(asked)

    async def _sweep(self, turn: SweepTurn, priority: int, front: Front, deadline: float) -> None:
        """Look at the jobs of a priority that the queue cannot have any more."""
        below_ms = self._certain_before_ms(front)
        begun = cursor = turn.cursors.get(priority)
        if cursor is None:
            self._unkept.pop(priority, None)
        progressed = True
        while progressed:
            jobs = await self._lost_messages.open_jobs(
                priority, from_ms=cursor or 0, below_ms=below_ms, limit=BATCH
            )
            progressed = await self._look_at(jobs, priority, front) or time.monotonic() < deadline
            if self._cannot_publish:
                break
            if len(jobs) < BATCH:
                cursor = None
                break
            # Many jobs may have been published in the same millisecond, but hardly a batch of them.
            cursor = max(jobs[-1].published_ms, (cursor or 0) + 1)
        if cursor != begun:
            await self._lost_messages.stopped_at(priority, cursor)

    async def _look_at(self, jobs: Sequence[OpenJob], priority: int, front: Front) -> bool:
        """Publish the lost ones of these jobs, and remove from the index what has ended or is elsewhere.

        Returns whether any job was published or removed.
        """
        marks = await self._lost_messages.marks(job.id for job in jobs)
        over = [job for job, its in zip(jobs, marks, strict=True) if its.over]
        await self._lost_messages.forget(priority, over)
        pool = self._settings.pool
        here: list[tuple[OpenJob, Marks]] = []
        elsewhere: list[OpenJob] = []
        for job, its in zip(jobs, marks, strict=True):
            if its.over:
                continue
            if its.elsewhere(pool=pool, priority=priority):
                elsewhere.append(job)
            else:
                here.append((job, its))
        await self._lost_messages.displace(priority, elsewhere)
        for job in over:
            self._open_jobs.remember(job.id, pool=pool, priority=priority)
        lost = [(job, its) for job, its in here if max(job.held_ms, its.had_until_ms) < front.delivered_ms]
        published = 0
        for first in range(0, len(lost), AT_ONCE):
            done = await asyncio.gather(
                *(self._bring_back(job, its, priority, front) for job, its in lost[first : first + AT_ONCE]),
                return_exceptions=True,
            )
            for outcome in done:
                if isinstance(outcome, Exception):
                    self._errors.append(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    published += outcome
            if self._cannot_publish:
                break
        if published:
            logger.warning("published jobs again whose messages were lost: %d", published)
            self._hooks.on_republish(published)
        return bool(over or elsewhere or published)

    async def _bring_back(self, job: OpenJob, marks: Marks, priority: int, front: Front) -> bool:
        """Publish a lost job. Return false if it is not lost after all, or cannot be published."""
        stub = self._republishing.stub(job.id, marks, priority=priority)
        had_ms = max(job.held_ms, marks.had_until_ms)
        if stub.session_id is not None:
            if not await self._may_be_in_front(stub, front, had_ms):
                return False
        elif self._settings.warm_prompt_chars and (
            self._in_pools_queue_ms(job.published_ms, had_ms) >= self._certain_before_ms(front)
        ):
            return False
        match await self._republishing.publish(stub, marks):
            case Revival.CHANGED:
                return False
            case Revival.UNKEPT:
                self._unkept.setdefault(priority, set()).add(job.id)
                return False
            case Revival.REVIVED:
                return True

    async def _may_be_in_front(self, turn: Job, front: Front, had_ms: int) -> bool:
        """Return whether a turn is in front, and was before the queue was seen without it.

        If the one in front has ended, let the next one run.
        """
        assert turn.session_id is not None  # noqa: S101 - the caller has checked
        owner, since_ms = await self._session_lanes.owner(turn.session_id)
        if owner and owner != turn.id:
            await self._pass_over(turn.model_copy(update={"id": owner}), since_ms)
            return False
        # Its place in the queue is of that time, however early it was submitted.
        return not owner or self._in_pools_queue_ms(since_ms, had_ms) < self._certain_before_ms(front)

    def _in_pools_queue_ms(self, published_ms: int, had_ms: int) -> int:
        """Return from when a job has its place in the pool's queue, at the latest."""
        if not self._settings.warm_wait_s:
            return published_ms
        # It may have been in a worker's own queue, and what comes from there gets the last place.
        return max(published_ms + int(self._settings.warm_wait_s * 1000), had_ms)

    async def _pass_over(self, owner: Job, since_ms: int) -> None:
        """Let the turn after this one run, if it has ended and nobody is about to do that."""
        (marks,) = await self._lost_messages.marks([owner.id])
        ended_ago_ms = self._lost_messages.now_ms - int(marks.finished_at or since_ms)
        if not marks.over or ended_ago_ms < 2 * self._pause_s * 1000 or owner.id in self._passed_over:
            return
        self._passed_over.add(owner.id)
        logger.warning("publishing the turn after job %s, because its message was lost", owner.id)
        # If its queue is full, a later sweep finds it.
        await self._lanes.let_next_run(owner, witness=owner)

    def _certain_before_ms(self, front: Front) -> int:
        """Return when a job must have been published so that the queue cannot have it behind this front."""
        # Some producers need more time than others from the record to the queue.
        return front.entered_ms - int(self._pause_s * 1000)
