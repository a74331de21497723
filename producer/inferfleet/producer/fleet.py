"""The client: submits jobs, waits for them, streams their tokens, and cancels them.

The command line uses the same client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final, Unpack
from uuid import UUID

from inferfleet.producer.background import background
from inferfleet.producer.dead_letters import DeadLetters
from inferfleet.producer.fleet_watch import FleetWatch
from inferfleet.producer.job_handle import JobHandle
from inferfleet.producer.job_listing import EVERY_JOB, JobFilter, JobListing
from inferfleet.producer.job_making import JobOptions, make_job, several
from inferfleet.producer.job_pages import JobPage
from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.producer.pools import Pools
from inferfleet.producer.positions import Position, Positions, Wait
from inferfleet.producer.publisher import Publisher
from inferfleet.producer.reader import Reader
from inferfleet.producer.retrieval.counts import SearchCounts
from inferfleet.producer.retrieval.fetching import Fetching
from inferfleet.producer.retrieval.index import Index
from inferfleet.producer.sessions import Session
from inferfleet.producer.start_estimates import StartEstimates
from inferfleet.producer.submission import Submission
from inferfleet.producer.timeline import Event, Timeline
from inferfleet.schemas.errors import (
    AnswerRestartedError,
    InvalidJobError,
    JobNotFoundError,
    ServiceRefusedError,
    ServiceUnreachableError,
    WaitTimeoutError,
)
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import DEFAULT_TENANT, Job, JobState
from inferfleet.schemas.journal import FinishedEntry, RestartedEntry, TokensEntry
from inferfleet.schemas.limits import wait_limit
from inferfleet.schemas.pool import PoolStatus
from inferfleet.schemas.problems import kind, printable
from inferfleet.schemas.result import JobRecord, Result
from inferfleet.schemas.retrieval import IndexRecord
from inferfleet.schemas.settings import ProducerSettings, read_settings
from inferfleet.wire.draining import drain_worker
from inferfleet.wire.home import Home
from inferfleet.wire.redis.access import PRODUCER
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.connection import closing_redis, command_pipeline, open_store, redis_client
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.idempotency import find_job
from inferfleet.wire.redis.indexes import SEARCH_TIMEOUT_S, list_indexes
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import note_limit
from inferfleet.wire.redis.pools import note_pool
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.response_records import ResponseRecords
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.wire.redis.session_lanes import SessionLanes
from inferfleet.wire.redis.session_records import SessionRecords
from inferfleet.wire.redis.streams import BlockedReader
from inferfleet.wire.tasks import cancel_and_wait

CHECKING_S: Final = 0.05
"""How long jobs are checked until other tasks have a turn."""


class Fleet:
    """A client of the fleet. Create one with ``Fleet.connect`` and share it between tasks of one event loop.

    In another event loop, or in a process that was forked afterwards, each call raises
    ``ClientUnusableError``.
    """

    def __init__(
        self,
        *,
        settings: ProducerSettings,
        publisher: Publisher,
        pipeline: CommandPipeline,
        searching: CommandPipeline,
        records: JobRecords,
        reader: Reader,
    ) -> None:
        self._settings = self.settings = settings
        """The settings of this client, for other packages of inferfleet."""
        self._publisher = self.publisher = publisher
        """Publishes, for other packages of inferfleet."""
        self._records = records
        self._reader = reader
        self._session_records = SessionRecords(pipeline=pipeline, settings=settings)
        self._histories = SessionHistories(pipeline=pipeline, settings=settings)
        lanes = SessionLanes(pipeline=pipeline, settings=settings, replicas=records.replicas)
        self._listing = JobListing(pipeline, records)
        self._pools = Pools(pipeline=pipeline, listing=self._listing, waiting=publisher.waiting)
        estimates = StartEstimates(pipeline)
        self._positions = Positions(pipeline, lanes, estimates)
        fetching = Fetching(
            lambda name, tenant: self.index(name, tenant=tenant),
            pipeline=pipeline,
            records=records,
            settings=settings,
        )
        self.submission = Submission(
            settings=settings,
            pipeline=pipeline,
            records=records,
            session_lanes=lanes,
            histories=self._histories,
            publisher=publisher,
            estimates=estimates,
            fetch_passages=fetching.fetch,
        )
        """Submits jobs that ``make`` has made, without another check, for other packages of inferfleet."""
        self.pipeline = pipeline
        """The connection to Redis, for other packages of inferfleet."""
        self.outages = {"redis": pipeline.outage, "rabbitmq": publisher.outage}
        """The outages of both services, for metrics."""
        self._searching = searching
        self.searches = SearchCounts()
        """The searches of indexes, for metrics."""
        self.response_records = ResponseRecords(
            pipeline, queued_ttl_s=settings.queued_ttl_s, result_ttl_s=settings.result_ttl_s
        )
        """What OpenAI's Responses API keeps of each response."""
        self.dead_letters = DeadLetters(settings, self.submit)
        """The dead letters of all pools."""
        self.watch = FleetWatch(pipeline=pipeline, listing=self._listing, waiting=publisher.waiting)
        """Takes snapshots of the whole fleet."""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: ProducerSettings | None = None,
        *,
        on_ends: Callable[[Sequence[str]], None] | None = None,
    ) -> AsyncGenerator[Fleet]:
        """Connect to Redis now, and to RabbitMQ on the first publish.

        Without ``settings``, read them from the environment. ``on_ends`` is called with the ids of this
        client's jobs soon after they have ended. If a worker dies as it ends a job, there is no call.

        Raises:
            ServiceUnreachableError: Redis has not answered for ``patience_s``.
            ServiceRefusedError: Redis refuses a right that a client needs.
            ConfigurationError: A setting is invalid.

        """
        settings = settings or read_settings(ProducerSettings)
        home, clock = Home(), RedisClock()
        async with (
            open_store(
                settings.redis_url,
                access=replace(PRODUCER, waits=settings.redis_wait_replicas > 0),
                clock=clock,
                patience_s=settings.patience_s,
                allow_eviction=settings.allow_eviction,
            ) as client,
            BlockedReader.opened(settings.redis_url) as blocked,
            closing_redis(redis_client(settings.redis_url, socket_timeout_s=SEARCH_TIMEOUT_S)) as searched,
        ):
            pipeline = command_pipeline(client, patience_s=settings.patience_s, clock=clock, home=home)
            searching = command_pipeline(searched, patience_s=settings.patience_s, clock=clock, home=home)
            records = JobRecords(
                pipeline=pipeline,
                result_ttl_s=settings.result_ttl_s,
                queued_ttl_s=settings.queued_ttl_s,
                keep_requests=settings.keep_requests,
                replicas=Replicas(pipeline, settings, patience_s=settings.patience_s),
            )
            reader = Reader(
                blocked=blocked,
                pipeline=pipeline,
                records=records,
                client_id=settings.client_id,
                state_check_interval_s=settings.state_check_interval_s,
                on_ends=on_ends,
            )
            publisher = Publisher(settings, home=home)
            async with background(pipeline.run(), searching.run()):
                await reader.start()
                async with background(reader.run(), reader.poll_states()):
                    try:
                        yield cls(
                            settings=settings,
                            publisher=publisher,
                            pipeline=pipeline,
                            searching=searching,
                            records=records,
                            reader=reader,
                        )
                    finally:
                        await records.open_jobs.flush()
                        reader.close()
                        home.close()
                        await publisher.aclose()

    async def submit(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Submit one job, and return once the broker has confirmed it.

        ``work`` is a prompt, an OpenAI request body, or a whole ``Job``. Once this has returned, the job will
        reach exactly one terminal result. If this raises anything but ``PublishUnconfirmedError``, the job
        was not accepted, neither from this caller nor from another one with the same idempotency key. If the
        call is cancelled, it is unknown whether the job was accepted.

        The job that is returned has the id, the pool, the priority and the ``not_before`` with which it was
        accepted first. Other options that do not belong to the key, such as ``timeout_s``, ``expires_at`` and
        ``metadata``, are those of this call, and have no effect if the job had been accepted before.

        Raises:
            InvalidJobError: The job breaks the contract, or no worker could read it; nothing was sent.
            UnknownPoolError: The pool has no queue.
            QueueFullError: The pool's queue is full.
            TooLateError: The job would expire before it starts, and ``on_late`` is ``reject``.
            SessionBusyError: The session has an unfinished turn, and ``on_busy`` is ``reject``.
            RetrievalError: The passages that the job should ``retrieve`` cannot be fetched.
            SessionTooLargeError: The session's history is at its size limit.
            PublishUnconfirmedError: The broker may or may not have the job. Submit it again with the same
                idempotency key.
            ServiceRefusedError: The broker refuses the job: it is too large, or a permission is missing.
            ServiceUnreachableError: RabbitMQ or Redis does not answer. Without Redis, it is unknown whether
                an earlier call with the same key was accepted.

        """
        return await self.submission.accept(self._job(work, options))

    def make(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Make and check a job, without submitting it.

        Raises:
            InvalidJobError: The job breaks the contract.

        """
        return self._job(work, options)

    async def submit_many(
        self, work: Iterable[str | Mapping[str, Any] | Job], **options: Unpack[JobOptions]
    ) -> list[Job]:
        """Submit many jobs, much faster than one by one. All are checked before the first is sent.

        Raises:
            InvalidJobError: A job breaks the contract; the message has its position, counted from 0. Nothing
                was sent.
            PartialSubmitError: Some jobs were not accepted; the error says which, and why.

        """
        self.pipeline.check_home()
        work = several(work, name="work")
        jobs: list[Job] = []
        clock = asyncio.get_running_loop().time
        until = clock() + CHECKING_S
        for position, item in enumerate(work):
            if clock() > until:
                await asyncio.sleep(0)
                until = clock() + CHECKING_S
            try:
                jobs.append(self._job(item, options))
            except InvalidJobError as error:
                raise InvalidJobError(f"number {position} of the jobs: {error}") from error
        return await self.submission.accept_many(jobs)

    async def run(
        self,
        work: str | Mapping[str, Any] | Job,
        *,
        wait_timeout_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Result:
        """Submit one job, wait for it, and return the result of a job that succeeded.

        ``wait_timeout_s`` limits this wait; the option ``timeout_s`` limits the running time of one attempt.
        The job continues if the wait is cancelled or times out.

        Raises:
            JobFailedError: The job ended in another state than ``succeeded``.
            WaitTimeoutError: The job did not end within ``wait_timeout_s``; the message has its id.
            InferfleetError: What ``submit`` and ``wait`` raise.

        """
        limit_s = wait_limit(wait_timeout_s, name="wait_timeout_s")
        job = await self.submit(work, **options)
        return (await self.wait(job, timeout_s=limit_s)).raise_for_state()

    async def get(self, job: Job | str) -> JobRecord:
        """Read a job's record.

        Raises:
            JobNotFoundError: There is no record of the job.
            JobDataLostError: The job has ended, but Redis no longer has its result.

        """
        return await self._records.get(_id(job))

    async def find(self, idempotency_key: str, *, tenant: str = DEFAULT_TENANT) -> JobRecord | None:
        """Read the record of the job that has a tenant's idempotency key; ``None`` if there is none.

        Raises:
            ServiceUnreachableError: Redis cannot be reached.

        """
        job_id = await find_job(self.pipeline, tenant, idempotency_key)
        return None if job_id is None else (await self.get_many([job_id]))[job_id]

    async def get_many(self, jobs: Iterable[Job | str]) -> dict[str, JobRecord | None]:
        """Read the records of many jobs, by id. A job without a readable record maps to ``None``."""
        return await self._records.get_many(_ids(jobs))

    async def tenant_of(self, job: Job | str) -> str | None:
        """Read the tenant to which a job belongs; ``None`` if there is no record of the job."""
        return await self._records.tenant(_id(job))

    async def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Result:
        """Wait for a job's terminal result. All concurrent waits share one connection, without polling.

        The job continues if the wait is cancelled or times out.

        Raises:
            InvalidJobError: This is no job, or ``timeout_s`` is no number.
            WaitTimeoutError: The job did not end within ``timeout_s``.
            JobNotFoundError: The record of the job does not exist, or has disappeared.
            JobDataLostError: The job has ended, but Redis no longer has its result.

        """
        job_id, limit_s = _id(job), wait_limit(timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                return await self._reader.wait(job_id)
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"job {job_id} did not finish within {limit_s:g} s; it continues"
            ) from error

    async def wait_many(self, jobs: Sequence[Job | str], *, timeout_s: float | None = None) -> list[Result]:
        """Wait for many jobs, and return their results in the order of the jobs.

        Raises:
            WaitTimeoutError: Not all jobs ended within ``timeout_s``.
            JobNotFoundError: There is no record of one of the jobs.

        """
        limit_s = wait_limit(timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.gather(*map(self._reader.wait, _ids(jobs)))
        except TimeoutError as error:
            raise WaitTimeoutError(f"not all jobs finished within {limit_s:g} s; they continue") from error

    async def as_completed(
        self, jobs: Iterable[Job | str], *, timeout_s: float | None = None
    ) -> AsyncGenerator[Result]:
        """Wait for many jobs, and yield each result when its job ends, also that of a job that failed.

        Raises:
            WaitTimeoutError: Not all jobs ended within ``timeout_s`` of the start of the iteration.
            JobNotFoundError: There is no record of one of the jobs.
            JobDataLostError: A job has ended, but Redis no longer has its result.

        """
        limit_s = wait_limit(timeout_s)
        waits = [asyncio.create_task(self._reader.wait(job_id)) for job_id in _ids(jobs)]
        try:
            for ended in asyncio.as_completed(waits, timeout=limit_s):
                yield await ended
        except TimeoutError as error:
            raise WaitTimeoutError(f"not all jobs finished within {limit_s:g} s; they continue") from error
        finally:
            await cancel_and_wait(*waits)

    async def stream(self, job: Job | str, *, after: str = BEGINNING) -> AsyncGenerator[JournalLine]:
        """Read a job's journal as it grows, from behind the line ``after`` until the job ends.

        If the job was submitted with ``stream=True``, its tokens arrive about 50 ms after they were
        generated; otherwise about once a second. To continue an interrupted stream, pass the last ``id`` that
        you saw as ``after``.

        Raises:
            JobNotFoundError: The record of the job does not exist, or has disappeared.
            JobDataLostError: Redis has lost a part of the journal.
            ValueError: ``after`` is not the id of a line.

        """
        job_id = _id(job)
        state = (await self._records.states([job_id]))[job_id]
        if state is None:
            raise JobNotFoundError(job_id)
        async with aclosing(self._reader.follow(job_id, after=after, ended=state.terminal)) as lines:
            async for line in lines:
                yield line

    async def text_stream(self, job: Job | str, *, after: str = BEGINNING) -> AsyncGenerator[str]:
        """Read the text of a job's first choice as it grows, in pieces that make the whole text.

        Text that was yielded stays valid: if the answer restarts behind it, this raises. To read the new
        answer, discard the text and read again from the error's ``after``.

        Raises:
            AnswerRestartedError: The answer restarts, so the text that was yielded is void.
            JobFailedError: The job ended in another state than ``succeeded``, behind its partial text.
            JobNotFoundError: The record of the job does not exist, or has disappeared.
            JobDataLostError: Redis has lost a part of the journal.

        """
        yielded = False
        async with aclosing(self.stream(job, after=after)) as lines:
            async for line in lines:
                match line.entry:
                    case TokensEntry(chunks=chunks):
                        if text := "".join(chunk.text for chunk in chunks if chunk.index == 0):
                            yielded = True
                            yield text
                    case RestartedEntry(reason=reason) if yielded:
                        raise AnswerRestartedError(_id(job), reason=reason, after=line.id)
                    case FinishedEntry(state=state) if state is not JobState.SUCCEEDED:
                        (await self._reader.wait(_id(job))).raise_for_state()
                    case _:
                        pass

    async def cancel(self, job: Job | str) -> JobState:
        """Cancel a job, and return its state.

        A queued job is ``cancelled`` when this returns. A running job is asked to stop, and is still
        ``running``; but if no worker has held it for longer than its lease, it is ``cancelled`` too. A job
        that has ended keeps its state.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        return await self.submission.cancel(_id(job))

    def job(self, job: Job | str) -> JobHandle:
        """Return a handle on a job. This calls neither Redis nor RabbitMQ."""
        return JobHandle(_id(job), self)

    async def list_jobs(self, where: JobFilter = EVERY_JOB) -> AsyncGenerator[JobRecord]:
        """Yield the records of the unfinished jobs that meet the conditions; all of them if there are none.

        They come by pool, the most urgent first, and within a priority the oldest first; only one page of
        them is in memory. Jobs that have ended cannot be listed, because only unfinished jobs are in an
        index. Meanwhile jobs may end, and one that is published again may come twice.

        Raises:
            InvalidJobError: A condition is invalid.

        """
        where.check()
        async with aclosing(self._listing.jobs(where)) as records:
            async for record in records:
                yield record

    async def jobs_page(
        self, where: JobFilter = EVERY_JOB, *, after: str | None = None, limit: int = 100
    ) -> JobPage:
        """Read a page of what ``list_jobs`` yields: at most ``limit`` jobs, after those of earlier pages.

        ``after`` is the ``next`` of the page before; ``None`` reads the first page.

        The work of a page is bounded, so it may have fewer jobs, even none, while more follow: the list ends
        where ``next`` is ``None``. A job that stays unfinished is on exactly one page, whichever other
        jobs begin and end; one that is published again may be on two.

        Raises:
            InvalidJobError: A condition, the cursor or the limit is invalid.

        """
        where.check()
        if limit < 1:
            raise InvalidJobError(f"limit: a page cannot have {limit} jobs; ask for 1 job or more")
        return await self._listing.page(where, after=after, limit=limit)

    async def cancel_jobs(self, where: JobFilter) -> AsyncGenerator[tuple[str, JobState]]:
        """Cancel the unfinished jobs that meet the conditions; yield each one's id and state, as ``cancel``.

        Raises:
            InvalidJobError: A condition is invalid, or there is none.

        """
        if where == EVERY_JOB:
            raise InvalidJobError("where: give at least one condition on the jobs to cancel")
        where.check()
        async with aclosing(self._listing.cancel(where, self.cancel)) as cancelled:
            async for job_id, state in cancelled:
                yield job_id, state

    async def timeline(self, job: Job | str) -> list[Event]:
        """Read what has happened to a job, from its journal.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        job_id = _id(job)
        await self._records.state(job_id)
        timeline = Timeline()
        async with aclosing(self._records.entries(job_id)) as entries:
            async for entry in entries:
                timeline.add(entry)
        return timeline.events

    async def waits_for(self, job: Job | str) -> Wait | None:
        """Return why an unfinished job does not run; ``None`` if it runs or has ended.

        If there are several reasons, ``position`` returns all of them.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        return next(iter(await self._positions.waits(await self._record(job))), None)

    async def position(self, job: Job | str) -> Position:
        """Return where an unfinished job stands: why it waits, behind how many jobs, and for how long.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        return await self._positions.of(await self._record(job))

    async def _record(self, job: Job | str) -> JobRecord:
        job_id = _id(job)
        record = (await self._records.get_many([job_id], results=False))[job_id]
        if record is None:
            raise JobNotFoundError(job_id)
        return record

    async def pools(self) -> list[PoolStatus]:
        """Return the state of all pools that have a queue, a worker or an unfinished job.

        A pool is forgotten if no worker, declaration or job has named it for 30 days.

        Raises:
            ServiceUnreachableError: RabbitMQ or Redis does not answer.

        """
        return await self._pools.all()

    async def pool(self, pool: str) -> PoolStatus:
        """Return the state of one pool.

        Raises:
            UnknownPoolError: The pool has no queue, no worker and no unfinished job.
            ServiceUnreachableError: RabbitMQ or Redis does not answer.

        """
        return await self._pools.one(pool)

    async def pause_pool(self, pool: str) -> None:
        """Pause a pool: within a heartbeat, its workers start no more jobs and give back those that wait.

        Running jobs continue, and the pool accepts new jobs. It is paused until ``resume_pool``.

        Raises:
            UnknownPoolError: The pool has no queue, and no worker or job has named it in the last 30 days.

        """
        await self._pools.pause(pool)

    async def resume_pool(self, pool: str) -> bool:
        """Let a paused pool go on. Return whether it was paused. Raises the same as ``pause_pool``."""
        return await self._pools.resume(pool)

    async def require_identity(self, pool: str, identity: str | None) -> None:
        """Let only workers serve a pool whose model has this identity; with ``None`` all workers.

        Within a heartbeat, the others start no more jobs, give back those that wait, and are not ready.
        Running jobs continue.

        Raises:
            InvalidJobError: No model can have this identity.
            UnknownPoolError: The pool has no queue, and no worker or job has named it in the last 30 days.

        """
        await self._pools.require_identity(pool, identity)

    def session(self, session_id: str) -> Session:
        """Return a handle on a session. This calls neither Redis nor RabbitMQ.

        Raises:
            InvalidJobError: No session may have this id.

        """
        return Session(
            session_id, records=self._session_records, histories=self._histories, submit=self.submit
        )

    async def sessions(self, *, limit: int = 1000) -> list[str]:
        """Return the ids of at most ``limit`` sessions."""
        return await self._session_records.list(limit=limit)

    def index(self, name: str, *, tenant: str = DEFAULT_TENANT) -> Index:
        """Return a handle on an index of documents. This calls neither Redis nor RabbitMQ.

        Raises:
            RetrievalError: No index may have this name.

        """
        return Index(
            name,
            tenant=tenant,
            jobs=self,
            pipeline=self.pipeline,
            searching=self._searching,
            counts=self.searches,
        )

    async def indexes(self, *, tenant: str = DEFAULT_TENANT) -> list[IndexRecord]:
        """Read a tenant's indexes, by name."""
        return await list_indexes(self.pipeline, tenant)

    async def declare_pool(self, pool: str) -> None:
        """Declare a pool's queues, so that it accepts jobs before its first worker starts.

        Also tells Redis its name, and the queue's limit, which turns in lanes have to keep, too.
        """
        await self._publisher.declare_pool(pool)
        # No error if this fails: each worker of the pool does the same.
        with suppress(ServiceUnreachableError, ServiceRefusedError):
            await note_limit(self.pipeline, pool, self._settings.queue_max_length)
            await note_pool(self.pipeline, pool)

    async def drain(self, worker_id: str, *, timeout_s: float = 30.0) -> None:
        """Drain a worker: it finishes or hands over its jobs, and exits. Return once it has begun to drain.

        Raises:
            UnknownWorkerError: No worker with this id is alive.
            WaitTimeoutError: The worker did not answer within ``timeout_s``.
            ServiceUnreachableError: RabbitMQ or Redis does not answer.

        """
        await drain_worker(self.pipeline, self._publisher.send, worker_id, timeout_s=timeout_s)

    async def workers(self) -> list[Heartbeat]:
        """Return the heartbeats of all live workers."""
        return await read_heartbeats(self.pipeline)

    def _job(self, work: str | Mapping[str, Any] | Job, options: JobOptions) -> Job:
        return make_job(
            work, options, max_body_bytes=self._settings.max_body_bytes, now=self.pipeline.clock.now()
        )


def _id(job: Job | str) -> str:
    if isinstance(job, Job):
        return job.id
    # For callers without a type checker: the text of anything else names no job, and may have a prompt.
    if not isinstance(job, str | UUID):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJobError(f"job: must be a Job or the id of one, not {kind(job)}")
    return printable(str(job))


def _ids(jobs: Iterable[Job | str]) -> list[str]:
    return [_id(job) for job in several(jobs, name="jobs")]
