"""A run that this runner has claimed: its steps and inbox, and the lease under which they are written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from inferfleet.agents.history import CANCEL, History
from inferfleet.agents.metrics import RunnerMetrics
from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.run import (
    ChildStarted,
    ModelCalled,
    RunLimits,
    RunOrder,
    RunResult,
    RunState,
    RunWait,
    Step,
    ToolStarted,
)
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.runs import RunLostError, Runs

logger = logging.getLogger(__name__)

LONGEST_BEAT_S: Final = 2.0
"""How long it takes at most until a runner learns that its run was told something."""


class HeldRun:
    """Appends steps to one run, and renews its lease."""

    def __init__(
        self,
        order: RunOrder,
        limits: RunLimits,
        *,
        announced: str = "",
        traceparent: str | None,
        records: Runs,
        replicas: Replicas,
        metrics: RunnerMetrics,
        fence: str,
        lease_s: float,
    ) -> None:
        self.order = order
        self.limits = limits
        self.announced = announced
        """The newest question of which webhook endpoints were told."""
        self.traceparent = traceparent
        """The trace of what the run starts."""
        self.records = records
        self.metrics = metrics
        self.history = History(limits)
        self._replicas = replicas
        self.inbox: Mapping[str, bytes] = {}
        self.cancelled = asyncio.Event()
        """Whether somebody has asked for the run to be cancelled."""
        self._fence = fence
        self._lease_s = lease_s
        self._told = 0
        """How much of what the run was told is in ``inbox``."""
        self._appending = asyncio.Lock()

    @property
    def deadline_ms(self) -> int:
        """When the run ends at the latest, in Redis' time."""
        own = self.order.created_ms + int(self.limits.timeout_s * 1000)
        return own if self.order.deadline_ms is None else min(own, self.order.deadline_ms)

    async def load(self) -> None:
        """Read the steps and the inbox."""
        self.history = History(self.limits, await self.records.steps(self.order.id))
        await self.read_inbox()

    async def append(self, *steps: Step) -> int:
        """Record steps, none to only renew the lease. Return how much the run was told.

        Raises:
            RunLostError: Another runner has the run.

        """
        # Somebody who dies after these has not moved the run on.
        moved_on = any(not isinstance(step, (ModelCalled, ToolStarted, ChildStarted)) for step in steps)
        async with self._appending:
            told = await self.records.append(
                self.order.id,
                steps,
                fence=self._fence,
                lease_s=self._lease_s,
                position=self.history.steps,
                moved_on=moved_on,
                cost=self.history.cost_with(steps),
            )
            for step in steps:
                self.history.add(step)
                self.metrics.step_recorded(self.order.agent, step)
        return told

    async def make_safe(self) -> None:
        """Return when all steps are on the replicas of Redis that the settings demand.

        Raises:
            RunLostError: Another runner has the run, or a failover has forgotten steps.

        """
        if self._replicas.demanded:
            # It appends nothing, but fails if a step is missing.
            await self._replicas.hold(self.append)

    async def read_inbox(self) -> None:
        """Read what the run was told.

        Raises:
            RunLostError: Another runner has the run.

        """
        told = await self.append()
        self.inbox = await self.records.inbox(self.order.id)
        self._told = told
        if CANCEL in self.inbox:
            self.cancelled.set()

    async def keep(self) -> None:
        """Renew the lease until this is cancelled.

        Raises:
            RunLostError: Another runner has the run.

        """
        while True:
            await asyncio.sleep(min(self._lease_s / 3, LONGEST_BEAT_S))
            try:
                # Only that: what is in ``inbox`` counts as read when the run is about to wait.
                if await self.append() > self._told and CANCEL in await self.records.inbox(self.order.id):
                    self.cancelled.set()
            except InferfleetError as error:
                logger.warning("cannot renew the lease of run %s (%s)", self.order.id, error)

    async def wait(self, waits_for: RunWait, *, wake_ms: int) -> bool:
        """Let the run wait. Return false if it was told something meanwhile, and must not."""
        if self.cancelled.is_set():
            return False
        # The lease is not renewed meanwhile: a run that waits has none.
        async with self._appending:
            state = await self.records.settle(
                self.order.id,
                RunState.WAITING,
                fence=self._fence,
                told=self._told,
                wake_ms=wake_ms,
                waits_for=waits_for,
                announced=self.announced,
            )
            if state is RunState.WAITING:
                await self.records.look_at(self.order.queue, self.order.id, at_ms=wake_ms)
        return state is not RunState.RUNNING

    async def release(self) -> None:
        """Let another runner go on with the run at once."""
        await self.records.settle(
            self.order.id,
            RunState.QUEUED,
            fence=self._fence,
            told=self._told,
            announced=self.announced,
        )

    async def end(self, result: RunResult) -> None:
        """Record how the run has ended.

        Raises:
            RunLostError: Another runner has the run, or it was just about to wait.

        """
        state = await self.records.settle(
            self.order.id, result.state, fence=self._fence, told=self._told, result=result
        )
        if state is not result.state:
            raise RunLostError(self.order.id)
