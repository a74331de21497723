"""The autoscaler's loop: KEDA's poll and the HPA's sync in turn."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from inferfleet.local.autoscaler.decision import Decision, Readings
from inferfleet.local.autoscaler.hpa import SYNC_S
from inferfleet.local.autoscaler.measure import Measurer
from inferfleet.local.autoscaler.replicas import Replicas
from inferfleet.local.autoscaler.report import Change, Reporter
from inferfleet.local.autoscaler.scaled_object import ScaledObject
from inferfleet.local.autoscaler.scaler import Scaler
from inferfleet.local.worker_processes import WorkerProcesses
from inferfleet.schemas.settings import WorkerSettings

TEND_S = 0.5
"""How often to check for dead workers, in real seconds."""


@dataclass(slots=True)
class Usage:
    """The totals of a run. ``worker_s`` is the time of all wanted workers in real seconds, without drains."""

    most: int = 0
    changes: int = 0
    worker_s: float = 0.0


async def autoscale(
    scaled_object: ScaledObject,
    *,
    measurer: Measurer,
    worker: WorkerSettings,
    reporter: Reporter,
    speedup: float,
    until_idle: bool,
) -> Usage:
    """Scale until cancelled; with ``until_idle``, until the fleet first returns to rest after work.

    ``speedup`` divides all of the manifest's times. At the end all workers drain.

    Raises:
        ConfigurationError: A setting of the workers is invalid.
        WorkerProcessError: No worker becomes ready.

    """
    try:
        async with WorkerProcesses() as processes, asyncio.TaskGroup() as tasks:
            replicas = Replicas(
                processes=processes, settings=worker, tasks=tasks, on_drain=reporter.drained, say=reporter.say
            )
            loop = _Loop(scaled_object, measurer, replicas, reporter, speedup)
            return await loop.run(until_idle=until_idle)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


class _Loop:
    def __init__(
        self,
        scaled_object: ScaledObject,
        measurer: Measurer,
        replicas: Replicas,
        reporter: Reporter,
        speedup: float,
    ) -> None:
        self._object = scaled_object
        self._measurer = measurer
        self._replicas = replicas
        self._reporter = reporter
        self._speedup = speedup
        self._began = asyncio.get_running_loop().time()
        self._scaler = Scaler(scaled_object, now=0.0)
        self._usage = Usage()

    async def run(self, *, until_idle: bool) -> Usage:
        await self._apply("start", Decision(self._object.min_replicas, "minReplicaCount"), [])
        rest = self._replicas.wanted
        next_poll = next_sync = looked = 0.0
        while True:
            now = self._now()
            self._usage.worker_s += self._replicas.wanted * (now - looked) / self._speedup
            looked = now
            await self._replicas.reconcile()
            if now >= next_poll:
                next_poll = now + self._object.polling_interval_s
                await self._decide("keda")
            if now >= next_sync:
                next_sync = now + SYNC_S
                if self._replicas.wanted:
                    await self._decide("hpa")
            at_rest = self._replicas.wanted <= rest and not self._replicas.draining
            if until_idle and at_rest and self._usage.most > rest:
                return self._usage
            await asyncio.sleep(
                min(TEND_S, max(0.0, min(next_poll, next_sync) - self._now()) / self._speedup)
            )

    def _now(self) -> float:
        return (asyncio.get_running_loop().time() - self._began) * self._speedup

    async def _decide(self, by: str) -> None:
        readings = await self._measurer.measure(self._object.triggers)
        decide = self._scaler.poll if by == "keda" else self._scaler.sync
        decision = decide(now=self._now(), readings=readings, replicas=self._replicas.wanted)
        await self._apply(by, decision, readings)

    async def _apply(self, by: str, decision: Decision, readings: Readings) -> None:
        before = self._replicas.wanted
        for trigger, reading in zip(self._object.triggers, readings, strict=False):
            self._reporter.failing(trigger.name, reading.error if reading.value is None else None)
        if decision.replicas == before:
            return
        self._usage.changes += 1
        self._usage.most = max(self._usage.most, decision.replicas)
        self._reporter.changed(
            Change(
                at_s=self._now(),
                before=before,
                after=decision.replicas,
                by=by,
                reason=decision.reason,
                values=[reading.value for reading in readings],
            )
        )
        await self._replicas.scale(decision.replicas)
