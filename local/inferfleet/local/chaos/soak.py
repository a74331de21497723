"""A soak: producers submit, workers run, things go wrong; then all heals, and the history is checked."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferfleet.local.chaos.checker import Finding, Violation, check
from inferfleet.local.chaos.collect import collect
from inferfleet.local.chaos.faults import Faults
from inferfleet.local.chaos.garbage import Garbage
from inferfleet.local.chaos.harness import PATIENCE_S, Harness
from inferfleet.local.chaos.history import History
from inferfleet.local.chaos.ledger import whole_line
from inferfleet.local.chaos.members import WorkerSlot
from inferfleet.local.chaos.producer import Plan
from inferfleet.local.chaos.producers import ProducerProcess
from inferfleet.local.chaos.waste import Waste, measure
from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.worker_processes import wait_until_ready
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import ProducerSettings, QueueType

logger = logging.getLogger(__name__)

PRODUCERS = 2
SETTLE_S = 180.0
"""How long after the last fault every job may take to end."""

READERS_S = 5.0
"""How long a stream reader may be behind the end of its job."""

REPORT_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """How much of what. ``jobs`` are submitted evenly over ``minutes``, and the faults end with them."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakReport:
    """What came of it."""

    options: SoakOptions
    accepted: int
    ends: dict[str, int]
    faults: dict[str, int]
    violations: dict[str, int]
    findings: tuple[Finding, ...]
    excused: int
    waste: Waste
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no promise was broken."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """The report as data."""
        return {
            "seed": self.options.seed,
            "minutes": self.options.minutes,
            "jobs": self.accepted,
            "ends": self.ends,
            "faults": self.faults,
            "violations": self.violations,
            "excused": self.excused,
            "tokens_generated": self.waste.generated,
            "tokens_wasted_at_most": self.waste.wasted,
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
    # Redis must keep every write that it has answered; otherwise the history cannot be checked.
    async with running_services(ServicesChoice.NATIVE, fsync=Fsync.ALWAYS) as services:
        say(f"seed {options.seed}: {services.announcement}")
        around = Harness.around(services, log_folder=folder, queue_type=options.queue_type)
        async with around as harness:
            run = _Run(harness, options, folder, say)
            history, faults = await run.run()
    verdict = check(history)
    findings = (*verdict.findings, *run.crashes())
    return SoakReport(
        options=options,
        accepted=len(history.jobs),
        ends=_ends(history),
        faults=faults,
        violations=verdict.by_kind() | {Violation.WORKER_CRASHED.value: len(run.crashes())},
        findings=findings,
        excused=verdict.excused,
        waste=measure(history),
        seconds=time.monotonic() - started,
    )


class _Run:
    """The part of a soak that needs services."""

    def __init__(
        self, harness: Harness, options: SoakOptions, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._harness = harness
        self._options = options
        self._folder = folder
        self._say = say
        self._places: list[WorkerSlot] = []

    async def run(self) -> tuple[History, dict[str, int]]:
        await self._declare_pool()
        models = random.Random(self._options.seed) if self._options.another_model else None  # noqa: S311
        self._places = [
            WorkerSlot(self._harness, await self._harness.link(), models=models)
            for _ in range(self._options.workers)
        ]
        await wait_until_ready([place.member.process for place in self._places], timeout_s=PATIENCE_S)
        async with AsyncExitStack() as stack:
            reaper = stack.enter_context(Reaper())
            producers = [await self._producer(index, reaper) for index in range(PRODUCERS)]
            for producer in producers:
                stack.push_async_callback(producer.crash)
                producer.start()
            keepers = [asyncio.create_task(place.keep()) for place in self._places]
            reporting = asyncio.create_task(self._report(producers))
            garbage = Garbage(self._harness, rng=random.Random(self._options.seed))  # noqa: S311 - repeatable
            try:
                faults = await self._disturb(producers, garbage)
                await self._settle(producers, faults.lost_results)
            finally:
                for task in (*keepers, reporting):
                    task.cancel()
                await asyncio.gather(*keepers, reporting, return_exceptions=True)
            await asyncio.gather(*(place.member.process.stop() for place in self._places))
        history = await collect(
            self._harness,
            [producer.ledger for producer in producers],
            lost_results=frozenset(faults.lost_results),
            workers={id_: life for place in self._places for id_, life in place.lives().items()},
            queues=(job_queue(self._harness.pool),),
            garbage=garbage,
            keys_lost=self._options.empty_redis,
        )
        happened = {fault.value: count for fault, count in sorted(faults.happened.items())}
        if self._options.another_model:
            happened["another_model"] = sum(place.another_model for place in self._places)
        return history, happened | {"killed_by_job": sum(place.killed_by_jobs for place in self._places)}

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
        )
        link = await self._harness.link()
        return ProducerProcess(plan, link=link, log=self._folder / f"producer-{index}.log", reaper=reaper)

    async def _disturb(self, producers: Sequence[ProducerProcess], garbage: Garbage) -> Faults:
        faults = Faults(
            harness=self._harness,
            places=self._places,
            producers=producers,
            rng=random.Random(self._options.seed),  # noqa: S311 - repeatable
            empty_redis=self._options.empty_redis,
            shared_keys=self._options.shared_keys,
        )
        disturbing = {asyncio.create_task(faults.run())}
        if self._options.garbage:
            disturbing.add(asyncio.create_task(garbage.publish()))
        await asyncio.wait(
            disturbing, timeout=60 * self._options.minutes, return_when=asyncio.FIRST_COMPLETED
        )
        for task in disturbing:
            task.cancel()
        for outcome in await asyncio.gather(*disturbing, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await faults.heal()
        return faults

    async def _settle(self, producers: Sequence[ProducerProcess], lost_results: Collection[str]) -> None:
        """Wait until every job has ended and every message is settled. What has not by then, will not.

        A job whose unread result Redis lost will not be heard of again.
        """
        self._say("no more faults; waiting for every job to end")
        tails = [_Tail(producer.ledger) for producer in producers]

        async def ended() -> bool:
            for producer in producers:
                if producer.poll() not in (None, 0):
                    raise RuntimeError(f"a producer failed; the end of its log:\n{producer.log_tail()}")
            missing: set[str] = set()
            submitted: set[int] = set()
            for tail in tails:
                tail.read()
                missing |= tail.accepted - tail.ended
                submitted |= tail.numbers
            return len(submitted) == self._options.jobs and missing <= set(lost_results)

        async def settled() -> bool:
            depths = await self._harness.depths(job_queue(self._harness.pool))
            return not any(depths.values())

        for condition, what in ((ended, "all jobs have ended"), (settled, "all messages are settled")):
            try:
                await self._harness.until(condition, what=what, patience_s=SETTLE_S)
            except TimeoutError as error:
                logger.warning("%s", error)
        # A reader may be behind, because the last entries of a stream arrive right after the result.
        with suppress(TimeoutError):
            async with asyncio.timeout(READERS_S):
                await asyncio.gather(*(producer.wait() for producer in producers))

    async def _report(self, producers: Sequence[ProducerProcess]) -> None:
        began = time.monotonic()
        tails = [_Tail(producer.ledger) for producer in producers]
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            for tail in tails:
                tail.read()
            accepted = sum(len(tail.accepted) for tail in tails)
            ended = sum(len(tail.ended) for tail in tails)
            died = sum(len(place.deaths) for place in self._places)
            self._say(
                f"{time.monotonic() - began:5.0f} s  {accepted} accepted  {ended} ended  {died} workers died"
            )


class _Tail:
    """Follows a ledger as it grows: which jobs were accepted, and of which the end was seen."""

    def __init__(self, path: Path) -> None:
        self.numbers: set[int] = set()
        self.accepted: set[str] = set()
        self.ended: set[str] = set()
        self._path = path
        self._offset = 0

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as ledger:
            ledger.seek(self._offset)
            text = ledger.read()
        whole = text.rfind(b"\n") + 1
        self._offset += whole
        for line in text[:whole].splitlines(keepends=True):
            if line.startswith((b'{"event":"accepted"', b'{"event":"seen"')):
                match whole_line(line):
                    case {"event": "accepted", "number": int(number), "job": {"id": str(job_id)}}:
                        self.numbers.add(number)
                        self.accepted.add(job_id)
                    case {"event": "seen", "result": {"job_id": str(job_id)}}:
                        self.ended.add(job_id)
                    case _:
                        pass


def _ends(history: History) -> dict[str, int]:
    ends: dict[str, int] = {}
    for job in history.jobs:
        result = job.stored or next(iter(job.seen), None)
        end = result.state.value if result is not None else "none"
        ends[end] = ends.get(end, 0) + 1
    return dict(sorted(ends.items()))
