"""Runs the autoscaler on a trace of arrivals in simulated time, to plan before you pay.

The decisions are those of the live autoscaler, and the engine is the simulated engine's own batch. Between
them is a model of a queue: priorities, round-robin delivery up to what a worker holds, and statistics that
RabbitMQ's HTTP API updates every 5 s. It does not model crashes, retries, sessions, or the time to publish.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from inferfleet.local.autoscaler.decision import Decision, Readings
from inferfleet.local.autoscaler.hpa import SYNC_S
from inferfleet.local.autoscaler.outcome import Sample, SimulationResult
from inferfleet.local.autoscaler.profile import EngineProfile
from inferfleet.local.autoscaler.report import Change
from inferfleet.local.autoscaler.scaled_object import ScaledObject
from inferfleet.local.autoscaler.scaler import Scaler
from inferfleet.local.autoscaler.simulated_metrics import SimulatedMetrics
from inferfleet.local.autoscaler.simulated_replica import SimulatedJob, SimulatedReplica
from inferfleet.local.autoscaler.simulated_work import SimulatedWork
from inferfleet.local.autoscaler.trace import Arrival
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.heartbeat import WorkerPhase

STATISTICS_S = 5.0
"""RabbitMQ's ``collect_statistics_interval``: the highest age of its HTTP API's numbers."""

STALL_S = 3600.0
"""If nothing has run or finished for so long, the remaining jobs never will."""


def simulate(
    scaled_object: ScaledObject, arrivals: Sequence[Arrival], profile: EngineProfile
) -> SimulationResult:
    """Run the trace until all jobs have finished and the fleet is back at rest.

    The same input gives the same outcome. An hour of a busy replica takes about six seconds of CPU.

    Raises:
        ConfigurationError: A trigger's query cannot be simulated, or a job is too long for the engine.

    """
    for arrival in arrivals:
        if arrival.prompt_tokens + arrival.output_tokens > profile.max_model_len:
            raise ConfigurationError(
                f"the job at {arrival.time_s:g} s of the trace has {arrival.prompt_tokens} + "
                f"{arrival.output_tokens} tokens, and the engine profile's max_model_len is "
                f"{profile.max_model_len}: raise that (and kv_cache_tokens), or shorten the job"
            )
    return _Simulation(scaled_object, arrivals, profile).run()


class _Simulation:
    def __init__(
        self, scaled_object: ScaledObject, arrivals: Sequence[Arrival], profile: EngineProfile
    ) -> None:
        self._object = scaled_object
        self._profile = profile
        self._arrivals = arrivals
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._queue: list[tuple[tuple[int, int], SimulatedJob]] = []
        self._replicas: deque[SimulatedReplica] = deque()
        self._draining: list[SimulatedReplica] = []
        self._scaler = Scaler(scaled_object, now=0.0)
        self._work = SimulatedWork()
        self._metrics = SimulatedMetrics(scaled_object.triggers)
        self._outcome = SimulationResult(arrivals=arrivals)
        self._last_news = arrivals[-1].time_s

    def run(self) -> SimulationResult:
        for number, arrival in enumerate(self._arrivals):
            job = SimulatedJob(arrival=arrival, number=number)
            self._at(arrival.time_s, partial(self._arrive, job))
        self._apply("start", Decision(self._object.min_replicas, "minReplicaCount"), [])
        rest = len(self._replicas)
        self._observe()
        self._at(0.0, self._poll)
        self._at(0.0, self._sync)
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
            if self._over(rest):
                break
        self._outcome.end(self._now)
        return self._outcome

    def _over(self, rest: int) -> bool:
        if self._now <= self._arrivals[-1].time_s:
            return False
        left = len(self._arrivals) - len(self._outcome.finished)
        at_rest = len(self._replicas) <= rest and not self._draining
        stalled = not any(it.held for it in self._replicas) and self._now - self._last_news > STALL_S
        return at_rest and (left == 0 or stalled)

    # Events

    def _at(self, time_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen))

    def _arrive(self, job: SimulatedJob) -> None:
        self._metrics.published += 1
        self._give([job])

    def _observe(self) -> None:
        """Update RabbitMQ's statistics, the exporter's numbers and our samples, at the same interval."""
        held = [job for it in (*self._replicas, *self._draining) for job in it.jobs]
        waiting = [job for _, job in self._queue]
        ready_workers = sum(it.phase is WorkerPhase.READY for it in self._replicas)
        oldest = min((job.arrival.time_s for _, job in self._queue), default=self._now)
        self._metrics.observe(
            now=self._now,
            ready=len(self._queue),
            unacked=len(held),
            heaviness=self._work.heaviness([*held, *waiting]),
            oldest_age_s=self._now - oldest,
            finished=len(self._outcome.finished),
            ready_workers=ready_workers,
        )
        self._outcome.samples.append(
            Sample(
                time_s=self._now,
                ready=len(self._queue),
                unacked=len(held),
                replicas=len(self._replicas),
                ready_replicas=ready_workers,
                gpus=len(self._replicas) + len(self._draining),
            )
        )
        self._at(self._now + STATISTICS_S, self._observe)

    def _poll(self) -> None:
        readings = self._metrics.read(ready_now=len(self._queue))
        self._apply(
            "keda",
            self._scaler.poll(now=self._now, readings=readings, replicas=len(self._replicas)),
            readings,
        )
        self._at(self._now + self._object.polling_interval_s, self._poll)

    def _sync(self) -> None:
        readings = self._metrics.read(ready_now=len(self._queue))
        self._apply(
            "hpa", self._scaler.sync(now=self._now, readings=readings, replicas=len(self._replicas)), readings
        )
        self._at(self._now + SYNC_S, self._sync)

    # Jobs

    def _give(self, jobs: Sequence[SimulatedJob]) -> None:
        for job in jobs:
            heapq.heappush(self._queue, (job.order, job))
        self._deliver()

    def _deliver(self) -> None:
        """Deliver jobs round-robin, as RabbitMQ does, to the replicas that have room."""
        full = 0
        while self._queue and full < len(self._replicas):
            replica = self._replicas[0]
            self._replicas.rotate(-1)
            if not replica.has_room:
                full += 1
                continue
            full = 0
            replica.take(heapq.heappop(self._queue)[1])
            if replica.step is None:
                self._step(replica)

    def _step(self, replica: SimulatedReplica) -> None:
        duration_s = replica.begin_step(self._now)
        if duration_s is not None:
            self._at(self._now + duration_s, lambda: self._stepped(replica))
        elif replica.phase is WorkerPhase.DRAINING:
            self._gone(replica)

    def _stepped(self, replica: SimulatedReplica) -> None:
        if replica.ended_at is not None:
            return
        replica.end_step()
        self._deliver()
        # Delivery starts a step only where none runs, and may just have done so here.
        if replica.step is None:
            self._step(replica)

    def _finished(self, job: SimulatedJob) -> None:
        job.finished_at = self._last_news = self._now
        self._outcome.finished.append(job)
        self._work.ended(job)

    # Replicas

    def _apply(self, by: str, decision: Decision, readings: Readings) -> None:
        before = len(self._replicas)
        if decision.replicas == before:
            return
        self._outcome.changes.append(
            Change(
                at_s=self._now,
                before=before,
                after=decision.replicas,
                by=by,
                reason=decision.reason,
                values=[reading.value for reading in readings],
            )
        )
        while len(self._replicas) < decision.replicas:
            self._start()
        victims = sorted(self._replicas, key=lambda it: it.deletion_cost)[: before - decision.replicas]
        for replica in victims if before > decision.replicas else ():
            self._drain(replica)

    def _start(self) -> None:
        replica = SimulatedReplica(profile=self._profile, started_at=self._now, finished=self._finished)
        self._outcome.replicas.append(replica)
        self._replicas.append(replica)
        self._at(self._now + self._profile.load_s, lambda: self._ready(replica))

    def _ready(self, replica: SimulatedReplica) -> None:
        if replica.phase is WorkerPhase.LOADING:
            replica.phase = WorkerPhase.READY
            self._deliver()

    def _drain(self, replica: SimulatedReplica) -> None:
        self._replicas.remove(replica)
        loading, replica.phase = replica.phase is WorkerPhase.LOADING, WorkerPhase.DRAINING
        self._draining.append(replica)
        self._give(replica.give_back(running=False))
        if loading or replica.step is None:
            self._gone(replica)
        else:
            self._at(self._now + self._profile.drain_timeout_s, lambda: self._gone(replica))

    def _gone(self, replica: SimulatedReplica) -> None:
        if replica.ended_at is not None:
            return
        replica.ended_at = self._now
        self._draining.remove(replica)
        jobs = replica.give_back(running=True)
        self._outcome.handed_over += len(jobs)
        self._give(jobs)
