"""The client: submit jobs, wait for them, read their tokens as they come, cancel them.

The gateway and the command line are this same client behind other doors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, TypedDict, Unpack

from pydantic import ValidationError

from inferfleet.producer import idempotency
from inferfleet.producer.background import background
from inferfleet.producer.dead_letters import DeadLetters
from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.producer.publisher import Publisher
from inferfleet.producer.reader import BLOCK_S, Reader
from inferfleet.schemas.control import CancelJob, DrainWorker
from inferfleet.schemas.errors import (
    InferfleetError,
    InvalidJobError,
    PartialSubmitError,
    QueueFullError,
    ServiceUnreachableError,
    UnknownPoolError,
    WaitTimeoutError,
)
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import Endpoint, Job, JobState
from inferfleet.schemas.request import check_request, job_error
from inferfleet.schemas.result import JobRecord, Result
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.health import read_heartbeats
from inferfleet.wire.pipeline import CommandPipeline
from inferfleet.wire.records import JobRecords
from inferfleet.wire.redis import SOCKET_TIMEOUT_S, check_redis, redis_client

SUBMIT_WINDOW = 1024
"""Jobs of one ``submit_many`` that wait for their confirm at the same time."""


class JobOptions(TypedDict, total=False):
    """What a job may say besides its body. The fields are those of ``Job``."""

    endpoint: Endpoint | str
    pool: str
    priority: int
    session_id: str | None
    stream: bool
    expires_at: datetime | None
    timeout_s: float | None
    max_attempts: int
    idempotency_key: str | None
    tenant: str
    metadata: dict[str, str]


class Fleet:
    """A client of the fleet. Make one with ``Fleet.connect`` and share it between tasks."""

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
        self.dead_letters = DeadLetters(settings, self.submit)
        """The messages that were given up."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: ProducerSettings | None = None) -> AsyncGenerator[Fleet]:
        """Connect to Redis now and to RabbitMQ on the first publish; without settings, from the environment.

        Raises:
            ServiceUnreachableError: Redis does not answer.

        """
        settings = settings or ProducerSettings()
        async with (
            redis_client(settings.redis_url) as client,
            redis_client(
                settings.redis_url, connections=1, socket_timeout_s=BLOCK_S + SOCKET_TIMEOUT_S
            ) as blocking_client,
        ):
            await check_redis(client, settings.redis_url)
            pipeline = CommandPipeline(client, patience_s=settings.patience_s)
            records = JobRecords(
                pipeline=pipeline,
                client=client,
                result_ttl_s=settings.result_ttl_s,
                queued_ttl_s=settings.queued_ttl_s,
            )
            reader = Reader(
                blocking_client=blocking_client,
                client=client,
                records=records,
                client_id=settings.client_id,
                state_check_interval_s=settings.state_check_interval_s,
            )
            publisher = Publisher(settings)
            async with background(pipeline.run(), reader.read_for_ever(), reader.check_for_ever()):
                try:
                    yield cls(
                        settings=settings,
                        publisher=publisher,
                        pipeline=pipeline,
                        records=records,
                        reader=reader,
                    )
                finally:
                    await publisher.aclose()

    async def submit(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Submit one job and return once the broker has it.

        ``work`` is a prompt, an OpenAI request body, or a whole ``Job``. When this returns, the job will
        reach exactly one terminal result. When it raises anything but ``PublishUnconfirmedError``, the
        job was not accepted.

        Raises:
            InvalidJobError: The job breaks the contract; nothing was sent.
            UnknownPoolError: No queue is bound for the pool.
            QueueFullError: The pool is at its limit.
            PublishUnconfirmedError: The broker may or may not have it; the same idempotency key is safe.
            ServiceUnreachableError: RabbitMQ or Redis does not answer.

        """
        return await self._accept(self._job(work, options))

    async def submit_many(
        self, work: Iterable[str | Mapping[str, Any] | Job], **options: Unpack[JobOptions]
    ) -> list[Job]:
        """Submit many jobs; much faster than one by one. All are checked before the first is sent.

        Raises:
            InvalidJobError: One of them breaks the contract; nothing was sent.
            PartialSubmitError: Some were not accepted; it says which, and why.

        """
        jobs = [self._job(item, options) for item in work]
        outcomes: list[Job | BaseException] = []
        for first in range(0, len(jobs), SUBMIT_WINDOW):
            window = jobs[first : first + SUBMIT_WINDOW]
            outcomes += await asyncio.gather(*map(self._accept, window), return_exceptions=True)
        accepted: list[Job] = []
        rejected: dict[int, InferfleetError] = {}
        for position, outcome in enumerate(outcomes):
            match outcome:
                case Job():
                    accepted.append(outcome)
                case InferfleetError():
                    rejected[position] = outcome
                case BaseException():
                    raise outcome
        if rejected:
            raise PartialSubmitError(accepted=[job.id for job in accepted], rejected=rejected)
        return accepted

    async def get(self, job: Job | str) -> JobRecord:
        """Read what is known of a job now.

        Raises:
            JobNotFoundError: There is no record of it.

        """
        return await self._records.get(_id(job))

    async def get_many(self, jobs: Iterable[Job | str]) -> dict[str, JobRecord | None]:
        """Read many jobs at once, by id. A job without a record is ``None``."""
        return await self._records.get_many(map(_id, jobs))

    async def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Result:
        """Wait for a job's terminal result. Many waits at once cost one connection and no polling.

        Cancelling the wait, or its timeout, does not touch the job.

        Raises:
            WaitTimeoutError: ``timeout_s`` passed first.
            JobNotFoundError: There is no record of the job.

        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reader.wait(_id(job))
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"job {_id(job)} did not finish within {timeout_s:g} s; it goes on"
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
                f"not all of the {len(jobs)} jobs finished within {timeout_s:g} s; they go on"
            ) from error

    async def stream(self, job: Job | str, *, after: str = BEGINNING) -> AsyncGenerator[JournalLine]:
        """Read a job's journal as it grows, from behind the line ``after``, to its end.

        Submit the job with ``stream=True`` to have tokens within some 50 ms; otherwise they come in
        portions, about one a second. A reader that was cut off goes on with the last ``id`` it saw.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        job_id = _id(job)
        await self._records.get(job_id)
        async with aclosing(self._reader.follow(job_id, after=after)) as lines:
            async for line in lines:
                yield line

    async def cancel(self, job: Job | str) -> JobState:
        """Cancel a job. A queued one is ``cancelled`` on return; for a running one this is a request.

        Returns the state the job is in now: a job that had finished stays as it was.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        job_id = _id(job)
        state = await self._records.cancel(
            job_id,
            Result(
                job_id=job_id,
                state=JobState.CANCELLED,
                error=Failure(code=FailureCode.CANCELLED, message="cancelled before it ran"),
            ),
        )
        if state is JobState.RUNNING:
            await self._publisher.send(CancelJob(job_id=job_id))
        return state

    async def declare_pool(self, pool: str) -> None:
        """Make sure that a pool has its queues, so that jobs are accepted before its first worker starts."""
        await self._publisher.declare_pool(pool)

    async def drain(self, worker_id: str) -> None:
        """Tell a worker to finish or hand over what it runs, and exit."""
        await self._publisher.send(DrainWorker(worker_id=worker_id))

    async def workers(self) -> list[Heartbeat]:
        """The workers that are alive, as they say of themselves."""
        return await read_heartbeats(self._pipeline)

    def _job(self, work: str | Mapping[str, Any] | Job, options: JobOptions) -> Job:
        if misspelt := options.keys() - JobOptions.__annotations__.keys():
            raise TypeError(f"a job has no option {', '.join(map(repr, sorted(misspelt)))}")
        try:
            if isinstance(work, Job):
                job = Job.model_validate(work.model_dump() | options)
            else:
                endpoint = _endpoint(options.get("endpoint", Endpoint.CHAT))
                job = Job.model_validate({**options, "endpoint": endpoint, "body": _body(work, endpoint)})
        except ValidationError as error:
            raise job_error(error) from error
        check_request(job.endpoint, job.body, max_body_bytes=self._settings.max_body_bytes)
        return job

    async def _accept(self, job: Job) -> Job:
        """Record first, then publish: what is in the queue always has a record."""
        claim = await idempotency.claim(self._pipeline, job, ttl_s=self._settings.queued_ttl_s)
        job = claim.job
        if claim.accepted:
            return job
        created, state, attempt = await self._records.create(job, reply_to=self._settings.client_id)
        # A record that is queued and was never started may lack its message, if its producer died in
        # between. A second message does no harm: the fence lets one of them run.
        if created or (state is JobState.QUEUED and attempt == 0):
            try:
                await self._publisher.publish(job)
            except (UnknownPoolError, QueueFullError, ServiceUnreachableError):
                if created:
                    await self._records.discard(job.id)
                    await idempotency.forget(self._pipeline, job)
                raise
        await idempotency.accept(self._pipeline, job, ttl_s=self._settings.queued_ttl_s)
        return job


def _id(job: Job | str) -> str:
    return job.id if isinstance(job, Job) else job


def _endpoint(name: str) -> Endpoint:
    try:
        return Endpoint(name)
    except ValueError as error:
        raise InvalidJobError(f"endpoint: {name!r} is not one of {', '.join(Endpoint)}") from error


def _body(work: str | Mapping[str, Any], endpoint: Endpoint) -> object:
    if isinstance(work, Mapping):
        return dict(work)
    if not isinstance(work, str):
        # Callers without a type checker; ``Job`` says what is wrong with it.
        return work
    match endpoint:
        case Endpoint.CHAT:
            return {"messages": [{"role": "user", "content": work}]}
        case Endpoint.COMPLETIONS:
            return {"prompt": work}
        case Endpoint.EMBEDDINGS:
            return {"input": work}
