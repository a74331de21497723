"""How a job becomes accepted: record first, then its session's lane if it has one, then the queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import assert_never

from inferfleet.producer import idempotency
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas.control import CancelJob
from inferfleet.schemas.errors import (
    InferfleetError,
    JobNotFoundError,
    PartialSubmitError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
    SessionBusyError,
    SessionTooLargeError,
    UnknownPoolError,
)
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import Job, JobState, OnBusy
from inferfleet.schemas.result import Result, Usage
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.pipeline import CommandPipeline
from inferfleet.wire.records import JobRecords
from inferfleet.wire.sessions import Entered, Entry, Payload, Sessions

logger = logging.getLogger(__name__)

SUBMIT_WINDOW = 1024
"""Jobs of one ``submit_many`` that wait for their confirm at the same time."""

FRONT_POLL_S = 0.02
"""How often a turn that enters a lane looks whether the turn in front is in the queue by now."""

_REFUSED = (
    UnknownPoolError,
    QueueFullError,
    ServiceRefusedError,
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
                    await self._take_turn(job, new=created)
            except _REFUSED:
                if created:
                    await self._records.discard(job.id)
                    await idempotency.forget(self._pipeline, job)
                raise
        await idempotency.accept(self._pipeline, job, ttl_s=self._settings.queued_ttl_s)
        return job

    async def accept_many(self, jobs: Sequence[Job]) -> list[Job]:
        """Accept many jobs, a window of them at the same time.

        Raises:
            PartialSubmitError: Some were not accepted.

        """
        accepted: dict[int, Job] = {}
        rejected: dict[int, InferfleetError] = {}
        positions = enumerate(jobs)

        async def accept_next() -> None:
            for position, job in positions:
                try:
                    accepted[position] = await self.accept(job)
                except InferfleetError as error:
                    rejected[position] = error

        window = (accept_next() for _ in range(min(SUBMIT_WINDOW, len(jobs))))
        for unforeseen in await asyncio.gather(*window, return_exceptions=True):
            if unforeseen is not None:
                raise unforeseen
        in_order = [accepted[position] for position in sorted(accepted)]
        if rejected:
            raise PartialSubmitError(accepted=[job.id for job in in_order], rejected=rejected)
        return in_order

    async def cancel(self, job_id: str, *, keep: bool = False) -> JobState:
        """Cancel a job; with ``keep``, what it said so far stays in its session."""
        # What an earlier attempt has left. Should the job be running by now, its worker makes the result.
        record = await self._records.get(job_id)
        if keep:
            why = "interrupted by the session's next turn"
        else:
            why = "cancelled before it ran again" if record.attempt else "cancelled before it ran"
        result = Result(
            job_id=job_id,
            state=JobState.CANCELLED,
            error=Failure(code=FailureCode.CANCELLED, message=why),
            usage=Usage(completion_tokens=record.tokens),
            attempts=record.attempts,
        )
        state = await self._records.cancel(job_id, result, attempt=record.attempt, keep=keep)
        # A worker runs it, or keeps its message until the pause before its next attempt is over.
        if state is JobState.RUNNING or (state is JobState.CANCELLED and record.attempt):
            try:
                await self._publisher.send(CancelJob(job_id=job_id, keep=keep))
            except (PublishUnconfirmedError, ServiceRefusedError, ServiceUnreachableError) as error:
                # The order only makes it quicker: the worker finds the mark with its next write.
                logger.warning("cannot order a worker to cancel job %s (%s)", job_id, error)
        if state is JobState.CANCELLED and record.session_id is not None:
            await self._leave_lane(job_id, record.session_id)
        return state

    async def _leave_lane(self, job_id: str, session_id: str) -> None:
        """Let the next turn run now: the cancelled one's message may be far behind in the queue, or lost.

        If that fails, that message does it, or whoever enters the lane next.
        """
        try:
            following = await self._sessions.advance(Job(id=job_id, body={}, session_id=session_id))
            if following is not None:
                await self._publish_turn(following)
        except (*_REFUSED, PublishUnconfirmedError) as error:
            logger.warning("cannot let the turn behind job %s run yet (%s)", job_id, error)

    async def _take_turn(self, job: Job, *, new: bool) -> None:
        """Publish the job if its session is free; else it waits in the lane, as ``on_busy`` says."""
        with _uncertain_without_redis():
            entered = await self._sessions.enter(Payload(job, self._settings.client_id))
        match entered.entry:
            case Entry.RUN | Entry.WAIT:
                try:
                    if entered.entry is Entry.RUN:
                        await self._publish_turn(Payload(job, self._settings.client_id))
                    else:
                        await self._wait_in_lane(job, entered)
                except _REFUSED:
                    if new:
                        await self._withdraw(job)
                    # Otherwise an earlier call may have published it, and it may be running.
                    raise
            case Entry.BUSY:
                if entered.again is not None:
                    await self._publish_front(job, entered.again)
                raise SessionBusyError(
                    f"session {job.session_id!r} has an unfinished turn, job {entered.owner}: wait, or "
                    "submit with on_busy=enqueue, interrupt or rollback"
                )
            case Entry.TOO_LARGE:
                raise SessionTooLargeError(
                    f"session {job.session_id!r} would exceed {self._settings.max_session_bytes:,} bytes "
                    "(INFERFLEET_MAX_SESSION_BYTES): fork it from an earlier turn, or start a new one"
                )
            case _:
                assert_never(entered.entry)

    async def _wait_in_lane(self, job: Job, entered: Entered) -> None:
        """Make sure that the job's turn will come."""
        await self._publisher.require_pool(job.pool)
        stop = job.on_busy in {OnBusy.INTERRUPT, OnBusy.ROLLBACK}
        if stop:
            await self._stop_turn(job, entered.owner, keep=job.on_busy is OnBusy.INTERRUPT)
        if stop or entered.unpublished:
            grace_s = 0.0 if entered.again else self._settings.turn_publish_grace_s
            await self._until_front_is_published(job, grace_s=grace_s)

    async def _until_front_is_published(self, job: Job, *, grace_s: float) -> None:
        """Wait until the turn in front is in the queue. If its own publisher is dead, publish it.

        Otherwise this job would be accepted, and wait behind one that nobody ever publishes.
        """
        awaited, deadline = "", 0.0
        while True:
            owner, payload = await self._sessions.front(job)
            if payload is None:
                return
            if owner != awaited:
                awaited, deadline = owner, time.monotonic() + grace_s
            if time.monotonic() < deadline:
                await asyncio.sleep(FRONT_POLL_S)
            else:
                await self._publish_front(job, payload)

    async def _publish_front(self, job: Job, front: Payload) -> None:
        try:
            await self._publish_turn(front)
        except UnknownPoolError:
            if front.job.id == job.id:
                raise
            # No worker can run it, and nobody was told that it was accepted.
            await self._stop_turn(job, front.job.id, keep=False)

    async def _stop_turn(self, job: Job, owner: str, *, keep: bool) -> None:
        """Stop the turn that is in the way. One that never ran ends at once, without its message's help."""
        try:
            over = (await self.cancel(owner, keep=keep)).terminal
        except JobNotFoundError:
            # Its producer took it back meanwhile.
            over = True
        if over:
            following = await self._sessions.advance(job.model_copy(update={"id": owner}))
            if following is not None:
                await self._publish_turn(following)

    async def _withdraw(self, job: Job) -> None:
        """Take a refused turn back. Whoever submitted the one behind it still sees to that."""
        with _uncertain_without_redis():
            following = await self._sessions.advance(job)
        if following is not None:
            with suppress(*_REFUSED, PublishUnconfirmedError):
                await self._publish_turn(following)

    async def _publish_turn(self, payload: Payload) -> None:
        await self._publisher.publish(payload.job, reply_to=payload.reply_to)
        # Only a note: the worker that gets the message makes the same one.
        with suppress(ServiceUnreachableError, ServiceRefusedError):
            await self._sessions.published(payload.job)


@contextmanager
def _uncertain_without_redis() -> Generator[None]:
    """A turn is in its lane or not: an outage of Redis in between leaves that open."""
    try:
        yield
    except ServiceUnreachableError as error:
        raise PublishUnconfirmedError(
            f"Redis went away while a turn asked for its place, so it may run or not ({error}). "
            "Submitting again with the same idempotency key is safe"
        ) from error
