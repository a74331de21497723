"""Changes the record and journal of a job in Redis, from its submission until it ends.

Only scripts change a job's record. Each change by a worker carries the attempt to which it belongs, and Redis
refuses a change of an older attempt (``fenced``). So a worker that has lost its job, and does not know it
yet, can do no harm. ``job_endings`` makes the last change.
"""

from __future__ import annotations

import asyncio
import math
import os
from copy import copy
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.failures import Failure
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.journal import (
    AnswerHead,
    QueuedEntry,
    RestartedEntry,
    RestartReason,
    RunningEntry,
    TokenChunk,
)
from inferfleet.schemas.message import message_body
from inferfleet.schemas.names import job_key, journal_key, request_key
from inferfleet.schemas.result import Result, Usage
from inferfleet.schemas.trace import is_sampled
from inferfleet.schemas.work import JobSize
from inferfleet.wire.redis import job_scripts
from inferfleet.wire.redis.attempts import (
    DEATHS_PER_ATTEMPT,
    START_STATUSES,
    SUSPECT_AFTER,
    WRITE_STATUSES,
    Failed,
    Fence,
    Started,
    StartStatus,
    WriteStatus,
)
from inferfleet.wire.redis.clock import milliseconds, moment_of
from inferfleet.wire.redis.job_endings import JobEndings
from inferfleet.wire.redis.job_reading import STATES
from inferfleet.wire.redis.journal_lines import PendingTokens, encoded, to_append
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.replicas import Replicas

MIN_BUSY_S = 1.0
"""How long to wait, at least, if a job cannot be ended now because somebody else has it."""


class Closed(StrEnum):
    """Whether a refused submission may take its job back."""

    CLOSED = "closed"
    """It may: nobody else has submitted the job."""

    SHARED = "shared"
    """Somebody else is submitting the job, or has submitted it."""

    BEGUN = "begun"
    """A worker has the job, or it has ended."""

    MISSING = "missing"
    """Somebody else has taken the job back."""


class Recorded(NamedTuple):
    """The record of a job that is being submitted. ``attempt`` is how often the job was started.

    While the record is ``closed``, a refused submission is taking the job back. ``holder`` is the value of
    the idempotency key just afterwards. ``stalled`` is as in ``Standing``, unless the job has been published
    again since its last attempt. ``pool`` is the one in which the job was recorded first.
    """

    state: JobState
    attempt: int
    closed: bool
    holder: str = ""
    stalled: bool = False
    entered: asyncio.Future[Any] | None = None
    """Done when the job is in the index of unfinished jobs, too."""
    pool: str = ""
    made: bool = False
    """Whether this submission has made the record, and joined none."""
    not_before: datetime | None = None
    """When the job may start, as it was recorded first."""
    follows: bool = False
    """Whether the job runs after other jobs. Then ``Followers`` publish it."""
    priority: int = 0
    """The one with which the job was recorded first."""

    @property
    def may_lack_message(self) -> bool:
        """Whether the job may have no message: its producer died, or Redis has lost the job's end."""
        return self.stalled or (self.state is JobState.QUEUED and self.attempt == 0)


class JobRecords(JobEndings):
    """The records of all jobs. Concurrent changes of many tasks go through one pipeline."""

    def __init__(
        self,
        *,
        pipeline: CommandPipeline,
        result_ttl_s: int,
        queued_ttl_s: int,
        keep_requests: bool = True,
        replicas: Replicas | None = None,
    ) -> None:
        super().__init__(pipeline, result_ttl_s=result_ttl_s, queued_ttl_s=queued_ttl_s, replicas=replicas)
        self._queued_ttl_s = queued_ttl_s
        self._keep_requests = keep_requests

    # A producer's side

    async def create(
        self,
        job: Job,
        *,
        reply_to: str,
        call: str,
        key: str = "",
        keep: bool = False,
        request: bytes = b"",
    ) -> Recorded:
        """Record a job, or join its other submissions. ``call`` is unique to this submission.

        ``request`` is the body of the job's message, which is kept until the job has ended.

        ``key`` is the idempotency key under which the job was found. ``keep`` keeps a job that is being taken
        back because its other submissions were refused.
        """
        create = job_scripts.create(
            job_key(job.id),
            journal_key(job.id),
            request_key(job.id),
            submitted_ms=milliseconds(job.submitted_at),
            ttl_s=self._queued_ttl_s + seconds_until(job, self.clock.now()),
            queued_entry=encoded(QueuedEntry(at=job.submitted_at, not_before=job.not_before)),
            pool=job.pool,
            priority=int(job.priority),
            reply_to=reply_to,
            call=call,
            keep=int(keep),
            session=job.session_id or "",
            tenant=job.tenant,
            request=request if self._keep_requests else b"",
            traceparent=_sampled(job),
            submitted_to=job.submitted_to or "",
            size=JobSize.of(job.endpoint, job.body, request_bytes=len(request)).encoded(),
            not_before_ms=_not_before_ms(job),
            after=" ".join(job.after or ()),
        )
        self._pipeline.check_home()
        # It enters with the same write, so that it is there before a message is. The event loop runs in
        # order, so what enters must be collected before the command wakes the writer.
        entered = self.open_jobs.enter(job)
        recorded = self._pipeline.enqueue(*create)
        # In this order, because taking a job back frees its key before it deletes the record.
        if not self._pipeline.ordered:
            await asyncio.wait([recorded])
        holder = self._pipeline.enqueue("GET", key) if key else None
        state, attempt, closed, stalled, pool, made, not_before_ms, follows, priority = await recorded
        try:
            held = (holder and await holder) or b""
        except (ServiceUnreachableError, ServiceRefusedError) as error:
            # There is a record by now. Others may get the same error.
            doubt = copy(error)
            doubt.in_doubt = True
            raise doubt from error
        return Recorded(
            STATES[state],
            attempt,
            closed == 1,
            held.decode(),
            stalled == 1,
            entered,
            pool.decode(),
            made == 1,
            moment_of(int(not_before_ms)) if not_before_ms else None,
            follows == 1,
            int(priority),
        )

    async def close(self, job_id: str, *, call: str) -> Closed:
        """Close a job whose submission ``call`` was refused, if it may be taken back, so nobody joins it."""
        return Closed((await self._pipeline.enqueue(*job_scripts.close(job_key(job_id), call=call))).decode())

    async def discard(self, job_id: str) -> bool:
        """Delete a closed job. Return false if it has progressed nevertheless."""
        return bool(
            await self._pipeline.enqueue(
                *job_scripts.discard(job_key(job_id), journal_key(job_id), request_key(job_id))
            )
        )

    async def copied(self, job_id: str) -> None:
        """Note that a job may be queued twice: keep its record while a message may be in the queue."""
        await self._pipeline.enqueue(*job_scripts.copied(job_key(job_id), ttl_s=self._tombstone_ttl_s))

    async def move(self, job: Job, *, from_pool: str) -> bool:
        """Move an unfinished job to the pool that ``job`` names now. Return false if it has ended.

        The caller publishes it there afterwards.
        """
        command = job_scripts.move(
            job_key(job.id), request_key(job.id), pool=job.pool, request=message_body(job)
        )
        # First, so that the sweep of one pool or the other knows the job at any moment.
        entered = self.open_jobs.enter(job)
        moved = bool(await self._pipeline.enqueue(*command))
        await asyncio.shield(entered)
        if not moved:
            self.open_jobs.leave(job.id, pool=job.pool, priority=job.priority)
            return False
        # Again: before its record said so, a sweep may have removed it as a job of the other pool.
        await asyncio.shield(self.open_jobs.enter(job))
        self.open_jobs.displace(job.id, pool=from_pool, priority=job.priority)
        return True

    # A worker's side

    async def start(
        self,
        job: Job,
        *,
        token: str,
        worker_id: str,
        lease_s: float,
        resumable: bool,
        alone: bool,
        reply_to: str,
        model_identity: str = "",
        only_ends: bool = False,
    ) -> Started:
        """Begin an attempt. ``token`` is unique to this call, so that a repeated call starts only once.

        ``alone`` says that no other suspect runs beside it (see ``SUSPECT_AFTER``). ``model_identity`` is the
        caller's; a caller that ``only_ends`` the job has none, and need not wait until the job may start.
        """
        now = self.clock.now()
        verdict, attempt, tokens, restart, charged, waiting, identity, *rest = await self._pipeline.enqueue(
            *job_scripts.start(
                job_key(job.id),
                journal_key(job.id),
                request_key(job.id),
                started_ms=milliseconds(now),
                lease_ms=int(lease_s * 1000),
                ttl_s=self._queued_ttl_s,
                worker=worker_id,
                at=now.isoformat(),
                max_attempts=job.max_attempts,
                expires_ms=milliseconds(job.expires_at) if job.expires_at else "",
                resumable=int(resumable),
                pool=job.pool,
                priority=int(job.priority),
                message_reply_to=reply_to,
                submitted_ms=milliseconds(job.submitted_at),
                fence=token,
                alone=int(alone),
                suspect_after=SUSPECT_AFTER,
                max_deaths=job.max_attempts * DEATHS_PER_ATTEMPT,
                model_identity=model_identity,
                session=job.session_id or "",
                tenant=job.tenant,
                traceparent=_sampled(job),
                submitted_to=job.submitted_to or "",
                not_before_ms=0 if only_ends else _not_before_ms(job),
            )
        )
        kept, first = rest or (1, b"")
        if not kept and self._keep_requests:
            # Another AMQP client published the job, or Redis has lost its data.
            await self._keep(job)
        if verdict in {b"busy", b"early"}:
            return Started(
                START_STATUSES[verdict],
                Fence(token, 0),
                0,
                charged,
                waiting.decode(),
                busy_s=attempt / 1000,
            )
        return Started(
            START_STATUSES[verdict],
            Fence(token, attempt),
            tokens,
            charged,
            waiting.decode(),
            restart=RestartReason(restart.decode()) if restart else None,
            model_identity=identity.decode() or None,
            first_entered_ms=int(first) if first else None,
        )

    async def _keep(self, job: Job) -> None:
        """Keep the request of a job that has a record already."""
        self.open_jobs.enter(job)
        ttl_s = self._queued_ttl_s + seconds_until(job, self.clock.now())
        await self._pipeline.execute("SET", request_key(job.id), message_body(job), "EX", ttl_s)

    async def fail(
        self, job: Job, failure: Failure, *, worker_id: str, lease_s: float, reply_to: str
    ) -> Failed:
        """End a job that no worker can run, unless it runs, or has ended.

        This takes the fence like an attempt, so that of two ends only one counts.
        """
        started = await self.start(
            job,
            token=f"{worker_id}:{os.urandom(8).hex()}",
            worker_id=worker_id,
            lease_s=lease_s,
            resumable=True,
            alone=True,
            reply_to=reply_to,
            only_ends=True,
        )
        match started.status:
            case StartStatus.DONE:
                return Failed(None, 0.0)
            case StartStatus.BUSY | StartStatus.EARLY | StartStatus.SUSPECT:
                return Failed(None, max(started.busy_s, MIN_BUSY_S))
            case _:
                pass
        response, usage = await self.cut_answer(job.id, tokens=started.tokens, began_at=self.clock.now())
        result = Result(
            job_id=job.id,
            state=JobState.FAILED,
            response=response,
            error=failure,
            usage=usage,
            model_identity=started.model_identity,
            worker_id=worker_id,
            attempts=started.charged,
        )
        fence, client = started.fence, started.reply_to
        written = await self.finish(
            job, result, fence=fence, pending=PendingTokens(started.tokens), reply_to=client
        )
        if written is WriteStatus.MISSING and await self.restore(
            job,
            fence=fence,
            charged=started.charged,
            worker_id=worker_id,
            lease_s=lease_s,
            started_at=self.clock.now(),
            chunks=(),
            reply_to=client,
        ):
            # Redis lost the journal or the record, and the generated tokens with it.
            nothing = result.model_copy(update={"response": None, "usage": Usage(), "model_identity": None})
            written = await self.finish(job, nothing, fence=fence, pending=PendingTokens(0), reply_to=client)
        return Failed(result, 0.0) if written is WriteStatus.OK else Failed(None, MIN_BUSY_S)

    async def restart(
        self,
        job_id: str,
        *,
        fence: Fence,
        worker_id: str,
        model_identity: str,
        reason: RestartReason,
        tokens_wasted: int,
    ) -> WriteStatus:
        """Restart the answer of a running attempt, which has the fence ``fence.restarted()`` from then on."""
        now = self.clock.now()
        restarted = RestartedEntry(at=now, attempt=fence.attempt, reason=reason, tokens_wasted=tokens_wasted)
        running = RunningEntry(
            at=now, attempt=fence.attempt, worker_id=worker_id, model_identity=model_identity or None
        )
        written = await self._pipeline.enqueue(
            *job_scripts.restart(
                job_key(job_id),
                journal_key(job_id),
                fence=fence.token,
                new_fence=fence.restarted().token,
                model_identity=model_identity,
                restarted_entry=encoded(restarted),
                running_entry=encoded(running),
            )
        )
        return WRITE_STATUSES[written]

    async def append(
        self, job_id: str, *, fence: Fence, lease_s: float, pending: PendingTokens
    ) -> WriteStatus:
        """Add tokens to the journal and renew the lease; without tokens, only renew the lease."""
        now = self.clock.now()
        offset, count, tokens = to_append(pending, fence.attempt, now)
        return WRITE_STATUSES[
            await self._pipeline.enqueue(
                *job_scripts.append(
                    job_key(job_id),
                    journal_key(job_id),
                    request_key(job_id),
                    fence=fence.token,
                    lease_ms=int(lease_s * 1000),
                    offset=offset,
                    count=count,
                    tokens_entry=tokens,
                    ttl_s=self._queued_ttl_s,
                )
            )
        ]

    async def note(
        self,
        job_id: str,
        *,
        fence: Fence,
        lease_s: float,
        pending: PendingTokens,
        entry: QueuedEntry | RunningEntry,
        number: int,
    ) -> WriteStatus:
        """Add tokens, and an entry that says that a running attempt has lost its slot or has one again.

        ``number`` counts these entries of the attempt. Also renews the lease.
        """
        offset, count, tokens = to_append(pending, fence.attempt, self.clock.now())
        return WRITE_STATUSES[
            await self._pipeline.enqueue(
                *job_scripts.note(
                    job_key(job_id),
                    journal_key(job_id),
                    fence=fence.token,
                    lease_ms=int(lease_s * 1000),
                    offset=offset,
                    count=count,
                    tokens_entry=tokens,
                    entry=encoded(entry),
                    number=number,
                )
            )
        ]

    async def release(
        self,
        job_id: str,
        *,
        fence: Fence,
        pending: PendingTokens,
        entry: QueuedEntry,
        refund: bool,
        pause_s: float = 0.0,
    ) -> WriteStatus:
        """Put the job back to ``queued``. No worker may start it for ``pause_s`` seconds.

        With ``refund`` the attempt is not charged.
        """
        now = self.clock.now()
        offset, count, tokens = to_append(pending, fence.attempt, now)
        return WRITE_STATUSES[
            await self._pipeline.enqueue(
                *job_scripts.release(
                    job_key(job_id),
                    journal_key(job_id),
                    request_key(job_id),
                    fence=fence.token,
                    ttl_s=self._queued_ttl_s,
                    offset=offset,
                    count=count,
                    tokens_entry=tokens,
                    queued_entry=encoded(entry),
                    refund=int(refund),
                    pause_ms=int(pause_s * 1000),
                )
            )
        ]

    async def restore(
        self,
        job: Job,
        *,
        fence: Fence,
        charged: int,
        worker_id: str,
        lease_s: float,
        started_at: datetime,
        chunks: tuple[TokenChunk, ...],
        reply_to: str,
        model_identity: str = "",
        head: AnswerHead | None = None,
    ) -> bool:
        """Restore the record and journal of a running job after Redis has lost one of them.

        Returns false if somebody else has the job.
        """
        now = self.clock.now()
        everything = PendingTokens(0, chunks, head)
        # ``resumed_from`` tells readers that they have seen the tokens that follow.
        running = RunningEntry(
            at=started_at,
            attempt=fence.attempt,
            worker_id=worker_id,
            resumed_from=everything.count,
            model_identity=model_identity or None,
        )
        answer = await self._pipeline.enqueue(
            *job_scripts.restore(
                job_key(job.id),
                journal_key(job.id),
                request_key(job.id),
                fence=fence.token,
                attempt=fence.attempt,
                lease_ms=int(lease_s * 1000),
                ttl_s=self._queued_ttl_s,
                worker=worker_id,
                charged=charged,
                tokens=everything.count,
                running_entry=encoded(running),
                tokens_entry=to_append(everything, fence.attempt, now)[2],
                pool=job.pool,
                priority=int(job.priority),
                reply_to=reply_to,
                submitted_ms=milliseconds(job.submitted_at),
                started_ms=milliseconds(started_at),
                model_identity=model_identity,
                session=job.session_id or "",
                tenant=job.tenant,
                request=message_body(job) if self._keep_requests else b"",
                traceparent=_sampled(job),
                submitted_to=job.submitted_to or "",
            )
        )
        self.open_jobs.enter(job)
        return bool(answer)


def seconds_until(job: Job, now: datetime) -> int:
    """Return in how many seconds a job may start; 0 if it may start now."""
    return 0 if job.not_before is None else max(0, math.ceil((job.not_before - now).total_seconds()))


def _not_before_ms(job: Job) -> int | str:
    return "" if job.not_before is None else milliseconds(job.not_before)


def _sampled(job: Job) -> str:
    """Return the trace that the record keeps for what comes after the job's end: ``""`` for none."""
    return job.traceparent if job.traceparent is not None and is_sampled(job.traceparent) else ""
