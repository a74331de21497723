"""How a job becomes accepted: record first, then its session's lane if it has one, then the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inferfleet.producer import idempotency
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas.control import CancelJob
from inferfleet.schemas.errors import (
    InferfleetError,
    PartialSubmitError,
    QueueFullError,
    ServiceUnreachableError,
    SessionBusyError,
    SessionTooLargeError,
    UnknownPoolError,
)
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import Job, JobState, OnBusy
from inferfleet.schemas.result import Result
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.pipeline import CommandPipeline
from inferfleet.wire.records import JobRecords
from inferfleet.wire.sessions import Entry, Payload, Sessions

SUBMIT_WINDOW = 1024
"""Jobs of one ``submit_many`` that wait for their confirm at the same time."""

_REFUSED = (
    UnknownPoolError,
    QueueFullError,
    ServiceUnreachableError,
    SessionBusyError,
    SessionTooLargeError,
)
"""After these the job is not in the queue, for sure."""


class Submission:
    """Accepts and cancels jobs for one client."""

    def __init__(
        self,
        *,
        settings: ProducerSettings,
        pipeline: CommandPipeline,
        records: JobRecords,
        sessions: Sessions,
        publisher: Publisher,
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._records = records
        self._sessions = sessions
        self._publisher = publisher

    async def accept(self, job: Job) -> Job:
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
                if job.session_id is None:
                    await self._publisher.publish(job)
                else:
                    await self._take_turn(job)
            except _REFUSED:
                if created:
                    await self._records.discard(job.id)
                    await idempotency.forget(self._pipeline, job)
                raise
        await idempotency.accept(self._pipeline, job, ttl_s=self._settings.queued_ttl_s)
        return job

    async def accept_many(self, jobs: Sequence[Job]) -> list[Job]:
        """Accept many jobs, a window of them at a time.

        Raises:
            PartialSubmitError: Some were not accepted.

        """
        outcomes: list[Job | BaseException] = []
        for first in range(0, len(jobs), SUBMIT_WINDOW):
            window = jobs[first : first + SUBMIT_WINDOW]
            outcomes += await asyncio.gather(*map(self.accept, window), return_exceptions=True)
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

    async def cancel(self, job_id: str, *, keep: bool = False) -> JobState:
        """Cancel a job; with ``keep``, what it said so far stays in its session."""
        why = "interrupted by the session's next turn" if keep else "cancelled before it ran"
        result = Result(
            job_id=job_id,
            state=JobState.CANCELLED,
            error=Failure(code=FailureCode.CANCELLED, message=why),
        )
        state = await self._records.cancel(job_id, result, keep=keep)
        if state is JobState.RUNNING:
            await self._publisher.send(CancelJob(job_id=job_id, keep=keep))
        return state

    async def _take_turn(self, job: Job) -> None:
        """Publish the job if its session is free; else it waits in the lane, as ``on_busy`` says."""
        entered = await self._sessions.enter(Payload(job, self._settings.client_id))
        match entered.entry:
            case Entry.RUN:
                try:
                    await self._publisher.publish(job)
                except _REFUSED:
                    await self._let_next_run(job)
                    raise
                await self._sessions.published(job)
            case Entry.WAIT:
                if entered.again is not None:
                    await self._publish_turn(entered.again)
                if job.on_busy in {OnBusy.INTERRUPT, OnBusy.ROLLBACK}:
                    await self._stop_turn(job, entered.owner, keep=job.on_busy is OnBusy.INTERRUPT)
            case Entry.BUSY:
                raise SessionBusyError(
                    f"session {job.session_id!r} has an unfinished turn, job {entered.owner}: wait, or "
                    "submit with on_busy=enqueue, interrupt or rollback"
                )
            case Entry.TOO_LARGE:
                raise SessionTooLargeError(
                    f"session {job.session_id!r} would exceed {self._settings.max_session_bytes:,} bytes "
                    "(INFERFLEET_MAX_SESSION_BYTES): fork it from a later turn, or start a new one"
                )

    async def _stop_turn(self, job: Job, owner: str, *, keep: bool) -> None:
        """Stop the turn that is in the way. One that never ran ends at once, without its message's help."""
        state = await self.cancel(owner, keep=keep)
        if state.terminal:
            await self._let_next_run(job.model_copy(update={"id": owner}))

    async def _let_next_run(self, ended: Job) -> None:
        following = await self._sessions.advance(ended)
        if following is not None:
            await self._publish_turn(following)

    async def _publish_turn(self, payload: Payload) -> None:
        await self._publisher.publish(payload.job, reply_to=payload.reply_to)
        await self._sessions.published(payload.job)
