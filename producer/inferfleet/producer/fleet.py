"""The client: submit jobs, wait for them, read their tokens as they come, cancel them.

The command line is this same client behind another door.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Unpack

from inferfleet.producer.background import background
from inferfleet.producer.dead_letters import DeadLetters
from inferfleet.producer.job_making import JobOptions, make_job
from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.producer.publisher import Publisher
from inferfleet.producer.reader import Reader
from inferfleet.producer.sessions import Session
from inferfleet.producer.submission import Submission
from inferfleet.schemas.errors import (
    InvalidJobError,
    JobNotFoundError,
    ServiceRefusedError,
    ServiceUnreachableError,
    WaitTimeoutError,
)
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.problems import printable
from inferfleet.schemas.result import JobRecord, Result
from inferfleet.schemas.settings import ProducerSettings, read_settings
from inferfleet.wire.draining import drain_worker
from inferfleet.wire.home import Home
from inferfleet.wire.redis.access import PRODUCER
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.connection import open_store
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import note_limit
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.wire.redis.session_lanes import SessionLanes
from inferfleet.wire.redis.session_records import SessionRecords
from inferfleet.wire.redis.streams import BlockedReader


class Fleet:
    """A client of the fleet. Make one with ``Fleet.connect`` and share it between tasks of one event loop.

    Each call raises ``ClientUnusableError`` in another event loop, and in a process that was forked since.
    """

    def __init__(
        self,
        *,
        settings: ProducerSettings,
        publisher: Publisher,
        pipeline: CommandPipeline,
        records: JobRecords,
        reader: Reader,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._pipeline = pipeline
        self._records = records
        self._reader = reader
        self._session_records = SessionRecords(pipeline=pipeline, settings=settings)
        self._histories = SessionHistories(pipeline=pipeline, settings=settings)
        self._submission = Submission(
            settings=settings,
            pipeline=pipeline,
            records=records,
            session_lanes=SessionLanes(pipeline=pipeline, settings=settings),
            histories=self._histories,
            publisher=publisher,
        )
        self.dead_letters = DeadLetters(settings, self.submit)
        """The messages that were given up."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: ProducerSettings | None = None) -> AsyncGenerator[Fleet]:
        """Connect to Redis now and to RabbitMQ on the first publish; without settings, from the environment.

        Raises:
            ServiceUnreachableError: Redis does not answer, for longer than ``patience_s``.
            ServiceRefusedError: Redis answers, and refuses what a client needs.
            ConfigurationError: A setting is wrong.

        """
        settings = settings or read_settings(ProducerSettings)
        home, clock = Home(), RedisClock()
        async with (
            open_store(
                settings.redis_url,
                access=PRODUCER,
                clock=clock,
                patience_s=settings.patience_s,
                allow_eviction=settings.allow_eviction,
            ) as client,
            BlockedReader.opened(settings.redis_url) as blocked,
        ):
            pipeline = CommandPipeline(client, patience_s=settings.patience_s, clock=clock, home=home)
            records = JobRecords(
                pipeline=pipeline,
                result_ttl_s=settings.result_ttl_s,
                queued_ttl_s=settings.queued_ttl_s,
            )
            reader = Reader(
                blocked=blocked,
                pipeline=pipeline,
                records=records,
                client_id=settings.client_id,
                state_check_interval_s=settings.state_check_interval_s,
            )
            publisher = Publisher(settings, home=home)
            async with background(pipeline.run()):
                await reader.start()
                async with background(reader.run(), reader.poll_states()):
                    try:
                        yield cls(
                            settings=settings,
                            publisher=publisher,
                            pipeline=pipeline,
                            records=records,
                            reader=reader,
                        )
                    finally:
                        reader.close()
                        home.close()
                        await publisher.aclose()

    async def submit(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Submit one job and return once the broker has it.

        ``work`` is a prompt, an OpenAI request body, or a whole ``Job``. When this returns, the job will
        reach exactly one terminal result. When it raises anything but ``PublishUnconfirmedError``, the
        job was not accepted, nor for another caller with its idempotency key.

        Raises:
            InvalidJobError: The job breaks the contract, or no worker could read it; nothing was sent.
            UnknownPoolError: No queue is bound for the pool.
            QueueFullError: The pool is at its limit.
            SessionBusyError: The session has an unfinished turn, and ``on_busy`` is ``reject``.
            SessionTooLargeError: The session's history is at its size limit.
            PublishUnconfirmedError: The broker may or may not have it; the same idempotency key is safe.
            ServiceRefusedError: The broker refuses it: it is too large, or a permission is missing.
            ServiceUnreachableError: RabbitMQ or Redis does not answer. Without Redis nobody knows what
                became of earlier calls with the same key.

        """
        return await self._submission.accept(self._job(work, options))

    async def submit_many(
        self, work: Iterable[str | Mapping[str, Any] | Job], **options: Unpack[JobOptions]
    ) -> list[Job]:
        """Submit many jobs; much faster than one by one. All are checked before the first is sent.

        Raises:
            InvalidJobError: One of them breaks the contract; it says which, counted from 0. Nothing was sent.
            PartialSubmitError: Some were not accepted; it says which, and why.

        """
        self._pipeline.check_home()
        jobs: list[Job] = []
        for position, item in enumerate(work):
            try:
                jobs.append(self._job(item, options))
            except InvalidJobError as error:
                raise InvalidJobError(f"number {position} of the jobs: {error}") from error
        return await self._submission.accept_many(jobs)

    async def get(self, job: Job | str) -> JobRecord:
        """Read what is known of a job now.

        Raises:
            JobNotFoundError: There is no record of it.
            JobDataLostError: It has ended, and its result is gone.

        """
        return await self._records.get(_id(job))

    async def get_many(self, jobs: Iterable[Job | str]) -> dict[str, JobRecord | None]:
        """Read many jobs at once, by id. A job without a readable record is ``None``."""
        return await self._records.get_many(map(_id, jobs))

    async def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Result:
        """Wait for a job's terminal result. Many waits at once cost one connection and no polling.

        Cancelling the wait, or its timeout, does not touch the job.

        Raises:
            WaitTimeoutError: ``timeout_s`` passed first.
            JobNotFoundError: There is no record of the job, or there is none any more.
            JobDataLostError: It has ended, and its result is gone.

        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reader.wait(_id(job))
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"job {_id(job)} did not finish within {timeout_s:g} s; it continues"
            ) from error

    async def wait_many(self, jobs: Sequence[Job | str], *, timeout_s: float | None = None) -> list[Result]:
        """Wait for many jobs; the results come in the order of the jobs.

        Raises:
            WaitTimeoutError: ``timeout_s`` passed before all had finished.
            JobNotFoundError: There is no record of one of them.

        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*(self._reader.wait(_id(job)) for job in jobs))
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"not all of the {len(jobs)} jobs finished within {timeout_s:g} s; they continue"
            ) from error

    async def stream(self, job: Job | str, *, after: str = BEGINNING) -> AsyncGenerator[JournalLine]:
        """Read a job's journal as it grows, from behind the line ``after``, to its end.

        Submit the job with ``stream=True`` to have tokens within some 50 ms; otherwise they come in
        portions, about one a second. A reader that was cut off goes on with the last ``id`` it saw.

        Raises:
            JobNotFoundError: There is no record of the job, or there is none any more.
            JobDataLostError: A part of the journal is gone.

        """
        job_id = _id(job)
        state = (await self._records.states([job_id]))[job_id]
        if state is None:
            raise JobNotFoundError(job_id)
        async with aclosing(self._reader.follow(job_id, after=after, ended=state.terminal)) as lines:
            async for line in lines:
                yield line

    async def cancel(self, job: Job | str) -> JobState:
        """Cancel a job. A queued one is ``cancelled`` on return; for a running one this is a request,
        unless no worker has held the job for longer than its lease: then it is ``cancelled``, too.

        Returns the state the job is in now: a job that had finished stays as it was.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        return await self._submission.cancel(_id(job))

    def session(self, session_id: str) -> Session:
        """A session of an agent: its turns, its history and its state. Makes no call.

        Raises:
            InvalidJobError: No session may have this id.

        """
        return Session(
            session_id, records=self._session_records, histories=self._histories, submit=self.submit
        )

    async def sessions(self, *, limit: int = 1000) -> list[str]:
        """The ids of sessions, at most ``limit``."""
        return await self._session_records.list(limit=limit)

    async def declare_pool(self, pool: str) -> None:
        """Make sure that a pool has its queues, so that jobs are accepted before its first worker starts.

        Tells Redis the queue's limit, too, which holds for turns that wait in lanes.
        """
        await self._publisher.declare_pool(pool)
        # Only a note: each worker of the pool makes the same one.
        with suppress(ServiceUnreachableError, ServiceRefusedError):
            await note_limit(self._pipeline, pool, self._settings.queue_max_length)

    async def drain(self, worker_id: str, *, timeout_s: float = 30.0) -> None:
        """Tell a worker to finish or hand over what it runs, and exit. Returns once it has begun to.

        Raises:
            UnknownWorkerError: No worker of this name is alive.
            WaitTimeoutError: It did not answer within ``timeout_s``.
            ServiceUnreachableError: RabbitMQ or Redis does not answer.

        """
        await drain_worker(self._pipeline, self._publisher.send, worker_id, timeout_s=timeout_s)

    async def workers(self) -> list[Heartbeat]:
        """The workers that are alive, as they say of themselves."""
        return await read_heartbeats(self._pipeline)

    def _job(self, work: str | Mapping[str, Any] | Job, options: JobOptions) -> Job:
        return make_job(
            work, options, max_body_bytes=self._settings.max_body_bytes, now=self._pipeline.clock.now()
        )


def _id(job: Job | str) -> str:
    return job.id if isinstance(job, Job) else printable(str(job))
