"""A soak: producers submit, workers run, things go wrong; then all heals, and the history is checked."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from inferfleet.local.chaos.appended import AppendedResults
from inferfleet.local.chaos.checker import Finding, Violation, check
from inferfleet.local.chaos.cluster import Cluster, running_cluster
from inferfleet.local.chaos.cluster_faults import FILLING, ClusterFault, ClusterFaults, possible_faults
from inferfleet.local.chaos.collect import collect
from inferfleet.local.chaos.faults import Faults
from inferfleet.local.chaos.garbage import Garbage
from inferfleet.local.chaos.harness import ENGINE_ARGS, PATIENCE_S, Harness
from inferfleet.local.chaos.history import History
from inferfleet.local.chaos.ledger import LedgerTail
from inferfleet.local.chaos.limits import no_file_limits
from inferfleet.local.chaos.members import WorkerSlot
from inferfleet.local.chaos.producer import Plan
from inferfleet.local.chaos.producers import ProducerProcess
from inferfleet.local.chaos.service_faults import ServiceFaults, SingleServiceFaults
from inferfleet.local.chaos.waste import Waste, measure
from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.worker_processes import wait_until_ready
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import JobState
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import ProducerSettings, QueueType
from inferfleet.wire.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

PRODUCERS = 2
SETTLE_S = 180.0
"""How long after the last fault every job may take to end."""

READERS_S = 5.0
"""How long a stream reader may be behind the end of its job."""

REPORT_EVERY_S = 10.0

SWEEP_INTERVAL_S = 2.0
"""How often the workers look for jobs that have lost their messages."""

CLUSTER_WORKERS: dict[str, Any] = {"max_running": 8, "look_ahead": 2, "sweep_interval_s": 16.0}
"""Settings of workers on a cluster: so few slots that jobs wait in the queue, where a fault can hit them, and
sweeps so far apart that no worker misses two reports in a row because Redis fails over or the worker is cut
off. Otherwise other workers publish again the jobs that it runs."""


class Topology(StrEnum):
    """What serves the fleet of a soak."""

    SINGLE = "single"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """How much of what. ``jobs`` are submitted evenly over ``minutes``, and the faults end with them.

    On a cluster, the faults go on until each has happened once.
    """

    seed: int
    minutes: float
    jobs: int
    workers: int = 4
    empty_redis: bool = False
    queue_type: QueueType = QueueType.CLASSIC
    shared_keys: bool = False
    """Every job is submitted by all producers, under the same idempotency key."""
    garbage: bool = False
    """Another client publishes messages that are no jobs."""
    another_model: bool = False
    fair_shares: bool = False
    """The tenants of the jobs share the pool."""
    topology: Topology = Topology.SINGLE
    cluster_faults: frozenset[ClusterFault] = field(default_factory=possible_faults)
    """The faults of services in a cluster."""
    wait_replicas: int = 0
    """On how many replicas of Redis an accepted job and its end must be: then none may be forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakReport:
    """What came of it."""

    options: SoakOptions
    accepted: int
    ends: dict[str, int]
    faults: dict[str, int]
    violations: dict[str, int]
    findings: tuple[Finding, ...]
    missed: tuple[str, ...]
    """Faults that changed nothing, with the reason."""
    excused: int
    waste: Waste
    seconds: float

    @property
    def untested(self) -> list[str]:
        """The planned faults that never happened."""
        planned = self.options.cluster_faults if self.options.topology is Topology.CLUSTER else ()
        return sorted(fault.value for fault in planned if not self.faults.get(fault))

    @property
    def forgotten(self) -> int:
        """How many jobs Redis forgot although they had to be on replicas."""
        return self.excused if self.options.wait_replicas else 0

    @property
    def ok(self) -> bool:
        """Whether no promise was broken although every planned fault happened."""
        return not (self.findings or self.untested or self.forgotten)

    def as_json(self) -> dict[str, Any]:
        """The report as data."""
        return {
            "seed": self.options.seed,
            "minutes": self.options.minutes,
            "jobs": self.accepted,
            "ends": self.ends,
            "faults": self.faults,
            "violations": self.violations,
            "untested": self.untested,
            "missed": self.missed,
            "excused": self.excused,
            "tokens_generated": self.waste.generated,
            "tokens_wasted": self.waste.wasted,
            "wasted_ratio": round(self.waste.ratio, 4),
            "seconds": round(self.seconds, 1),
            "findings": [asdict(finding) for finding in self.findings[:50]],
        }


async def soak(options: SoakOptions, *, folder: Path, say: Callable[[str], None]) -> SoakReport:
    """Run a soak on services of its own. Logs and ledgers stay in ``folder``.

    Raises:
        ConfigurationError: RabbitMQ or Redis is not installed here.

    """
    started = time.monotonic()
    async with _running_harness(options, folder, say) as (harness, cluster):
        run = _Run(harness, cluster, options, folder, say)
        history, happened, missed = await run.run()
    verdict = check(history)
    findings = (*verdict.findings, *run.crashes())
    return SoakReport(
        options=options,
        accepted=len(history.jobs),
        ends=_ends(history),
        faults=happened,
        violations=verdict.by_kind() | {Violation.WORKER_CRASHED.value: len(run.crashes())},
        findings=findings,
        missed=missed,
        excused=verdict.excused,
        waste=measure(history, _token_log(folder)),
        seconds=time.monotonic() - started,
    )


def _token_log(folder: Path) -> Path:
    return folder / "tokens.log"


@asynccontextmanager
async def _running_harness(
    options: SoakOptions, folder: Path, say: Callable[[str], None]
) -> AsyncGenerator[tuple[Harness, Cluster | None]]:
    """Run the services, and make a harness around them."""
    async with AsyncExitStack() as stack:
        cluster: Cluster | None = None
        match options.topology:
            case Topology.SINGLE:
                # Redis must keep every write that it has answered; otherwise the history cannot be checked.
                running = running_services(ServicesChoice.NATIVE, fsync=Fsync.ALWAYS)
                services = await stack.enter_async_context(running)
            case Topology.CLUSTER:
                cluster = await stack.enter_async_context(
                    running_cluster(
                        disks=bool(options.cluster_faults & FILLING),
                        clocks=ClusterFault.REDIS_CLOCK_JUMP in options.cluster_faults,
                    )
                )
                services = cluster.services
        say(f"seed {options.seed}: {services.announcement}")
        harness = await stack.enter_async_context(
            Harness.around(
                services,
                log_folder=folder,
                named_servers=cluster.named_servers if cluster else None,
                engine_args=ENGINE_ARGS | {"token_log": str(_token_log(folder))},
                queue_type=options.queue_type,
                fair_shares=options.fair_shares,
                redis_wait_replicas=options.wait_replicas,
                **({"sweep_interval_s": SWEEP_INTERVAL_S} | (CLUSTER_WORKERS if cluster else {})),
            )
        )
        yield harness, cluster


class _Run:
    """The part of a soak that needs services."""

    def __init__(
        self,
        harness: Harness,
        cluster: Cluster | None,
        options: SoakOptions,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._harness = harness
        self._cluster = cluster
        self._options = options
        self._folder = folder
        self._say = say
        self._places: list[WorkerSlot] = []
        self._tails: list[LedgerTail] = []
        self._index: dict[str, JobState | None] = {}

    async def run(self) -> tuple[History, dict[str, int], tuple[str, ...]]:
        await self._declare_pool()
        models = random.Random(self._options.seed) if self._options.another_model else None  # noqa: S311
        logs = random.Random(self._options.seed) if self._cluster else None  # noqa: S311
        self._places = [
            WorkerSlot(self._harness, await self._harness.link(), models=models, logs=logs)
            for _ in range(self._options.workers)
        ]
        await wait_until_ready([place.member.process for place in self._places], timeout_s=PATIENCE_S)
        async with AsyncExitStack() as stack:
            reaper = stack.enter_context(Reaper())
            producers = [await self._producer(index, reaper) for index in range(PRODUCERS)]
            for producer in producers:
                stack.push_async_callback(producer.crash)
                producer.start()
            self._tails = [LedgerTail(producer.ledger) for producer in producers]
            services = self._service_faults(stack, producers)
            keepers = [asyncio.create_task(place.keep()) for place in self._places]
            reporting = asyncio.create_task(self._report())
            garbage = Garbage(self._harness, rng=random.Random(self._options.seed))  # noqa: S311 - repeatable
            try:
                faults = await self._disturb(producers, services, garbage)
                await self._settle(producers, services)
            finally:
                for task in (*keepers, reporting):
                    task.cancel()
                await asyncio.gather(*keepers, reporting, return_exceptions=True)
            await asyncio.gather(*(place.member.process.stop() for place in self._places))
            for place in self._places:
                place.close_log()
            accepted = {job_id for tail in self._tails for job_id in tail.accepted}
            lost_results = await services.lost_results(accepted)
        history = await collect(
            self._harness,
            [producer.ledger for producer in producers],
            lost_results=lost_results,
            queues=(job_queue(self._harness.pool),),
            garbage=garbage,
            keys_lost=self._options.empty_redis or self._cluster is not None,
            earlier=services.earlier_journals,
            index=self._index,
        )
        happened = {fault.value: count for fault, count in sorted(faults.happened.items())}
        if self._options.another_model:
            happened["another_model"] = sum(place.another_model for place in self._places)
        if self._cluster is not None:
            happened["blocked_log"] = sum(place.blocked_logs for place in self._places)
        happened["killed_by_job"] = sum(place.killed_by_jobs for place in self._places)
        return history, happened, tuple(faults.missed)

    def _service_faults(self, stack: AsyncExitStack, producers: Sequence[ProducerProcess]) -> ServiceFaults:
        if self._cluster is None:
            return SingleServiceFaults(self._harness, empty_redis=self._options.empty_redis)
        appended = AppendedResults([server.data for server in self._cluster.store.servers])
        following = asyncio.create_task(appended.follow())
        stack.push_async_callback(cancel_and_wait, following)
        return ClusterFaults(
            self._cluster,
            self._harness,
            appended=appended,
            tails=self._tails,
            faults=self._options.cluster_faults,
            links=[*(place.link for place in self._places), *(producer.link for producer in producers)],
            rng=random.Random(self._options.seed),  # noqa: S311 - repeatable
        )

    def crashes(self) -> tuple[Finding, ...]:
        """The workers that ended by themselves."""
        return tuple(
            Finding(Violation.WORKER_CRASHED, worker_id, how)
            for place in self._places
            for worker_id, how in place.crashes.items()
        )

    async def _declare_pool(self) -> None:
        services: Services = self._harness.services
        settings = ProducerSettings(
            amqp_url=services.amqp_url, redis_url=services.redis_url, queue_type=self._options.queue_type
        )
        async with Fleet.connect(settings) as fleet:
            await fleet.declare_pool(self._harness.pool)

    async def _producer(self, index: int, reaper: Reaper) -> ProducerProcess:
        step = 1 if self._options.shared_keys else PRODUCERS
        plan = Plan(
            amqp_url="",
            redis_url="",
            client_id=f"chaos-producer-{index}",
            pool=self._harness.pool,
            ledger=self._folder / f"ledger-{index}.jsonl",
            seed=self._options.seed,
            first=0 if self._options.shared_keys else index,
            step=step,
            end=self._options.jobs,
            per_second=self._options.jobs / step / (60 * self._options.minutes),
            queue_type=self._options.queue_type,
            patience_s=0.0 if self._options.shared_keys else 5.0,
            connect_timeout_s=1.0 if self._options.shared_keys else 5.0,
            wait_replicas=self._options.wait_replicas,
            fair_shares=self._options.fair_shares,
        )
        link = await self._harness.link()
        return ProducerProcess(plan, link=link, log=self._folder / f"producer-{index}.log", reaper=reaper)

    async def _disturb(
        self, producers: Sequence[ProducerProcess], services: ServiceFaults, garbage: Garbage
    ) -> Faults:
        faults = Faults(
            places=self._places,
            producers=producers,
            services=services,
            rng=random.Random(self._options.seed),  # noqa: S311 - repeatable
            shared_keys=self._options.shared_keys,
            limits=self._cluster is not None and no_file_limits() is None,
            say=self._say,
        )
        disturbing = {asyncio.create_task(faults.run())}
        if self._options.garbage:
            disturbing.add(asyncio.create_task(garbage.publish()))
        done, _ = await asyncio.wait(
            disturbing, timeout=60 * self._options.minutes, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            disturbing.add(asyncio.create_task(services.until_each_was_tried()))
            await asyncio.wait(disturbing, return_when=asyncio.FIRST_COMPLETED)
        for task in disturbing:
            task.cancel()
        for outcome in await asyncio.gather(*disturbing, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await faults.heal()
        return faults

    async def _settle(self, producers: Sequence[ProducerProcess], services: ServiceFaults) -> None:
        """Wait until every job has ended and every message is settled. What has not by then, will not.

        A job whose unread result Redis lost will not be heard of again.
        """
        self._say("no more faults")

        async def ended() -> bool:
            for producer in producers:
                if producer.poll() not in (None, 0):
                    raise RuntimeError(f"a producer failed; the end of its log:\n{producer.log_tail()}")
            missing: set[str] = set()
            submitted: set[int] = set()
            for tail in self._tails:
                tail.read()
                missing |= tail.accepted - tail.ended
                submitted |= tail.numbers
            return len(submitted) == self._options.jobs and missing <= await services.unknown(missing)

        async def settled() -> bool:
            depths = await self._harness.depths(job_queue(self._harness.pool))
            return not any(depths.values())

        async def swept() -> bool:
            # As it is now: with each new connection, jobs that ended lately enter again for a while.
            self._index = await self._harness.index()
            return not self._index

        for condition, what in (
            (ended, "all jobs have ended"),
            (settled, "all messages are settled"),
            (swept, "no job is open any more"),
        ):
            self._say(f"waiting until {what}")
            try:
                await self._harness.until(condition, what=what, patience_s=SETTLE_S)
            except TimeoutError as error:
                logger.warning("%s", error)
        # A reader may be behind, because the last entries of a stream arrive right after the result.
        with suppress(TimeoutError):
            async with asyncio.timeout(READERS_S):
                await asyncio.gather(*(producer.wait() for producer in producers))

    async def _report(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            for tail in self._tails:
                tail.read()
            accepted = sum(len(tail.accepted) for tail in self._tails)
            ended = sum(len(tail.ended) for tail in self._tails)
            died = sum(place.deaths for place in self._places)
            self._say(
                f"{time.monotonic() - began:5.0f} s  {accepted} accepted  {ended} ended  {died} workers died"
            )


def _ends(history: History) -> dict[str, int]:
    ends: dict[str, int] = {}
    for job in history.jobs:
        result = job.stored or next(iter(job.seen), None)
        end = result.state.value if result is not None else "none"
        ends[end] = ends.get(end, 0) + 1
    return dict(sorted(ends.items()))
