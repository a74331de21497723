"""Keeps jobs from starving: a share of the starts goes to the job that has waited longest.

RabbitMQ delivers the most urgent job, so under a steady load of urgent jobs others would wait for ever.
After every so many starts, the worker publishes the job that has waited longest once more, with a priority
just below that of jobs that preempt. The first of its two messages runs, and the other one is acked when it
arrives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from typing_extensions import override

from inferfleet.schemas import JobState
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.job_listing import BEGINNING, Entry
from inferfleet.wire.redis.lost_messages import LostMessages, Marks, Revival
from inferfleet.wire.redis.session_lanes import SessionLanes
from inferfleet.worker.attempt_metrics import AttemptMetrics
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.republishing import Republishing
from inferfleet.worker.sweep import UNPUBLISHED

logger = logging.getLogger(__name__)

MIN_WAIT_S = 5.0
"""How long a job must have waited to be promoted. A job that was just recorded is being published."""

PAUSE_S = 1.0
"""How long a worker looks for no waiting job after it has found none."""

PAGE = 32
"""How many jobs a worker reads at once."""

AT_MOST = 1000
"""How many jobs of each priority a worker looks at, the oldest first: many may be running, promoted, or turns
that wait for others."""

DUE_AT_MOST = 10
"""How many promotions a worker that cannot publish them remembers."""


class _Waiting(NamedTuple):
    since_ms: int
    job_id: str
    priority: int
    marks: Marks


class Ageing(Hooks):
    """Promotes the job that has waited longest after every ``1 / oldest_share`` starts of this worker."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        index: LostMessages,
        session_lanes: SessionLanes,
        republishing: Republishing,
        metrics: AttemptMetrics,
    ) -> None:
        self._every = round(1 / settings.oldest_share) if settings.oldest_share else 0
        self._to = settings.preempt_from - 1
        self._index = index
        self._session_lanes = session_lanes
        self._republishing = republishing
        self._metrics = metrics
        self._starts = 0
        self._highest = 0
        """The highest priority among the jobs that started since the last promotion."""
        self._due = 0
        self._is_due = asyncio.Event()
        self._behind: dict[int, Entry] = {}
        """By priority, the last entry of a look that has not come to the end."""
        self._outage = Outage()

    @override
    def on_start(self, run: JobRun, body: Mapping[str, Any]) -> None:
        self._starts += 1
        self._highest = max(self._highest, run.job.priority)
        if self._every and self._starts >= self._every:
            self._starts = 0
            self._due = min(self._due + 1, DUE_AT_MOST)
            self._is_due.set()

    async def run(self) -> None:
        """Promote jobs until cancelled."""
        while True:
            await self._is_due.wait()
            try:
                promoted = await self._promote()
            except UNPUBLISHED as error:
                promoted = False
                if self._outage.began():
                    logger.warning("cannot promote jobs that have waited long; retrying (%s)", error)
            else:
                self._outage.ended()
            if promoted:
                self._due -= 1
            else:
                await asyncio.sleep(PAUSE_S)
                self._due = 0
            if not self._due:
                self._is_due.clear()
                self._highest = 0

    async def _promote(self) -> bool:
        """Publish the job that has waited longest, of those less urgent than what started. Return whether."""
        found = await asyncio.gather(
            *(self._oldest(priority) for priority in range(min(self._highest, self._to)))
        )
        if (oldest := min(filter(None, found), default=None)) is None:
            return False
        stub = self._republishing.stub(oldest.job_id, oldest.marks, priority=oldest.priority)
        status = await self._republishing.publish(stub, oldest.marks, promoted_to=self._to)
        if status is Revival.REVIVED:
            self._metrics.promoted.add(1)
        return status is not Revival.UNKEPT

    async def _oldest(self, priority: int) -> _Waiting | None:
        """Find the job of this priority that has waited longest for its first start, unless it was promoted.

        If it is not among the first ``AT_MOST``, the next look continues behind them.
        """
        latest_ms = self._index.now_ms - int(MIN_WAIT_S * 1000)
        behind = self._behind.pop(priority, BEGINNING)
        pages = self._index.unfinished(priority, behind=behind, until_ms=latest_ms, page_size=PAGE)
        seen = 0
        async with aclosing(pages):
            async for page in pages:
                marks = await self._index.marks(entry.id for entry in page)
                waiting = [
                    (entry, its)
                    for entry, its in zip(page, marks, strict=True)
                    if its.state == JobState.QUEUED and not int(its.attempt or 0) and not its.promoted
                ]
                in_front = await self._in_front({its.session for _, its in waiting if its.session})
                for entry, its in waiting:
                    if not its.session or entry.id in in_front:
                        return _Waiting(entry.since_ms, entry.id, priority, its)
                seen += len(page)
                if seen >= AT_MOST:
                    self._behind[priority] = page[-1]
                    break
        return None

    async def _in_front(self, sessions: Collection[str]) -> set[str]:
        """Return the turns in front of these sessions."""
        owners = await asyncio.gather(*map(self._session_lanes.owner, sessions))
        return {job_id for job_id, _ in owners}
