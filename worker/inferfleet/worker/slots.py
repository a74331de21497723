"""Decides which job runs next: the engine's slots, and the jobs that wait for one in this worker.

Jobs wait here instead of inside the engine, so that a more urgent job can overtake them. Unless it was
preempted, a job without a slot has not started: its record says ``queued``. Its ``timeout_s`` does not run.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from enum import StrEnum
from itertools import count
from typing import Protocol

from inferfleet.schemas.job import Priority
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.preemption import Preemption
from inferfleet.worker.stop_switch import Interruption

PREEMPT_INTERVAL_S = 0.05
"""How soon preemption is tried again for an urgent job that waits here: a job that had run too briefly may
have become preemptible."""

REFILL_PATIENCE_S = 0.1
"""How long a free slot waits for the delivery for which an ack has made room: the broker may have a more
urgent job than any that waits here."""


class Supply(Protocol):
    """The source of jobs."""

    @property
    def refilling(self) -> bool:
        """Whether a delivery is due: there were more jobs than the worker may hold, and there is room."""
        ...

    def ran_dry(self) -> None:
        """Note that the expected delivery did not come."""
        ...


class PauseReason(StrEnum):
    """Why no job may start."""

    POOL = "pool"
    """The pool is paused."""
    SWAP = "swap"
    """The worker has no model, because it is being replaced."""
    IDENTITY = "identity"
    """The pool requires a model of another identity."""


class Slots:
    """Gives the engine at most ``limit`` jobs at once; the others wait, the most urgent first.

    With ``preemption``, urgent jobs do not wait: each takes the slot of a running job, which waits again.
    """

    def __init__(self, limit: int, *, preemption: Preemption | None = None) -> None:
        self._limit = limit
        self._preemption = preemption
        self._supply: Supply | None = None
        self._holders: set[JobRun] = set()
        self._waiters: dict[JobRun, asyncio.Future[bool]] = {}
        self._queue: list[tuple[int, bool, float, int, JobRun]] = []
        """A heap of the waiting jobs, the next one first. Jobs that no longer wait are skipped."""
        self._arrivals = count()
        self._granting = False
        self._patience: asyncio.TimerHandle | None = None
        self._preempting: asyncio.TimerHandle | None = None
        self.closed = False
        """Whether the worker drains."""
        self._paused_by: set[PauseReason] = set()

    @property
    def paused(self) -> bool:
        """Whether no job may start: those that wait keep waiting, and those that run go on."""
        return bool(self._paused_by)

    def paused_by(self, reason: PauseReason) -> bool:
        """Whether no job may start for this reason."""
        return reason in self._paused_by

    @property
    def taken(self) -> int:
        """How many jobs have a slot."""
        return len(self._holders)

    @property
    def without_message(self) -> int:
        """How many jobs with a slot have no message here: the connection that had delivered it is lost."""
        return sum(run.delivery.is_lost for run in self._holders)

    @property
    def warm(self) -> int:
        """How many jobs with a slot are turns from the worker's own queue."""
        return sum(run.delivery.warm and not run.delivery.is_lost for run in self._holders)

    @property
    def waiting(self) -> int:
        """How many jobs wait for one."""
        return len(self._waiters)

    @property
    def full(self) -> bool:
        """Whether all slots are taken."""
        return len(self._holders) >= self._limit

    @property
    def preemptible(self) -> bool:
        """Whether an urgent job would have to preempt another one, and could."""
        return (
            self._preemption is not None
            and not self.closed
            and not self.paused
            and self.full
            and self._preemption.possible(self._holders)
        )

    @property
    def limit(self) -> int:
        """How many jobs may have a slot at the same time."""
        return self._limit

    def resize(self, limit: int) -> None:
        """Change the limit. Jobs with a slot keep it."""
        self._limit = limit
        self._grant_soon()

    def supply_from(self, supply: Supply) -> None:
        """Wait for this supply's due deliveries before a slot goes to a job that waits here."""
        self._supply = supply

    def take_free(self, run: JobRun) -> bool:
        """Take a slot if one is free and no job waits for it."""
        if self.closed or self.paused or self._waiters or self.full:
            return False
        self._holders.add(run)
        return True

    async def take(self, run: JobRun) -> bool:
        """Wait for a slot. Return false if the job must not start here: the worker drains or is paused."""
        if self.take_free(run):
            return True
        if self.closed:
            return False
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters[run] = waiter
        self._line_up(run)
        try:
            return await waiter
        finally:
            del self._waiters[run]

    def moved_up(self, run: JobRun) -> None:
        """Note that a job's rank has risen. If it waits, its former place is skipped."""
        if run in self._waiters:
            self._line_up(run)

    def _line_up(self, run: JobRun) -> None:
        # Of equally urgent jobs, those that were preempted come first, and then those that expire soonest.
        expires = math.inf if run.job.expires_at is None else run.job.expires_at.timestamp()
        place = (-run.rank, not run.preemptions, expires, next(self._arrivals), run)
        heapq.heappush(self._queue, place)
        self._grant_soon()

    def leave(self, run: JobRun) -> None:
        """Free the job's slot, if it has one."""
        if run in self._holders:
            self._holders.discard(run)
            self._grant_soon()

    def skip(self, run: JobRun) -> None:
        """Let a waiting job continue without a slot, because it is to be stopped and needs no engine."""
        waiter = self._waiters.get(run)
        if waiter is not None and not waiter.done():
            waiter.set_result(True)

    def close(self) -> None:
        """Refuse a slot to all waiting and all later jobs."""
        self.closed = True
        for timer in (self._patience, self._preempting):
            if timer is not None:
                timer.cancel()
        self.refuse_waiting()

    def refuse_waiting(self) -> None:
        """Refuse a slot to all jobs that wait now."""
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_result(False)

    def pause(self, reason: PauseReason = PauseReason.POOL, *, paused: bool) -> None:
        """Let no job start for this reason, or no longer for this reason."""
        (self._paused_by.add if paused else self._paused_by.discard)(reason)
        self._grant_soon()

    def _grant_soon(self) -> None:
        # In the next turn of the loop, when this turn's acks have been written and its deliveries taken.
        if self._waiters and not self._granting:
            self._granting = True
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        self._granting = False
        while self._queue and not self.paused and not self.full:
            priority, _, _, _, run = self._queue[0]
            waiter = self._waiters.get(run)
            if waiter is None or waiter.done():
                heapq.heappop(self._queue)
                continue
            if self._supply is not None and self._supply.refilling and -priority < Priority.URGENT:
                if self._patience is None:
                    loop = asyncio.get_running_loop()
                    self._patience = loop.call_later(REFILL_PATIENCE_S, self._not_refilled)
                return
            heapq.heappop(self._queue)
            self._holders.add(run)
            waiter.set_result(True)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self.preempt()

    def preempt(self) -> None:
        """Take the slot of a running job for each urgent job that waits, as far as that is allowed."""
        if self._preempting is not None:
            self._preempting.cancel()
            self._preempting = None
        if self._preemption is None or self.closed or self.paused:
            return
        if not self._queue or -self._queue[0][0] < self._preemption.from_priority:
            return
        urgent = sum(
            self._preemption.urgent(run) for run, waiter in self._waiters.items() if not waiter.done()
        )
        leaving = sum(run.stop_switch.preempted for run in self._holders)
        for _ in range(urgent - leaving - max(0, self._limit - len(self._holders))):
            if (victim := self._preemption.victim(self._holders)) is None:
                loop = asyncio.get_running_loop()
                self._preempting = loop.call_later(PREEMPT_INTERVAL_S, self.preempt)
                return
            victim.interrupt(Interruption.PREEMPTED)

    def _not_refilled(self) -> None:
        self._patience = None
        if self._supply is not None:
            self._supply.ran_dry()
        self._grant()
