"""The producer of the demo: submits the jobs, waits for all, and streams an urgent one in between."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress

from inferfleet.local.demo.progress import Progress, UrgentStream
from inferfleet.local.demo.workload import mixed_jobs, urgent_job
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import JobNotFoundError
from inferfleet.schemas.job import Job
from inferfleet.schemas.journal import (
    FinishedEntry,
    JournalEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokensEntry,
)

URGENT_COMES_AT = 1 / 3
"""The share of the jobs that have finished when the urgent one is submitted: in the middle of the load."""


class Load:
    """``progress.total`` jobs, one of them urgent."""

    def __init__(self, *, fleet: Fleet, engine: str, seed: int, progress: Progress) -> None:
        self._fleet = fleet
        self._engine = engine
        self._seed = seed
        self._progress = progress
        self._middle = asyncio.Event()
        self.submitted: list[Job] = []

    async def run(self) -> None:
        """Return when every job has its result, or turns out to have no record."""
        jobs = mixed_jobs(self._progress.total - 1, seed=self._seed, engine=self._engine)
        self.submitted += await self._fleet.submit_many(jobs)
        self._look_for_the_middle()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stream_urgent())
                for job in jobs:
                    tasks.create_task(self._wait(job))
        except ExceptionGroup as group:
            # With Redis gone they all say the same.
            raise group.exceptions[0] from group

    async def _wait(self, job: Job) -> None:
        # A job without a record is a lost one. The count at the end says so.
        with suppress(JobNotFoundError):
            self._progress.add(await self._fleet.wait(job))
            self._look_for_the_middle()

    async def _stream_urgent(self) -> None:
        await self._middle.wait()
        stream = self._progress.urgent = UrgentStream()
        started = time.monotonic()
        job = await self._fleet.submit(urgent_job(engine=self._engine))
        self.submitted.append(job)
        async with aclosing(self._fleet.stream(job)) as lines:
            async for line in lines:
                if isinstance(line.entry, TokensEntry) and stream.first_token_s is None:
                    stream.first_token_s = time.monotonic() - started
                stream.text = _text_after(stream.text, line.entry)
        await self._wait(job)
        stream.finished_s = time.monotonic() - started

    def _look_for_the_middle(self) -> None:
        if self._progress.finished >= (self._progress.total - 1) * URGENT_COMES_AT:
            self._middle.set()


def _text_after(text: str, entry: JournalEntry) -> str:
    """The answer's text once this entry has been read."""
    match entry:
        case TokensEntry(chunks=chunks):
            return text + "".join(chunk.text for chunk in chunks)
        case RestartedEntry():
            return ""
        case QueuedEntry() | RunningEntry() | FinishedEntry():
            return text
