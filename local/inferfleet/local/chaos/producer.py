"""A producer process: submits jobs at a steady pace, watches each to its end, and can be killed at any time.

Started again with the same plan, it continues where its ledger ends: it submits jobs that may or may not have
been accepted again under their idempotency keys, and watches the others again, streams from their last
cursors on. It exits with 0 when all its jobs have ended, or after SIGTERM.

    python -m inferfleet.local.chaos.producer PLAN
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel
from redis.exceptions import RedisError

from inferfleet.local.chaos.ledger import Accepted, CancelAsked, Intent, Ledger, Seen, Streamed, read_ledger
from inferfleet.local.chaos.workload import Kind, kind_of, make_job
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import InferfleetError, InvalidJobError, JobNotFoundError
from inferfleet.schemas.journal import FinishedEntry
from inferfleet.schemas.settings import ProducerSettings, QueueType

AT_ONCE = 64
"""The number of concurrent submissions."""

PAUSE_S = 0.2
"""The pause between two attempts during an outage."""

READ = ""
"""The value in place of a cursor when a stream was read to its end."""

_OUTAGE = (InferfleetError, RedisError, OSError)


class Plan(BaseModel):
    """What one producer is to do: the jobs ``first``, ``first + step``, … of the seed, below ``end``."""

    amqp_url: str
    redis_url: str
    client_id: str
    pool: str
    ledger: Path
    seed: int
    first: int
    step: int
    end: int
    per_second: float
    queue_type: QueueType = QueueType.CLASSIC
    patience_s: float = 5.0
    connect_timeout_s: float = 5.0
    publish_timeout_s: float = 5.0
    wait_replicas: int = 0
    fair_shares: bool = False


class Producer:
    """One client with all its jobs."""

    def __init__(self, plan: Plan, *, fleet: Fleet, ledger: Ledger) -> None:
        self._plan = plan
        self._fleet = fleet
        self._ledger = ledger
        self._submitting = asyncio.Semaphore(AT_ONCE)
        self._rng = random.Random()  # noqa: S311 - when to cancel is not part of the seed

    async def run(self) -> None:
        """Continue where the ledger ends, and watch all jobs until they end."""
        intents: set[int] = set()
        accepted: dict[int, Job] = {}
        seen: set[str] = set()
        cursors: dict[str, str] = {}
        for event in read_ledger(self._plan.ledger):
            match event:
                case Intent(number=number):
                    intents.add(number)
                case Accepted(number=number, job=job):
                    accepted[number] = job
                case Seen(result=result):
                    seen.add(result.job_id)
                case Streamed(job_id=job_id, cursor=cursor, entry=entry):
                    cursors[job_id] = READ if isinstance(entry, FinishedEntry) else cursor
                case CancelAsked():
                    pass
        async with asyncio.TaskGroup() as tasks:
            for number in sorted(intents - accepted.keys()):
                tasks.create_task(self._submit(number))
            for job in accepted.values():
                read_so_far = cursors.get(job.id)
                if job.id not in seen:
                    tasks.create_task(self._watch(job, cursor=read_so_far))
                elif job.stream and read_so_far != READ:
                    tasks.create_task(self._read(job, read_so_far))
            next_one = max(intents, default=self._plan.first - self._plan.step) + self._plan.step
            due = asyncio.get_running_loop().time()
            for number in range(next_one, self._plan.end, self._plan.step):
                tasks.create_task(self._submit(number))
                due += 1 / self._plan.per_second
                await asyncio.sleep(due - asyncio.get_running_loop().time())

    async def _submit(self, number: int) -> None:
        async with self._submitting:
            self._ledger.write(Intent(number=number))
            wanted = make_job(seed=self._plan.seed, number=number, pool=self._plan.pool)
            while True:
                try:
                    job = await self._fleet.submit(wanted)
                    break
                except InvalidJobError:
                    # Not an outage: the soak's own jobs are invalid.
                    raise
                except _OUTAGE:
                    await asyncio.sleep(PAUSE_S)
            self._ledger.write(Accepted(number=number, job=job))
            await asyncio.to_thread(self._ledger.sync)
        await self._watch(job, cursor=None)

    async def _watch(self, job: Job, *, cursor: str | None) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wait(job))
            if kind_of(job) is Kind.CANCELLED:
                tasks.create_task(self._cancel(job))
            if job.stream and cursor != READ:
                tasks.create_task(self._read(job, cursor))

    async def _wait(self, job: Job) -> None:
        while True:
            try:
                result = await self._fleet.wait(job)
            except _OUTAGE:
                # Redis has lost the record, and no worker has started the job yet.
                await asyncio.sleep(PAUSE_S)
            else:
                self._ledger.write(Seen(result=result))
                return

    async def _read(self, job: Job, cursor: str | None) -> None:
        while True:
            try:
                lines = self._fleet.stream(job) if cursor is None else self._fleet.stream(job, after=cursor)
                async for line in lines:
                    cursor = line.id
                    self._ledger.write(Streamed(job_id=job.id, cursor=cursor, entry=line.entry))
                    if isinstance(line.entry, FinishedEntry):
                        return
            except JobNotFoundError:
                await asyncio.sleep(PAUSE_S)
            except _OUTAGE:
                await asyncio.sleep(PAUSE_S)

    async def _cancel(self, job: Job) -> None:
        await asyncio.sleep(self._rng.uniform(0, 1.5))
        self._ledger.write(CancelAsked(job_id=job.id))
        for _ in range(20):
            try:
                await self._fleet.cancel(job)
                return
            except _OUTAGE:
                await asyncio.sleep(PAUSE_S)


async def produce(plan: Plan) -> None:
    """Connect, as soon as Redis answers, and run."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _leave)
    settings = ProducerSettings(
        amqp_url=plan.amqp_url,
        redis_url=plan.redis_url,
        client_id=plan.client_id,
        queue_type=plan.queue_type,
        patience_s=plan.patience_s,
        connect_timeout_s=plan.connect_timeout_s,
        publish_timeout_s=plan.publish_timeout_s,
        redis_wait_replicas=plan.wait_replicas,
        fair_shares=plan.fair_shares,
        state_check_interval_s=2.0,
    )
    ledger = Ledger(plan.ledger)
    while True:
        try:
            async with Fleet.connect(settings) as fleet:
                await Producer(plan, fleet=fleet, ledger=ledger).run()
            return
        except _OUTAGE:
            await asyncio.sleep(PAUSE_S)


def _leave() -> NoReturn:
    # Everything is in the ledger, so there is nothing to clean up.
    os._exit(0)


def main() -> None:
    """Run the plan given as JSON in the one argument."""
    asyncio.run(produce(Plan.model_validate_json(sys.argv[1])))


if __name__ == "__main__":
    main()
