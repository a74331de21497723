"""Samples RabbitMQ and Redis every few seconds, and keeps the data for the estimates."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from inferfleet.exporter.estimates import OldestAge, Throughput
from inferfleet.exporter.queues import QueueCounts, Queues
from inferfleet.exporter.snapshot import PoolNumbers, Snapshot
from inferfleet.schemas.errors import ConfigurationError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.schemas.shares import Share
from inferfleet.schemas.work import WorkDone
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_listing import PRIORITIES, count_unfinished
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import read_pool_settings
from inferfleet.wire.redis.rollouts import last_rollout
from inferfleet.wire.redis.shares import read_shares
from inferfleet.wire.redis.work_samples import SampledJob, mean_work, sample_work

logger = logging.getLogger(__name__)


_ABORTED = {RolloutPhase.ABORTING, RolloutPhase.ABORTED}


class _Record(NamedTuple):
    """What Redis has of a pool."""

    unfinished: dict[int, int]
    paused: bool
    rollout: Rollout | None
    work: list[SampledJob]
    shares: list[Share]


class Sampler:
    """Takes snapshots. ``latest`` is the newest one, ``None`` before the first."""

    def __init__(self, *, queues: Queues, pipeline: CommandPipeline, pools: tuple[str, ...]) -> None:
        self.latest: Snapshot | None = None
        self._queues = queues
        self._pipeline = pipeline
        self._pools = set(pools)
        self._ages: defaultdict[str, OldestAge] = defaultdict(OldestAge)
        self._throughputs: defaultdict[str, Throughput] = defaultdict(Throughput)
        self._done: dict[str, WorkDone] = {}
        """What the workers of each pool have last said about the jobs that ended there."""
        self._outages: defaultdict[str, Outage] = defaultdict(Outage)

    async def run(self, *, interval_s: float) -> None:
        """Take a snapshot every ``interval_s`` until cancelled, also during an outage of a service."""
        while True:
            started = time.monotonic()
            self.latest = await self.sample()
            await asyncio.sleep(max(0.0, started + interval_s - time.monotonic()))

    async def sample(self) -> Snapshot:
        """Take one snapshot."""
        heartbeats = await self._heartbeats()
        # A pool that was seen once is always reported: zero workers is a number too.
        self._pools |= {heartbeat.pool for heartbeat in heartbeats or ()}
        counts = await self._counts()
        self._pools |= set(counts or ())
        records = None if heartbeats is None else await self._records()
        now = time.monotonic()
        return Snapshot(
            at=now,
            rabbitmq=counts is not None,
            redis=heartbeats is not None,
            pools={
                pool: self._pool(
                    pool,
                    now=now,
                    counts=(counts or {}).get(pool, QueueCounts()),
                    heartbeats=None if heartbeats is None else [it for it in heartbeats if it.pool == pool],
                    record=None if records is None else records[pool],
                )
                for pool in sorted(self._pools)
            },
        )

    def _pool(
        self,
        pool: str,
        *,
        now: float,
        counts: QueueCounts,
        heartbeats: list[Heartbeat] | None,
        record: _Record | None,
    ) -> PoolNumbers:
        ready, unacked = counts.ready, counts.unacked
        if ready is not None and unacked is None and heartbeats is not None:
            unacked = sum(it.running + it.waiting for it in heartbeats)
        workers = None
        if heartbeats is not None:
            phases = Counter(it.phase for it in heartbeats)
            workers = {phase: phases[phase] for phase in WorkerPhase}
        age_s = backlog_s = None
        if ready is not None and counts.published is not None:
            age_s = self._ages[pool].observe(now=now, published=counts.published, ready=ready)
        if ready is not None and unacked is not None and counts.acked is not None:
            work = ready + unacked
            rate = self._throughputs[pool].observe(
                now=now,
                acked=counts.acked,
                work=work,
                ready_workers=0 if workers is None else workers[WorkerPhase.READY],
            )
            if not work:
                backlog_s = 0.0
            elif rate:
                backlog_s = work / rate * self._heaviness(pool, heartbeats, record)
        rollout = None if record is None else record.rollout
        return PoolNumbers(
            ready=ready,
            unacked=unacked,
            oldest_age_s=age_s,
            backlog_s=backlog_s,
            dead=counts.dead,
            workers=workers,
            unfinished=None if record is None else record.unfinished,
            paused=None if record is None else record.paused,
            rollout_weight=None if rollout is None else rollout.weight,
            shares=() if record is None else record.shares,
            rollout_aborted=None if rollout is None else rollout.phase in _ABORTED,
        )

    def _heaviness(self, pool: str, heartbeats: list[Heartbeat] | None, record: _Record | None) -> float:
        """Return how much work an unfinished job is, compared with those that have ended lately."""
        if (done := WorkDone.of(heartbeats or ())) is not None:
            self._done[pool] = done
        done = self._done.get(pool)
        mean = None if done is None or record is None else mean_work(record.work, done)
        return 1.0 if done is None or mean is None else mean / done.mean

    async def _records(self) -> dict[str, _Record] | None:
        """Read what Redis has of each pool. An exporter without the right to do so does all the rest."""
        pools = sorted(self._pools)
        try:
            records = await asyncio.gather(*(_read_record(self._pipeline, pool) for pool in pools))
        except (ServiceUnreachableError, ServiceRefusedError) as error:
            self._tell("pools in Redis", error)
            return None
        self._tell("pools in Redis", None)
        return dict(zip(pools, records, strict=True))

    async def _heartbeats(self) -> list[Heartbeat] | None:
        try:
            heartbeats = await read_heartbeats(self._pipeline)
        except (ServiceUnreachableError, ServiceRefusedError) as error:
            self._tell("Redis", error)
            return None
        self._tell("Redis", None)
        return heartbeats

    async def _counts(self) -> Mapping[str, QueueCounts] | None:
        try:
            counts = await self._queues.counts(self._pools)
        except (ServiceUnreachableError, ServiceRefusedError, ConfigurationError) as error:
            # A ConfigurationError is about a file with a URL or a certificate, which existed at the start.
            self._tell("RabbitMQ", error)
            return None
        self._tell("RabbitMQ", None)
        return counts

    def _tell(self, service: str, error: Exception | None) -> None:
        """Log when an outage of a service begins and when it ends, not at every sample."""
        outage = self._outages[service]
        if error is not None and outage.began():
            logger.warning("cannot read %s; omitting its metrics: %s", service, error)
        elif error is None and (lasted_s := outage.ended()) is not None:
            logger.warning("reading %s works again after %.1f s", service, lasted_s)


async def _read_record(pipeline: CommandPipeline, pool: str) -> _Record:
    counts, settings, rollout = await asyncio.gather(
        count_unfinished(pipeline, pool), read_pool_settings(pipeline, pool), last_rollout(pipeline, pool)
    )
    try:
        work = await sample_work(pipeline, pool, counts)
    except ServiceRefusedError:
        # An exporter that may not read jobs takes all for alike.
        work = []
    try:
        shares = await read_shares(pipeline, pool)
    except ServiceRefusedError:
        # An exporter of before fair shares need not have the right to read them.
        shares = []
    unfinished = {priority: counts.get(priority, 0) for priority in PRIORITIES}
    return _Record(unfinished, settings.paused_at is not None, rollout, work, shares)
