"""Takes urgent jobs from the queue even while the worker's prefetch is full.

RabbitMQ delivers nothing to a consumer whose prefetch is full, so an urgent job would wait until a job ends.
Whoever publishes an urgent job announces it to the pool's workers. One whose engine is full takes the next
message of the queue beyond its prefetch, and the urgent job preempts a running one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Container
from contextlib import aclosing, suppress

from inferfleet.schemas import JobState
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.job_listing import Entry
from inferfleet.wire.redis.lost_messages import LostMessages
from inferfleet.worker.broker import Subscription
from inferfleet.worker.slots import Slots

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
"""How often a full worker looks for urgent jobs in the index of unfinished jobs: for those whose announcement
was lost, and those that another worker has put back into the queue."""

RETRY_INTERVAL_S = 0.02
"""How long a worker waits before it tries again to take an announced job that it did not get."""

TRIES = 5
"""How often a worker tries to take an announced job. One that it has not got by then is held by another
worker, waits in its session's lane, or has lost its message. After that, it tries once with each look."""

AT_MOST = 1000
"""How many jobs of each priority a worker looks at, the oldest first."""


class UrgentJobs:
    """Finds jobs of at least the priority ``least`` that wait in the pool's queue, and takes them.

    ``here`` are the jobs that the worker has.
    """

    def __init__(self, index: LostMessages, *, least: int, slots: Slots, here: Container[str]) -> None:
        self._index = index
        self._least = least
        self._slots = slots
        self._here = here
        self._looks_at = 0.0
        self._news = asyncio.Event()
        self._tries: dict[str, int] = {}
        """The jobs that may wait in the queue, and how often the worker has looked there for them."""
        self._outage = Outage()

    def announced(self, job_id: str) -> None:
        """Note that an urgent job was published."""
        if len(self._tries) < AT_MOST:
            self._tries[job_id] = 0
            self._news.set()

    async def take(self, subscription: Subscription) -> None:
        """Take urgent jobs from the queue while the engine is full, until cancelled."""
        while self._least < PRIORITY_LEVELS:
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_INTERVAL_S if self._tries else LOOK_INTERVAL_S):
                    await self._news.wait()
            if not self._slots.full:
                self._missed()
            if not self._slots.preemptible:
                continue
            try:
                await self._look()
            except (ServiceUnreachableError, ServiceRefusedError) as error:
                if self._outage.began():
                    logger.warning("cannot look for urgent jobs; retrying (%s)", error)
                continue
            self._outage.ended()
            while self._tries and self._slots.preemptible:
                # Shielded, because a message that arrived after the cancellation would stay here.
                if not await asyncio.shield(subscription.take_urgent(self._least)):
                    self._missed()
                    break
                # The message is being read; its job wants a slot when this continues.
                await asyncio.sleep(0)
                self._tries = {
                    job_id: tries for job_id, tries in self._tries.items() if job_id not in self._here
                }

    def _missed(self) -> None:
        """Count a try. RabbitMQ delivers a job by itself to a worker whose engine is not full."""
        self._tries = {job_id: tries + 1 for job_id, tries in self._tries.items() if tries + 1 < TRIES}

    async def _look(self) -> None:
        """Find the urgent jobs that may wait in the queue: those just announced, and all that are queued."""
        tries = self._tries
        if time.monotonic() >= self._looks_at:
            self._looks_at = time.monotonic() + LOOK_INTERVAL_S
            levels = await asyncio.gather(
                *(self._unfinished(priority) for priority in range(self._least, PRIORITY_LEVELS))
            )
            tries = {entry.id: TRIES - 1 for level in levels for entry in level} | tries
        known = [job_id for job_id in tries if tries[job_id] and job_id not in self._here]
        marks = await self._index.marks(known) if known else []
        queued = {job_id for job_id, mark in zip(known, marks, strict=True) if mark.state == JobState.QUEUED}
        self._tries = {
            job_id: its
            for job_id, its in (tries | self._tries).items()
            if job_id in queued or (not its and job_id not in self._here)
        }

    async def _unfinished(self, priority: int) -> list[Entry]:
        found: list[Entry] = []
        pages = self._index.unfinished(priority, until_ms=self._index.now_ms)
        async with aclosing(pages):
            async for page in pages:
                found += page
                if len(found) >= AT_MOST:
                    break
        return found
