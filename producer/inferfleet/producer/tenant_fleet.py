"""What one tenant may do with a fleet: the jobs and sessions of other tenants do not exist for it.

``Fleet`` itself is for trusted programs, which see everything. For a job of another tenant, a tenant gets the
same error as for one that was never accepted, after the same reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol, Unpack

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_listing import JobFilter
from inferfleet.producer.job_making import SESSION_MARK, JobOptions, session_prefix, stored_session
from inferfleet.producer.job_pages import JobPage
from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.producer.positions import Position
from inferfleet.producer.sessions import Session
from inferfleet.producer.timeline import Event
from inferfleet.schemas.errors import (
    InferfleetError,
    JobNotFoundError,
    PartialSubmitError,
    PublishUnconfirmedError,
)
from inferfleet.schemas.job import DEFAULT_TENANT, Job, JobState
from inferfleet.schemas.result import JobRecord, Result


class Policy(Protocol):
    """Decides which jobs a caller may submit now."""

    @property
    def usual_priority(self) -> int:
        """The priority of a job for which the caller asks for none."""
        ...

    @property
    def weight(self) -> float:
        """How large the tenant's share of a pool is, compared with that of others."""
        ...

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise an error if the caller may never submit such jobs."""
        ...

    def admitted(self, jobs: Sequence[Job]) -> AbstractAsyncContextManager[set[str]]:
        """Submit jobs in the block, and put the ids of those that may have been accepted into the set.

        Entering it raises an error if the caller may not submit them now.
        """
        ...

    async def placed(self, jobs: Sequence[Job]) -> list[Job]:
        """Return admitted jobs with the priority that they get."""
        ...


class TenantFleet:
    """A fleet as one tenant sees it: the methods of ``Fleet`` that a gateway needs, and their errors.

    The tenant's name has no ``/``. Without a ``policy``, it may submit all jobs.
    """

    def __init__(self, fleet: Fleet, tenant: str, *, policy: Policy | None = None) -> None:
        self._fleet = fleet
        self._policy = policy
        self.tenant = tenant
        self.response_records = fleet.response_records
        """The records of the responses of all tenants. Before reading one, ``check`` its job."""

    async def submit(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Submit one job, as ``Fleet.submit``."""
        options = self._owned(work, options)
        if self._policy is None:
            return self._visible_job(await self._fleet.submit(work, **options))
        job = self._fleet.make(work, **options)
        async with self._admitted([job]) as (jobs, submitted):
            accepted = await self._fleet.submission.accept(*jobs, weight=self._policy.weight)
            submitted.add(accepted.id)
            return self._visible_job(accepted)

    async def submit_many(self, jobs: Iterable[Job]) -> list[Job]:
        """Submit many jobs that ``make`` has made, as ``Fleet.submit_many``."""
        made = list(jobs)
        weight = None if self._policy is None else self._policy.weight
        async with self._admitted(made) as (placed, submitted):
            accepted = await self._fleet.submission.accept_many(placed, weight=weight)
            submitted.update(job.id for job in accepted)
            return [self._visible_job(job) for job in accepted]

    def make(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Make and check a job of the tenant, as ``Fleet.make``."""
        return self._fleet.make(work, **self._owned(work, options))

    async def find(self, idempotency_key: str) -> JobRecord | None:
        """Read the record of the job that has an idempotency key of the tenant."""
        found = await self._fleet.find(idempotency_key, tenant=self.tenant)
        return None if found is None else self._visible(found)

    async def check(self, job_id: str) -> None:
        """Raise ``JobNotFoundError`` unless the tenant has such a job."""
        if await self._fleet.tenant_of(job_id) != self.tenant:
            raise JobNotFoundError(job_id)

    async def get(self, job: Job | str) -> JobRecord:
        """Read a job's record, as ``Fleet.get``."""
        job_id = await self._checked(job)
        return self._visible(await self._fleet.get(job_id))

    async def record(self, job: Job | str) -> JobRecord:
        """Read a job's record, even if its result is gone.

        Raises:
            JobNotFoundError: There is no record of the job.

        """
        job_id = await self._checked(job)
        record = (await self._fleet.get_many([job_id]))[job_id]
        if record is None:
            raise JobNotFoundError(job_id)
        return self._visible(record)

    async def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Result:
        """Wait for a job's result, as ``Fleet.wait``."""
        return await self._fleet.wait(await self._checked(job), timeout_s=timeout_s)

    async def stream(self, job: Job | str, *, after: str = BEGINNING) -> AsyncGenerator[JournalLine]:
        """Read a job's journal as it grows, as ``Fleet.stream``."""
        job_id = await self._checked(job)
        async with aclosing(self._fleet.stream(job_id, after=after)) as lines:
            async for line in lines:
                yield line

    async def timeline(self, job: Job | str) -> list[Event]:
        """Read what has happened to a job, as ``Fleet.timeline``."""
        return await self._fleet.timeline(await self._checked(job))

    async def cancel(self, job: Job | str) -> JobState:
        """Cancel a job, as ``Fleet.cancel``."""
        return await self._fleet.cancel(await self._checked(job))

    async def position(self, job: Job | str) -> Position:
        """Return where a job stands, as ``Fleet.position``."""
        return await self._fleet.position(await self._checked(job))

    async def jobs_page(self, where: JobFilter, *, after: str | None, limit: int) -> JobPage:
        """Read a page of the tenant's unfinished jobs, as ``Fleet.jobs_page``."""
        session_id = None if where.session_id is None else self.stored_session(where.session_id)
        where = replace(where, session_id=session_id, tenant=self.tenant)
        page = await self._fleet.jobs_page(where, after=after, limit=limit)
        return replace(page, jobs=list(map(self._visible, page.jobs)))

    def session(self, session_id: str) -> Session:
        """Return a handle on a session of the tenant. Its ``id`` is the stored one."""
        return self._fleet.session(self.stored_session(session_id))

    def stored_session(self, session_id: str) -> str:
        """Return the id under which a session of the tenant is stored; a stored one stays as it is.

        Sessions of the tenant ``default`` keep their ids, unless one looks like that of another tenant.

        Raises:
            InvalidJobError: The id is too long.

        """
        if self.tenant == DEFAULT_TENANT and not session_id.startswith(SESSION_MARK):
            return session_id
        return stored_session(session_id, self.tenant)

    def visible_text(self, text: str) -> str:
        """Return a message with the tenant's own ids of its sessions in place of the stored ones."""
        return text.replace(session_prefix(self.tenant), "")

    async def _checked(self, job: Job | str) -> str:
        """Return a job's id. A job that ``submit`` has returned needs no check."""
        if isinstance(job, Job):
            return job.id
        await self.check(job)
        return job

    def _owned(self, work: str | Mapping[str, Any] | Job, options: JobOptions) -> JobOptions:
        """Return the options of a job that is the tenant's."""
        owned: JobOptions = {**options, "tenant": self.tenant}
        if isinstance(work, Job):
            owned.setdefault("session_id", work.session_id)
        elif self._policy is not None:
            owned.setdefault("priority", self._policy.usual_priority)
        session_id = owned.get("session_id")
        # Anything else is refused with the job.
        if isinstance(session_id, str):
            owned["session_id"] = self.stored_session(session_id)
        return owned

    @asynccontextmanager
    async def _admitted(self, jobs: Sequence[Job]) -> AsyncGenerator[tuple[Sequence[Job], set[str]]]:
        """Submit these jobs in the block, and put the ids of those that were accepted into the set."""
        if self._policy is None:
            yield jobs, set()
            return
        self._policy.check(jobs)
        known = await asyncio.gather(*map(self._known, jobs))
        new = [job for job, record in zip(jobs, known, strict=True) if record is None]
        placed = {
            job.id: job.model_copy(update={"priority": record.priority})
            for job, record in zip(jobs, known, strict=True)
            if record is not None
        }
        if not new:
            yield [placed[job.id] for job in jobs], set()
            return
        async with self._policy.admitted(new) as submitted:
            placed |= {job.id: job for job in await self._policy.placed(new)}
            try:
                yield [placed[job.id] for job in jobs], submitted
            except PublishUnconfirmedError as error:
                submitted |= _unconfirmed(jobs, {0: error})
                raise
            except PartialSubmitError as error:
                submitted |= {*error.accepted} | _unconfirmed(jobs, error.rejected)
                raise

    async def _known(self, job: Job) -> JobRecord | None:
        """Return the record of a job that was submitted before, so that it does not count again."""
        return None if job.idempotency_key is None else await self.find(job.idempotency_key)

    def _visible_job(self, job: Job) -> Job:
        return job.model_copy(update={"session_id": self._visible_session(job.session_id)})

    def _visible(self, record: JobRecord) -> JobRecord:
        return record.model_copy(update={"session_id": self._visible_session(record.session_id)})

    def _visible_session(self, stored: str | None) -> str | None:
        """Return an id by which the tenant finds a session again, the short one if there is one."""
        prefix = session_prefix(self.tenant)
        if stored is None or not stored.startswith(prefix):
            return stored
        short = stored.removeprefix(prefix)
        return short if self.stored_session(short) == stored else stored


def _unconfirmed(jobs: Sequence[Job], errors: Mapping[int, InferfleetError]) -> set[str]:
    """Return the ids of those jobs that RabbitMQ may have, by the errors at their positions."""
    return {
        error.job_id or jobs[position].id
        for position, error in errors.items()
        if isinstance(error, PublishUnconfirmedError)
    }
