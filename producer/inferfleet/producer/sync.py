"""The client for blocking code: Django, Flask, Celery, scripts.

A background thread runs the event loop; each call runs there and blocks until it has returned.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, Unpack

import anyio
from anyio.from_thread import BlockingPortal

from inferfleet.producer.blocking import BlockingCall
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_listing import EVERY_JOB, JobFilter
from inferfleet.producer.job_making import JobOptions, several
from inferfleet.producer.job_pages import JobPage
from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.producer.positions import Position, Wait
from inferfleet.producer.retrieval.sync_index import SyncIndex
from inferfleet.producer.sync_dead_letters import SyncDeadLetters
from inferfleet.producer.sync_job_handle import SyncJobHandle
from inferfleet.producer.sync_session import SyncSession
from inferfleet.producer.timeline import Event
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import DEFAULT_TENANT, Job, JobState
from inferfleet.schemas.pool import PoolStatus
from inferfleet.schemas.result import JobRecord, Result
from inferfleet.schemas.retrieval import IndexRecord
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.home import check_process, closed

T = TypeVar("T")

EXIT_PATIENCE_S = 5.0
"""How long an exiting process waits for a client that nobody closed to close."""


class Original(NamedTuple):
    """The asynchronous client behind a blocking one, and how to call it from blocking code."""

    fleet: Fleet
    call: BlockingCall


class SyncFleet:
    """A blocking client with the methods of ``Fleet``, and its errors. Safe for many concurrent threads.

    Keep it for the life of the process, which closes it at its end. A forked process has to connect its own
    client; a client of the parent raises ``ClientUnusableError`` there.
    """

    def __init__(self, settings: ProducerSettings | None) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._closing = threading.Lock()
        opened: Future[tuple[BlockingPortal, Fleet]] = Future()
        # A daemon: Python joins all other threads before it runs the exit handler that closes this client.
        self._thread = threading.Thread(
            target=_run, args=(settings, opened), name="inferfleet-client", daemon=True
        )
        self._thread.start()
        try:
            self._portal, self._fleet = opened.result()
        except Exception:
            self._thread.join()
            raise
        self.dead_letters = SyncDeadLetters(self._fleet.dead_letters, self._call)
        """The dead letters of all pools."""
        self.original = Original(self._fleet, self._call)
        """The asynchronous client, for what is built on it."""
        atexit.register(self._close_at_exit)

    @classmethod
    def connect(cls, settings: ProducerSettings | None = None) -> Self:
        """Connect as ``Fleet.connect`` does, until ``close`` or the end of a ``with`` block."""
        return cls(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls that still wait raise an error. Closing twice is harmless.

        In a forked process this does nothing, because the connections belong to the parent.
        """
        atexit.unregister(self._close_at_exit)
        self._close(patience_s=None)

    def submit(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Submit one job; see ``Fleet.submit``."""
        return self._call(partial(self._fleet.submit, work, **options))

    def submit_many(
        self, work: Iterable[str | Mapping[str, Any] | Job], **options: Unpack[JobOptions]
    ) -> list[Job]:
        """Submit many jobs; see ``Fleet.submit_many``."""
        return self._call(partial(self._fleet.submit_many, list(several(work, name="work")), **options))

    def run(
        self,
        work: str | Mapping[str, Any] | Job,
        *,
        wait_timeout_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Result:
        """Submit one job and return its result; see ``Fleet.run``."""
        return self._call(partial(self._fleet.run, work, wait_timeout_s=wait_timeout_s, **options))

    def get(self, job: Job | str) -> JobRecord:
        """Read a job's record; see ``Fleet.get``."""
        return self._call(partial(self._fleet.get, job))

    def make(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Make and check a job, without submitting it; see ``Fleet.make``."""
        return self._fleet.make(work, **options)

    def find(self, idempotency_key: str, *, tenant: str = DEFAULT_TENANT) -> JobRecord | None:
        """Read the record of the job with an idempotency key; see ``Fleet.find``."""
        return self._call(partial(self._fleet.find, idempotency_key, tenant=tenant))

    def tenant_of(self, job: Job | str) -> str | None:
        """Read the tenant of a job; see ``Fleet.tenant_of``."""
        return self._call(partial(self._fleet.tenant_of, job))

    def get_many(self, jobs: Iterable[Job | str]) -> dict[str, JobRecord | None]:
        """Read the records of many jobs; see ``Fleet.get_many``."""
        return self._call(partial(self._fleet.get_many, list(several(jobs, name="jobs"))))

    def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Result:
        """Wait for a job's result; see ``Fleet.wait``."""
        return self._call(partial(self._fleet.wait, job, timeout_s=timeout_s))

    def wait_many(self, jobs: Sequence[Job | str], *, timeout_s: float | None = None) -> list[Result]:
        """Wait for many jobs; see ``Fleet.wait_many``."""
        return self._call(partial(self._fleet.wait_many, jobs, timeout_s=timeout_s))

    def as_completed(self, jobs: Iterable[Job | str], *, timeout_s: float | None = None) -> Generator[Result]:
        """Wait for many jobs, and yield each result when its job ends; see ``Fleet.as_completed``."""
        return self._iterate(self._fleet.as_completed(list(several(jobs, name="jobs")), timeout_s=timeout_s))

    def stream(self, job: Job | str, *, after: str = BEGINNING) -> Generator[JournalLine]:
        """Read a job's journal as it grows; see ``Fleet.stream``."""
        return self._iterate(self._fleet.stream(job, after=after))

    def text_stream(self, job: Job | str, *, after: str = BEGINNING) -> Generator[str]:
        """Read the text of a job's answer as it grows; see ``Fleet.text_stream``."""
        return self._iterate(self._fleet.text_stream(job, after=after))

    def cancel(self, job: Job | str) -> JobState:
        """Cancel a job; see ``Fleet.cancel``."""
        return self._call(partial(self._fleet.cancel, job))

    def job(self, job: Job | str) -> SyncJobHandle:
        """Return a handle on a job; see ``Fleet.job``."""
        return SyncJobHandle(self._fleet.job(job).id, self)

    def list_jobs(self, where: JobFilter = EVERY_JOB) -> Generator[JobRecord]:
        """Yield the records of unfinished jobs; see ``Fleet.list_jobs``."""
        return self._iterate(self._fleet.list_jobs(where))

    def jobs_page(
        self, where: JobFilter = EVERY_JOB, *, after: str | None = None, limit: int = 100
    ) -> JobPage:
        """Read a page of the list of ``list_jobs``; see ``Fleet.jobs_page``."""
        return self._call(partial(self._fleet.jobs_page, where, after=after, limit=limit))

    def cancel_jobs(self, where: JobFilter) -> Generator[tuple[str, JobState]]:
        """Cancel unfinished jobs; see ``Fleet.cancel_jobs``."""
        return self._iterate(self._fleet.cancel_jobs(where))

    def timeline(self, job: Job | str) -> list[Event]:
        """Read what has happened to a job; see ``Fleet.timeline``."""
        return self._call(partial(self._fleet.timeline, job))

    def waits_for(self, job: Job | str) -> Wait | None:
        """Return why a job does not run; see ``Fleet.waits_for``."""
        return self._call(partial(self._fleet.waits_for, job))

    def position(self, job: Job | str) -> Position:
        """Return where a job stands; see ``Fleet.position``."""
        return self._call(partial(self._fleet.position, job))

    def pools(self) -> list[PoolStatus]:
        """Return the state of all pools; see ``Fleet.pools``."""
        return self._call(self._fleet.pools)

    def pool(self, pool: str) -> PoolStatus:
        """Return the state of one pool; see ``Fleet.pool``."""
        return self._call(partial(self._fleet.pool, pool))

    def require_identity(self, pool: str, identity: str | None) -> None:
        """Require an identity of the models of a pool's workers; see ``Fleet.require_identity``."""
        self._call(partial(self._fleet.require_identity, pool, identity))

    def pause_pool(self, pool: str) -> None:
        """Pause a pool; see ``Fleet.pause_pool``."""
        self._call(partial(self._fleet.pause_pool, pool))

    def resume_pool(self, pool: str) -> bool:
        """Let a paused pool go on; see ``Fleet.resume_pool``."""
        return self._call(partial(self._fleet.resume_pool, pool))

    def session(self, session_id: str) -> SyncSession:
        """Return a handle on a session; see ``Fleet.session``."""
        return SyncSession(self._fleet.session(session_id), self._call)

    def sessions(self, *, limit: int = 1000) -> list[str]:
        """Return the ids of at most ``limit`` sessions."""
        return self._call(partial(self._fleet.sessions, limit=limit))

    def index(self, name: str, *, tenant: str = DEFAULT_TENANT) -> SyncIndex:
        """Return a handle on an index of documents; see ``Fleet.index``."""
        return SyncIndex(self._fleet.index(name, tenant=tenant), self._call)

    def indexes(self, *, tenant: str = DEFAULT_TENANT) -> list[IndexRecord]:
        """Read a tenant's indexes, by name."""
        return self._call(partial(self._fleet.indexes, tenant=tenant))

    def declare_pool(self, pool: str) -> None:
        """Declare a pool's queues; see ``Fleet.declare_pool``."""
        self._call(partial(self._fleet.declare_pool, pool))

    def drain(self, worker_id: str, *, timeout_s: float = 30.0) -> None:
        """Drain a worker; see ``Fleet.drain``."""
        self._call(partial(self._fleet.drain, worker_id, timeout_s=timeout_s))

    def workers(self) -> list[Heartbeat]:
        """Return the heartbeats of all live workers."""
        return self._call(self._fleet.workers)

    def _iterate(self, items: AsyncGenerator[T]) -> Generator[T]:
        try:
            while (item := self._call(partial(anext, items, None))) is not None:
                yield item
        finally:
            if not self._closed and os.getpid() == self._pid:
                self._call(items.aclose)

    def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        check_process(self._pid)
        if self._closed:
            raise closed()
        over = threading.Event()

        async def call() -> T:
            try:
                return await function()
            finally:
                over.set()

        running: Future[T] | None = None
        try:
            running = self._portal.start_task_soon(call)
            return running.result()
        except BaseException as error:
            if running is not None and not running.done():
                # A signal has interrupted this thread: the call must not go on without its caller.
                running.cancel()
                over.wait()
            elif isinstance(error, RuntimeError) and self._closed:
                # Another thread has closed the client meanwhile.
                raise closed() from error
            raise

    def _close_at_exit(self) -> None:
        self._close(patience_s=EXIT_PATIENCE_S)

    def _close(self, *, patience_s: float | None) -> None:
        if os.getpid() != self._pid:
            return
        with self._closing:
            if not self._closed:
                self._closed = True
                self._portal.start_task_soon(self._portal.stop)
        self._thread.join(patience_s)


def _run(settings: ProducerSettings | None, opened: Future[tuple[BlockingPortal, Fleet]]) -> None:
    """Keep a client until its portal is told to stop. Its errors are raised where the portal was opened."""

    async def serve() -> None:
        async with BlockingPortal() as portal, AsyncExitStack() as stack:
            try:
                fleet = await stack.enter_async_context(Fleet.connect(settings))
            except BaseException as error:
                opened.set_exception(error)
                return
            opened.set_result((portal, fleet))
            await portal.sleep_until_stopped()

    anyio.run(serve)
