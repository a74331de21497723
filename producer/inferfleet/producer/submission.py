"""Accepts a job: first its record, then its session's lane if it has a session, then the queue."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from enum import Enum, auto
from functools import partial
from itertools import count
from typing import assert_never

from inferfleet.producer.lanes import FRONT_POLL_S, LaneEntry, uncertain_without_redis
from inferfleet.producer.publisher import Publisher
from inferfleet.producer.routing import Routing, in_pool
from inferfleet.producer.start_estimates import StartEstimates
from inferfleet.producer.tracing import sending
from inferfleet.schemas.control import CancelJob
from inferfleet.schemas.errors import (
    InferfleetError,
    InvalidJobError,
    JobDataLostError,
    PartialSubmitError,
    PublishUnconfirmedError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.message import message_body
from inferfleet.schemas.result import JobRecord, Result
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.schemas.shares import may_be_preferred, preferred
from inferfleet.wire.redis import idempotency
from inferfleet.wire.redis.clock import milliseconds
from inferfleet.wire.redis.followers import Followers
from inferfleet.wire.redis.idempotency import Claim
from inferfleet.wire.redis.job_reading import Accepted, Standing
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import Closed, JobRecords, Recorded, seconds_until
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.wire.redis.session_lanes import Payload, SessionLanes, Withdrawn
from inferfleet.wire.redis.shares import PoolShares
from inferfleet.wire.redis.warm_prompts import WarmPrompts

logger = logging.getLogger(__name__)

SUBMIT_WINDOW = 1024
"""How many jobs of one ``submit_many`` wait for their confirm at the same time."""

_ACCEPTED_BEFORE = Recorded(state=JobState.RUNNING, attempt=0, closed=False)
"""The record of a job that the broker has, whatever became of it."""

_OF_NO_JOB = -1
"""A number of tokens that no record has: the result is made again, should the job wait after all."""


class TakenBack(Enum):
    """What became of a job that its producer could not publish."""

    GONE = auto()
    """Nothing is left of the job."""

    ACCEPTED = auto()
    """Somebody else has submitted the job, too: it is queued, runs, or has ended."""

    UNCERTAIN = auto()
    """Somebody else may have published the job."""


class Submission:
    """Accepts and cancels jobs for one client."""

    def __init__(
        self,
        *,
        settings: ProducerSettings,
        pipeline: CommandPipeline,
        records: JobRecords,
        session_lanes: SessionLanes,
        histories: SessionHistories,
        publisher: Publisher,
        estimates: StartEstimates,
        fetch_passages: Callable[[Job], Awaitable[Job]],
    ) -> None:
        self._estimates = estimates
        self._fetch_passages = fetch_passages
        self._settings = settings
        self._pipeline = pipeline
        self.routing = Routing(pipeline)
        """Puts jobs into the pools of their rollouts."""
        self._records = records
        self._session_lanes = session_lanes
        self._histories = histories
        self._publisher = publisher
        self._lanes = LaneEntry(
            settings=settings,
            records=records,
            session_lanes=session_lanes,
            publisher=publisher,
            cancel=self.cancel,
        )
        self._followers = Followers(
            pipeline, records, queued_ttl_s=settings.queued_ttl_s, publish=self._publish_ready
        )
        self._shares = PoolShares(pipeline, ttl_s=settings.queued_ttl_s) if settings.fair_shares else None
        self._warm_prompts: WarmPrompts | None = None
        # RabbitMQ may lose what it moves from a worker's queue.
        if settings.warm_prompt_chars and settings.keep_requests:
            self._warm_prompts = WarmPrompts(pipeline, least=settings.warm_prompt_chars)
        self._name = os.urandom(4).hex()
        self._calls = count()
        """Together they name a submission."""

    async def accept(self, job: Job, *, weight: float | None = None) -> Job:
        """Record a job, then publish it, so that every queued job has a record.

        With fair shares it may get a higher priority. ``weight`` is that of its tenant; ``None`` keeps the
        one that the tenant has.

        A refusal means that the job was not accepted from any caller. So only the last caller that submits
        the job raises it, once the job has been taken back.
        """
        with sending([job]) as (sent,):
            return await self._accept(sent, weight)

    async def _accept(self, job: Job, weight: float | None) -> Job:
        call = f"{self._name}:{next(self._calls)}"
        job = await self.routing.route(await self._fetch_passages(job))
        if job.after is not None:
            await self._check_predecessors(job)
        claimed, body, recorded = await self._claim_and_record(job, call, weight)
        if recorded.may_lack_message:
            # A second message does no harm: the fence lets one of them run.
            try:
                if recorded.made and not claimed.accepted:
                    await self._estimates.check(claimed.job)
                if (replicas := self._records.replicas) is not None:
                    claimed, body, recorded = await replicas.hold(
                        partial(self._claim_and_record, claimed.job, call, weight)
                    )
                if not recorded.may_lack_message:
                    # A failover has forgotten the claim, and another caller was faster.
                    pass
                elif recorded.follows:
                    await self._follow(claimed.job)
                elif job.session_id is None:
                    await self._publish(claimed.job, body, again=recorded.stalled)
                elif recorded.stalled:
                    await self._lanes.publish(Payload(claimed.job, self._settings.client_id))
                    await self._note_copy(claimed.job)
                else:
                    await self._lanes.take_turn(claimed.job)
                    await self._hold_turn(claimed.job)
            except PublishUnconfirmedError as unconfirmed:
                unconfirmed.job_id = claimed.job.id
                raise
            except InferfleetError as refusal:
                if recorded.stalled or claimed.accepted:
                    raise _uncertain(claimed.job, refusal) from refusal
                await self._accepted_all_the_same(claimed, call, refusal)
            if recorded.entered is not None and not recorded.entered.done():
                # Others wait for it, too. No error if it fails: the broker has the job already.
                with suppress(ServiceUnreachableError, ServiceRefusedError):
                    await asyncio.shield(recorded.entered)
        if claimed.key and not claimed.accepted:
            # No error if this fails: the broker has the job already.
            with suppress(ServiceUnreachableError, ServiceRefusedError):
                await idempotency.accept(self._pipeline, claimed, ttl_s=self._key_ttl_s(claimed.job))
        self._records.open_jobs.note_pool(claimed.job.pool)
        return claimed.job

    async def _check_predecessors(self, job: Job) -> None:
        if not self._settings.keep_requests:
            raise InvalidJobError("after: needs INFERFLEET_KEEP_REQUESTS, because Redis keeps such a job")
        if job.idempotency_key is None:
            # A key may have been accepted when the other jobs still existed.
            await self._followers.require(job)

    async def _follow(self, job: Job) -> None:
        """Let a job wait for those after which it runs; publish it if it need not."""
        await self._publisher.require_pool(job.pool)
        await self._followers.follow(job)
        await self._followers.look(job.id, submits=True)

    def _key_ttl_s(self, job: Job) -> int:
        return self._settings.queued_ttl_s + seconds_until(job, self._records.clock.now())

    async def _hold_turn(self, job: Job) -> None:
        """Wait until a turn's place in its session is on replicas, if the settings demand that."""
        if (replicas := self._records.replicas) is None:
            return
        try:
            await replicas.hold(partial(self._session_lanes.enter, Payload(job, self._settings.client_id)))
        except InferfleetError as refusal:
            raise _uncertain(job, refusal) from refusal

    async def _claim_and_record(
        self, job: Job, call: str, weight: float | None
    ) -> tuple[Claim, bytes, Recorded]:
        """Find the job of the idempotency key, and create its record. Leave an accepted job as it is.

        Also returns the body of its message.
        """
        keep = False
        while True:
            claimed = await idempotency.claim(self._pipeline, job, call=call, ttl_s=self._key_ttl_s(job))
            if claimed.accepted and not await self._is_nowhere(claimed.job):
                before = await self._records.accepted(claimed.job.id)
                return _as_accepted(claimed, before), b"", _ACCEPTED_BEFORE
            claimed = claimed._replace(job=await self._placed(claimed.job, weight))
            body = message_body(claimed.job)
            recorded = await self._record(claimed, call, body, keep=keep)
            if _moment(recorded.not_before) != _moment(claimed.job.not_before):
                # Another caller has submitted the job with another time.
                joined = claimed.job.model_copy(update={"not_before": recorded.not_before})
                claimed = claimed._replace(job=joined)
                body = message_body(joined)
            if (recorded.pool, recorded.priority) != (claimed.job.pool, claimed.job.priority):
                # It stays where it was recorded first: a rollout's rule has changed since, or another caller
                # has submitted it with another priority.
                self._records.open_jobs.displace(
                    claimed.job.id, pool=claimed.job.pool, priority=claimed.job.priority
                )
                if recorded.pool != claimed.job.pool or not may_be_preferred(recorded.priority):
                    # Otherwise the place may be that of the job as it was recorded.
                    await self._give_place_back(claimed.job, await self._placed_ms(claimed.job))
                joined = in_pool(claimed.job, recorded.pool)
                joined = joined.model_copy(update={"priority": recorded.priority})
                claimed = claimed._replace(job=joined)
                self._records.open_jobs.enter(claimed.job)
                body = message_body(claimed.job)
            # If the key no longer names this claim, another caller took the job back before this call had its
            # record. Then this call revived the record, or joined a call that did.
            revived = not recorded.holder.startswith(claimed.holder)
            if not recorded.closed and not revived:
                return claimed, body, recorded
            with uncertain_without_redis():
                if recorded.closed:
                    # A refused caller is taking it back. Help, so that this ends even if that caller died.
                    keep = await self._take_back(claimed) is not TakenBack.GONE
                elif await self._records.close(claimed.job.id, call=call) is Closed.CLOSED:
                    await self._take_back(claimed)

    async def _placed(self, job: Job, weight: float | None) -> Job:
        """Return a job with the priority that it gets: with fair shares, perhaps the next higher one."""
        higher = preferred(job.priority, below=self._settings.preempt_from)
        if self._shares is None or higher is None:
            return job
        if job.not_before is not None or job.after is not None:
            # It would have a place long before it can run.
            return job
        is_preferred = await self._shares.place(job.pool, job.tenant, job.id, weight=weight)
        return job.model_copy(update={"priority": higher}) if is_preferred else job

    async def _placed_ms(self, job: Job) -> float | None:
        """Return since when a job is preferred; ``None`` if it is not, or Redis does not say."""
        if self._shares is not None:
            with suppress(ServiceUnreachableError, ServiceRefusedError):
                return await self._shares.placed_ms(job.pool, job.tenant, job.id)
        return None

    async def _give_place_back(self, job: Job, since_ms: float | None) -> None:
        """Let another job of the tenant be preferred. No error if it fails: such places are found later."""
        if self._shares is not None and since_ms is not None:
            with suppress(ServiceUnreachableError, ServiceRefusedError):
                await self._shares.give_back(job.pool, job.tenant, job.id, since_ms)

    async def _record(self, claimed: Claim, call: str, body: bytes, *, keep: bool = False) -> Recorded:
        try:
            return await self._records.create(
                claimed.job,
                reply_to=self._settings.client_id,
                call=call,
                key=claimed.key,
                keep=keep,
                request=body,
            )
        except (ServiceUnreachableError, ServiceRefusedError) as error:
            if not error.in_doubt:
                raise
            # A worker publishes what is in the index of unfinished jobs and has no message.
            raise _perhaps_recorded(claimed.job, error) from error

    async def _is_nowhere(self, job: Job) -> bool:
        """Return whether an accepted job's message may be lost, or its turn has no place in its session."""
        match await self._records.standing(job.id):
            case Standing.STALLED:
                return True
            case Standing.QUEUED:
                return job.session_id is not None and not (await self._session_lanes.front(job)).placed
            case _:
                return False

    async def _accepted_all_the_same(self, claimed: Claim, call: str, refusal: InferfleetError) -> None:
        """Return if a job that this client cannot publish was accepted from another caller, or runs.

        Otherwise take the job back, and raise the refusal.
        """
        job = claimed.job
        try:
            outcome = await self._undo(claimed, call)
        except (ServiceUnreachableError, ServiceRefusedError):
            # The job is in the index of unfinished jobs, so a worker may publish it.
            outcome = TakenBack.UNCERTAIN
        match outcome:
            case TakenBack.GONE:
                raise refusal
            case TakenBack.ACCEPTED:
                return
            case TakenBack.UNCERTAIN:
                raise _uncertain(job, refusal) from refusal
            case _:
                assert_never(outcome)

    async def _undo(self, claimed: Claim, call: str) -> TakenBack:
        """Take a refused job back, unless another caller has submitted it, too."""
        deadline = time.monotonic() + self._settings.turn_publish_grace_s
        while True:
            match await self._records.close(claimed.job.id, call=call):
                case Closed.CLOSED:
                    return await self._take_back(claimed)
                case Closed.MISSING:
                    return TakenBack.GONE
                case Closed.BEGUN:
                    return TakenBack.ACCEPTED
                case Closed.SHARED:
                    # Another caller is submitting the job: wait for what it is told.
                    if await idempotency.accepted(self._pipeline, claimed):
                        return TakenBack.ACCEPTED
                    if time.monotonic() > deadline:
                        return TakenBack.UNCERTAIN
                    await asyncio.sleep(FRONT_POLL_S)

    async def _take_back(self, claimed: Claim) -> TakenBack:
        """Undo all that was done for a closed job. Several processes may do this at the same time.

        The record is deleted last: until then it keeps others from using the key.
        """
        job = claimed.job
        following: Payload | None = None
        if job.session_id is not None:
            withdrawn, following = await self._session_lanes.withdraw(job)
            if withdrawn is Withdrawn.PUBLISHED:
                return TakenBack.ACCEPTED
            if withdrawn is Withdrawn.OFFERED:
                return TakenBack.UNCERTAIN
        if job.after is not None:
            await self._followers.unfollow(job)
        await self._leave_index(job)
        await idempotency.forget(self._pipeline, claimed)
        # In this order: a caller that submits the job again may place it as soon as the record is gone.
        placed_ms = await self._placed_ms(job)
        gone = await self._records.discard(job.id)
        if gone:
            await self._give_place_back(job, placed_ms)
        else:
            self._records.open_jobs.enter(job)
        if following is not None:
            # If this fails, the producer of the turn behind it does the same.
            with suppress(InferfleetError):
                await self._lanes.publish(following)
        return TakenBack.GONE if gone else TakenBack.ACCEPTED

    async def _leave_index(self, job: Job) -> None:
        """Take a closed job out of the index of unfinished jobs, unless it was submitted again."""
        # In this order: a caller that submits the job again has found no record of it before.
        entered_ms = await self._records.open_jobs.entered_ms(job)
        if entered_ms is not None and (await self._records.held(job.id)).closed:
            await self._records.open_jobs.withdraw(job, entered_ms)

    async def accept_many(self, jobs: Sequence[Job], *, weight: float | None = None) -> list[Job]:
        """Accept many jobs of a tenant or of several, a window of them at a time. ``weight`` is as above.

        Raises:
            PartialSubmitError: Some jobs were not accepted.

        """
        with sending(jobs) as sent:
            return await self._accept_many(sent, weight)

    async def _accept_many(self, jobs: Sequence[Job], weight: float | None) -> list[Job]:
        accepted: dict[int, Job] = {}
        rejected: dict[int, InferfleetError] = {}
        positions = enumerate(jobs)
        entering: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        searching = {job.session_id for job in jobs if job.retrieve is not None}

        async def accept_next() -> None:
            for position, job in positions:
                # Elsewhere turns enter their lane in the order in which their commands were given.
                overtaken = (
                    not self._pipeline.ordered or self._shares is not None or job.session_id in searching
                )
                apart = job.session_id is not None and overtaken
                try:
                    async with entering[job.session_id or ""] if apart else nullcontext():
                        accepted[position] = await self._accept(job, weight)
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

    async def move(self, job: Job, *, from_pool: str, reply_to: str) -> None:
        """Publish a job whose message waits in ``from_pool`` in the pool that ``job`` names now.

        Also if it has ended: its message may be what lets the next turn of its session run.

        Raises:
            InferfleetError: What ``Publisher.publish`` raises. The job's message may be in both pools.

        """
        await self._records.move(job, from_pool=from_pool)
        await self._move_place(job, from_pool=from_pool)
        await self._publisher.publish(job, reply_to=reply_to)

    async def _move_place(self, job: Job, *, from_pool: str) -> None:
        """Let a preferred job count in the pool to which it has moved, if that has room for it.

        Its priority stays as it is.
        """
        former = in_pool(job, from_pool)
        if self._shares is not None and (since_ms := await self._placed_ms(former)) is not None:
            with suppress(ServiceUnreachableError, ServiceRefusedError):
                await self._shares.place(job.pool, job.tenant, job.id)
            await self._give_place_back(former, since_ms)

    async def cancel(self, job_id: str, *, keep: bool = False) -> JobState:
        """Cancel a job; with ``keep``, its partial answer stays in its session."""
        while True:
            # The result has the tokens of earlier attempts. If the job runs by now, its worker makes it.
            try:
                record = await self._records.get(job_id)
            except JobDataLostError:
                # The job has ended, and its result has expired.
                return await self._records.state(job_id)
            running = record.state is JobState.RUNNING
            waits = not running or await self._records.standing(job_id) is Standing.STALLED
            # A worker that died just before the commit has left the turn in the history.
            said = (
                running
                and waits
                and record.session_id is not None
                and await self._histories.has_turn(record.id, record.session_id)
            )
            result = await self._cancelled(record, keep=keep, waits=waits)
            state = await self._records.cancel(
                job_id,
                result,
                attempt=record.attempt,
                keep=keep,
                said=said,
                tokens=record.tokens if waits else _OF_NO_JOB,
            )
            if state is not None:
                break
        # A worker runs the job, or holds its message during the pause before its next attempt.
        if state is JobState.RUNNING or (state is JobState.CANCELLED and record.attempt):
            try:
                await self._publisher.send(CancelJob(job_id=job_id, keep=keep))
            except (PublishUnconfirmedError, ServiceRefusedError, ServiceUnreachableError) as error:
                # The command only speeds this up: the worker finds the mark at its next write.
                logger.warning("cannot tell the worker to cancel job %s (%s)", job_id, error)
        if state is JobState.CANCELLED and record.session_id is not None:
            await self._leave_lane(record)
        if state.terminal:
            try:
                await self._followers.ended(job_id)
            except InferfleetError as error:
                # Whoever gets the job's message does it, or a sweep.
                logger.warning("cannot end the jobs that follow job %s yet (%s)", job_id, error)
        return state

    async def _cancelled(self, record: JobRecord, *, keep: bool, waits: bool) -> Result:
        """Make the result of a job that is cancelled while it waits, with its partial answer."""
        if keep:
            why = "interrupted by the session's next turn"
        else:
            why = "cancelled before it ran again" if record.attempt else "cancelled before it ran"
        ended = not waits or record.state.terminal
        response, usage = await self._records.cut_answer(
            record.id,
            tokens=0 if ended else record.tokens,
            began_at=record.started_at or self._records.clock.now(),
        )
        return Result(
            job_id=record.id,
            state=JobState.CANCELLED,
            response=response,
            error=Failure(code=FailureCode.CANCELLED, message=why),
            usage=usage,
            model_identity=record.model_identity,
            attempts=record.attempts,
        )

    async def _leave_lane(self, record: JobRecord) -> None:
        """Let the next turn run now: the cancelled turn's message may be far back in the queue, or lost.

        If this fails, the worker that gets that message does it, or the next producer that enters the lane.
        """
        try:
            ended = Job(id=record.id, pool=record.pool, body={}, session_id=record.session_id)
            await self._lanes.pass_over(ended)
        except InferfleetError as error:
            logger.warning("cannot publish the turn behind job %s yet (%s)", record.id, error)

    async def _publish(self, job: Job, body: bytes, *, again: bool = False) -> None:
        delay_s = 0.0
        if job.not_before is not None:
            delay_s = (job.not_before - self._records.clock.now()).total_seconds()
        warm = "" if delay_s > 0 else await self._warm_worker(job)
        if await self._publisher.publish(job, body=body, warm=warm, delay_s=delay_s) or again:
            await self._note_copy(job)

    async def _warm_worker(self, job: Job) -> str:
        """Return the routing key of the worker that has the prompt's beginning cached; ``""`` if none."""
        if self._warm_prompts is not None and job.priority < self._settings.preempt_from:
            # No error if this fails: any worker can run the job.
            with suppress(ServiceUnreachableError, ServiceRefusedError):
                return await self._warm_prompts.find(job)
        return ""

    async def _publish_ready(self, job: Job, body: bytes, reply_to: str) -> None:
        await self._publisher.publish(job, body=body, reply_to=reply_to)

    async def _note_copy(self, job: Job) -> None:
        # No error if this fails: it only matters for a message that arrives days later.
        with suppress(ServiceUnreachableError, ServiceRefusedError):
            await self._records.copied(job.id)


def _as_accepted(claimed: Claim, before: Accepted | None) -> Claim:
    """Return a claim with the job as its record has it: another caller may have said otherwise."""
    if before is None:
        return claimed
    job = in_pool(claimed.job, before.pool)
    if _moment(job.not_before) != _moment(before.not_before):
        job = job.model_copy(update={"not_before": before.not_before})
    return claimed._replace(job=job.model_copy(update={"priority": before.priority}))


def _moment(moment: datetime | None) -> int | None:
    """Return a time as Redis keeps it."""
    return None if moment is None else milliseconds(moment)


def _perhaps_recorded(job: Job, error: InferfleetError) -> PublishUnconfirmedError:
    unconfirmed = PublishUnconfirmedError(
        f"job {job.id} may or may not run: Redis went away while the job was recorded ({error}). "
        "Submitting it again with the same idempotency key is safe"
    )
    unconfirmed.job_id = job.id
    return unconfirmed


def _uncertain(job: Job, refusal: InferfleetError) -> PublishUnconfirmedError:
    return PublishUnconfirmedError(
        f"job {job.id} was refused this time ({refusal}), but another call may have had it accepted: "
        "it may or may not be queued. Submitting it again with the same key is safe"
    )
