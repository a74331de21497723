"""The demo's producer: submits the jobs, waits for all of them, and streams an urgent one in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

from inferfleet.local.demo.progress import Kill, Progress, UrgentStream
from inferfleet.local.demo.workload import Workload
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import JobNotFoundError
from inferfleet.schemas.job import Job

URGENT_COMES_AT = 1 / 3
"""The share of the jobs that have finished when the urgent one is submitted: in the middle of the load."""


class Load:
    """``progress.total`` jobs, one of them urgent.

    ``kill`` kills a worker by its id. In the middle of the urgent answer it is called with the worker that
    generates the answer. Without ``kill`` no worker dies.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        workload: Workload,
        seed: int,
        progress: Progress,
        kill: Callable[[str], Awaitable[None]] | None,
    ) -> None:
        self._fleet = fleet
        self._workload = workload
        self._seed = seed
        self._progress = progress
        self._kill = kill
        self._middle = asyncio.Event()
        self.submitted: list[Job] = []

    async def run(self) -> None:
        """Run the load. Return when every job has a result, or turns out to have no record."""
        jobs = self._workload.mixed_jobs(self._progress.total - 1, seed=self._seed)
        self.submitted += await self._fleet.submit_many(jobs)
        self._submit_urgent_in_the_middle()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stream_urgent())
                for job in jobs:
                    tasks.create_task(self._wait(job))
        except ExceptionGroup as group:
            # If Redis is unreachable, all waits raise the same error.
            raise group.exceptions[0] from group

    async def _wait(self, job: Job) -> None:
        # A job without a record is lost, and counted so in the report.
        with suppress(JobNotFoundError):
            self._progress.add(await self._fleet.wait(job))
            self._submit_urgent_in_the_middle()

    async def _stream_urgent(self) -> None:
        await self._middle.wait()
        stream = self._progress.urgent = UrgentStream(self._workload.urgent_prompt)
        started = time.monotonic()
        job = await self._fleet.submit(self._workload.urgent_job())
        self.submitted.append(job)
        async with aclosing(self._fleet.stream(job)) as lines:
            async for line in lines:
                stream.read(line.entry, at_s=time.monotonic() - started)
                if (
                    self._kill is not None
                    and stream.kill is None
                    and stream.tokens >= self._workload.kill_after_tokens
                ):
                    worker_id = stream.passages[-1].worker_id
                    stream.kill = Kill(worker_id, stream.tokens, time.monotonic() - started)
                    await self._kill(worker_id)
        await self._wait(job)
        stream.finished_s = time.monotonic() - started

    def _submit_urgent_in_the_middle(self) -> None:
        if self._progress.finished >= (self._progress.total - 1) * URGENT_COMES_AT:
            self._middle.set()
