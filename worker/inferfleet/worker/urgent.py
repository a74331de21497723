"""Takes urgent jobs from the queue even while the worker's prefetch is full.

RabbitMQ delivers nothing to a consumer whose prefetch is full, so an urgent job would wait until a job ends.
The worker finds the urgent job in the index of unfinished jobs, takes the next message of the queue beyond
its prefetch, and the urgent job preempts a running one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container

from inferfleet.schemas import JobState
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.lost_messages import LostMessages
from inferfleet.worker.broker import Subscription
from inferfleet.worker.slots import Slots

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.05
"""How often a worker looks for urgent jobs while its engine is full."""

TRIES = 10
"""How often a worker tries to take an urgent job from the queue. A job that it has not got by then is held by
another worker, waits in its session's lane, or has lost its message."""

AT_ONCE = 100
"""How many jobs of each priority a worker reads from the index at once."""

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
        self._last_read: set[str] = set()
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
        now_ms, from_ms = self._index.now_ms, self._read_to_ms - OVERLAP_MS
        levels = await asyncio.gather(
            *(
                self._index.open_jobs(priority, from_ms=from_ms, below_ms=now_ms + OVERLAP_MS, limit=AT_ONCE)
                for priority in range(self._least, PRIORITY_LEVELS)
            )
        )
        self._read_to_ms = min(
            [now_ms, *(level[-1].published_ms for level in levels if len(level) == AT_ONCE)]
        )
        read = {job.id for level in levels for job in level}
        candidates = [
            *(job_id for job_id, tries in self._tries.items() if tries < TRIES),
            *(read - self._last_read - self._tries.keys()),
        ]
        self._last_read = read
        marks = await self._index.marks(candidates)
        self._tries = {
            job_id: self._tries.get(job_id, 0)
            for job_id, mark in zip(candidates, marks, strict=True)
            if mark.state == JobState.QUEUED and job_id not in self._here
        }
