"""Takes urgent jobs from the queue even while the worker's prefetch is full.

RabbitMQ delivers nothing to a consumer whose prefetch is full, so an urgent job would wait until a job ends.
The worker finds the urgent job in the index of unfinished jobs, takes the next message of the queue beyond
its prefetch, and the urgent job preempts a running one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Container
from contextlib import aclosing

from inferfleet.schemas import JobState
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.job_listing import Entry
from inferfleet.wire.redis.lost_messages import LostMessages
from inferfleet.worker.broker import Subscription
from inferfleet.worker.slots import Slots

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.05
"""How often a worker looks for new urgent jobs while its engine is full."""

LOOK_BACK_INTERVAL_S = 1.0
"""How often it looks for all urgent jobs, also for those that another worker has put back into the queue."""

TRIES = 10
"""How often a worker tries to take a new urgent job from the queue. A job that it has not got by then is held
by another worker, waits in its session's lane, or has lost its message. After that, it tries once with each
look back."""

AT_MOST = 1000
"""How many jobs of each priority a worker looks at, the oldest first."""

OVERLAP_MS = 1000
"""By how much the clocks of two processes that enter jobs into the index may differ."""


class UrgentJobs:
    """Finds jobs of at least the priority ``least`` that wait in the pool's queue, and takes them.

    ``here`` are the jobs that the worker has.
    """

    def __init__(self, index: LostMessages, *, least: int, slots: Slots, here: Container[str]) -> None:
        self._index = index
        self._least = least
        self._slots = slots
        self._here = here
        self._read_to_ms = 0
        self._looks_back_at = 0.0
        self._recent: set[str] = set()
        """The jobs that were new in the last look."""
        self._tries: dict[str, int] = {}
        """The jobs that may wait in the queue, and how often the worker has looked there for them."""
        self._outage = Outage()

    async def take(self, subscription: Subscription) -> None:
        """Take urgent jobs from the queue while the engine is full, until cancelled."""
        while self._least < PRIORITY_LEVELS:
            await asyncio.sleep(LOOK_INTERVAL_S)
            if not self._slots.full:
                self._read_to_ms = self._index.now_ms
                continue
            # A job that had run too briefly may have become preemptible for an urgent one that waits here.
            self._slots.preempt()
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
                    self._tries = {job_id: tries + 1 for job_id, tries in self._tries.items()}
                    break
                # The message is being read; its job wants a slot when this continues.
                await asyncio.sleep(0)
                self._tries = {
                    job_id: tries for job_id, tries in self._tries.items() if job_id not in self._here
                }

    async def _look(self) -> None:
        """Find the urgent jobs that may wait in the queue."""
        now_ms, since_ms = self._index.now_ms, self._read_to_ms - OVERLAP_MS
        looks_back = time.monotonic() >= self._looks_back_at
        levels = await asyncio.gather(
            *(
                self._entered_since(0 if looks_back else since_ms, priority)
                for priority in range(self._least, PRIORITY_LEVELS)
            )
        )
        self._read_to_ms = now_ms
        found = [entry for level in levels for entry in level]
        recent = {entry.id for entry in found if entry.since_ms >= since_ms}
        tries = {job_id: tries for job_id, tries in self._tries.items() if tries < TRIES}
        tries = dict.fromkeys(recent - self._recent, 0) | tries
        if looks_back:
            self._looks_back_at = time.monotonic() + LOOK_BACK_INTERVAL_S
            tries = {entry.id: TRIES - 1 for entry in found} | tries
        self._recent = recent
        candidates = [job_id for job_id in tries if job_id not in self._here]
        marks = await self._index.marks(candidates)
        self._tries = {
            job_id: tries[job_id]
            for job_id, mark in zip(candidates, marks, strict=True)
            if mark.state == JobState.QUEUED
        }

    async def _entered_since(self, since_ms: int, priority: int) -> list[Entry]:
        found: list[Entry] = []
        async with aclosing(self._index.entered_since(since_ms, priority)) as pages:
            async for page in pages:
                found += page
                if len(found) >= AT_MOST:
                    break
        return found
