"""Carries out outcomes: the only place in the worker that settles deliveries and ends jobs.

The order of the steps keeps the promises: first the record, then any other message, and always the ack last.
After a crash between any two steps RabbitMQ delivers the message again, and the record says what to do with
it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import assert_never

from inferfleet.schemas import Failure, Job, JobState, Result, Timings, names
from inferfleet.schemas.errors import (
    ConfigurationError,
    PublishUnconfirmedError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.schemas.message import LaterContractError
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.rabbitmq.confirms import RefusedError, UnroutableError
from inferfleet.wire.rabbitmq.delays import DelayedPublishing
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.rabbitmq.topology import declare_dead_letters
from inferfleet.wire.redis.attempts import WriteStatus
from inferfleet.wire.redis.followers import Followers
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_lanes import Payload
from inferfleet.worker.broker import Delivery
from inferfleet.worker.dead_letter import dead_letter
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.journal import JournalWriter
from inferfleet.worker.lanes import LaneAdvance
from inferfleet.worker.outcomes import (
    Defer,
    Drop,
    Finish,
    GiveUp,
    HandOver,
    Outcome,
    Park,
    PassOn,
    Postpone,
    Retry,
)
from inferfleet.worker.ports import Completion
from inferfleet.worker.slots import Slots
from inferfleet.worker.unreadable import EndedUnreadable, UnreadableMessages

logger = logging.getLogger(__name__)

_UNPUBLISHED = (
    ServiceUnreachableError,
    ServiceRefusedError,
    PublishUnconfirmedError,
    RefusedError,
    OSError,
)

REQUEUE_PAUSE_S = 1.0
"""A pause before a message is requeued because its outcome could not be carried out."""

LATER_CONTRACT_PAUSE_S = 10.0
"""A pause before a job of a later contract is requeued, in case no newer worker consumes from the queue."""

DEAD_LETTER_PAUSE_CAP_S = 30.0
"""The longest pause between two tries to write a dead letter."""


class Settlement:
    """Settles deliveries by the outcomes of their attempts."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        records: JobRecords,
        lanes: LaneAdvance,
        journal: JournalWriter,
        confirm_channel: ConfirmChannel,
        slots: Slots,
        hooks: Hooks,
        leaving: asyncio.Event,
        followers: Followers,
    ) -> None:
        self._settings = settings
        self._records = records
        self._lanes = lanes
        self._journal = journal
        self._confirm_channel = confirm_channel
        self._delayed = DelayedPublishing(confirm_channel, settings)
        self._slots = slots
        self._hooks = hooks
        self._leaving = leaving
        self._followers = followers
        self._unpublished = Outage()
        self._later_contract = Outage()
        self._unreadable = UnreadableMessages(
            settings=settings, records=records, lanes=lanes, followers=followers, hooks=hooks
        )

    async def settle(self, run: JobRun, delivery: Delivery, outcome: Outcome) -> Delivery | None:
        """Carry out the outcome of an attempt.

        Returns the delivery if it is not settled, because it carries the session's next turn now.
        """
        match outcome:
            case Finish(state, completion, failure):
                return await self._end(run, delivery, self._result(run, state, failure, completion))
            case Retry(failure, delay_s):
                entry = QueuedEntry(
                    at=self._records.clock.now(), attempt=run.attempt, reason="retry", failure=failure
                )
                written = await self._release(run, entry, refund=False, pause_s=delay_s)
                self._hooks.on_requeue(run, entry)
                stopped = written in {WriteStatus.CANCEL, WriteStatus.INTERRUPT}
                await self._keep(run, delivery, 0.0 if stopped else delay_s)
            case GiveUp(failure):
                # This may take long, and needs no slot in the engine.
                self._slots.leave(run)
                if await self._dead_letter(run, delivery, failure):
                    return await self._end(run, delivery, self._result(run, JobState.FAILED, failure))
            case HandOver(refund):
                entry = QueuedEntry(at=self._records.clock.now(), attempt=run.attempt, reason="handed_over")
                await self._release(run, entry, refund=refund)
                if not refund:
                    self._hooks.on_engine_death(run)
                self._hooks.on_requeue(run, entry)
                await delivery.requeue()
            case Defer(delay_s):
                await self._keep(run, delivery, delay_s)
            case Postpone(delay_s):
                await self._postpone(run, delivery, delay_s)
            case Drop():
                return await self._end_turn(run, delivery, followed=True)
            case Park(refund):
                return await self._park(run, delivery, refund=refund)
            case PassOn():
                return await self._pass_on(run, delivery)
            case _:
                assert_never(outcome)
        return None

    async def leave_to_newer(self, delivery: Delivery, error: LaterContractError) -> None:
        """Requeue a job of a later contract, so that a newer worker can take it. Logs only the first."""
        if self._later_contract.began():
            logger.warning("leaving jobs of a later contract to newer workers (%s)", error)
        await self._wait(delivery, LATER_CONTRACT_PAUSE_S)
        await delivery.requeue()

    async def dead_letter_unreadable(
        self, delivery: Delivery, failure: Failure, *, is_running: Callable[[str], bool]
    ) -> Delivery | None:
        """Dead-letter a message that is not a job, unchanged, and end the job that it names.

        Returns the delivery if it is not settled, because it carries a session's next turn now.
        """
        try:
            ended = await self._unreadable.end(delivery, failure, is_running=is_running)
        except (*_UNPUBLISHED, ConfigurationError) as error:
            logger.warning("cannot publish the jobs behind an unreadable message yet (%s)", error)
            ended = EndedUnreadable(REQUEUE_PAUSE_S)
        if ended.busy_s:
            await self._wait(delivery, ended.busy_s)
            await delivery.requeue()
        elif await self._dead_letter(None, delivery, failure):
            return _ack_or_carry(delivery, ended.job, ended.following)
        return None

    async def _end(self, run: JobRun, delivery: Delivery, result: Result) -> Delivery | None:
        """End the job. If another attempt has it, keep the message until that attempt has ended it."""
        if await self._commit(run, result):
            return await self._end_turn(run, delivery)
        await self._keep(run, delivery)
        return None

    async def _end_turn(self, run: JobRun, delivery: Delivery, *, followed: bool = False) -> Delivery | None:
        """Let the jobs run that follow this one, and the session's next turn, if there is one, and ack."""
        job, following = run.job, None
        if followed or job.id in self._records.followed:
            # This may take long, and needs no slot in the engine.
            self._slots.leave(run)
            try:
                await self._followers.ended(job.id)
            except (*_UNPUBLISHED, ConfigurationError) as error:
                # RabbitMQ delivers the ended job's message again: another chance to publish them.
                self._cannot("publish the jobs that follow another one", error)
                await self._keep(run, delivery, REQUEUE_PAUSE_S)
                return None
            self._can()
        if job.session_id is not None:
            try:
                following = await self._lanes.let_next_run(job, witness=delivery.witness or job)
            except _UNPUBLISHED as error:
                # RabbitMQ delivers the ended job's message again: another chance to publish the next turn.
                self._cannot("publish a session's next turn", error)
                await self._keep(run, delivery, REQUEUE_PAUSE_S)
                return None
            self._can()
        return _ack_or_carry(delivery, job, following)

    async def _park(self, run: JobRun, delivery: Delivery, *, refund: bool) -> Delivery | None:
        """Put a turn into its session's lane. This is needed if Redis lost the lane."""
        job = run.job
        entry = QueuedEntry(at=self._records.clock.now(), attempt=run.attempt, reason="handed_over")
        if await self._release(run, entry, refund=refund) is WriteStatus.FENCED:
            await self._keep(run, delivery)
            return None
        try:
            waits, first = await self._lanes.wait(job, reply_to=run.reply_to, witness=delivery.witness or job)
        except _UNPUBLISHED as error:
            self._cannot("park a turn", error)
            await self._keep(run, delivery, REQUEUE_PAUSE_S)
            return None
        self._can()
        if waits:
            return _ack_or_carry(delivery, job, first)
        await delivery.requeue()
        return None

    async def _pass_on(self, run: JobRun, delivery: Delivery) -> Delivery | None:
        """Publish a turn for any worker. If the queue is full, it goes on waiting here.

        Not left to RabbitMQ, which would lose it then: it moves messages without a confirm.
        """
        self._slots.leave(run)
        try:
            await self._lanes.pass_on(Payload(run.job, run.reply_to))
        except _UNPUBLISHED as error:
            logger.debug("a turn waits for a slot here (%s)", error)
            return delivery
        delivery.ack()
        return None

    async def _commit(self, run: JobRun, result: Result) -> bool:
        """Write the result. Return false if another attempt has the job."""
        pending = run.answer.take_pending(ended=True)
        written = await self._journal.write(
            run,
            lambda: self._records.finish(
                run.job, result, fence=run.fence, pending=pending, reply_to=run.reply_to
            ),
        )
        if written is WriteStatus.FENCED:
            # Another attempt generates the tokens that this attempt could not write.
            self._hooks.on_waste(run, pending.count, "fenced")
            return False
        self._hooks.on_end(run, result)
        return written is WriteStatus.OK

    async def _release(
        self, run: JobRun, entry: QueuedEntry, *, refund: bool, pause_s: float = 0.0
    ) -> WriteStatus:
        pending = run.answer.take_pending()
        return await self._journal.write(
            run,
            lambda: self._records.release(
                run.job.id, fence=run.fence, pending=pending, entry=entry, refund=refund, pause_s=pause_s
            ),
        )

    async def _keep(self, run: JobRun, delivery: Delivery, delay_s: float | None = None) -> None:
        """Try the message again later, by default after a lease.

        Meanwhile it stays unacked, so that it cannot be lost (decision 9).
        """
        if not self._leaving.is_set():
            self._slots.leave(run)
            with delivery.parked():
                await run.pause(self._settings.lease_s if delay_s is None else delay_s)
        await delivery.requeue()

    async def _postpone(self, run: JobRun, delivery: Delivery, delay_s: float) -> None:
        """Let RabbitMQ keep the message of a job that may not start yet."""
        message = job_message(run.job, reply_to=delivery.reply_to)
        due = time.monotonic() + delay_s
        try:
            await self._delayed.publish(message, pool=self._settings.pool, due=due)
        except (*_UNPUBLISHED, ConfigurationError) as error:
            self._cannot("publish a job that starts later", error)
            await self._keep(run, delivery, REQUEUE_PAUSE_S)
            return
        self._can()
        delivery.ack()

    async def _dead_letter(self, run: JobRun | None, delivery: Delivery, failure: Failure) -> bool:
        """Publish a dead letter, however long that takes. Return false if the message was requeued instead.

        While the broker does not accept the letter, the message waits here without taking prefetch capacity.
        In its queue it would be the first to be delivered again.
        """
        pause_s = REQUEUE_PAUSE_S
        while True:
            try:
                await self._publish_letter(delivery, failure, attempts=run.charged if run else 0)
                break
            except (*_UNPUBLISHED, ConfigurationError) as error:
                self._cannot("write a dead letter", error)
            await self._wait(delivery, pause_s)
            if self._leaving.is_set() or delivery.is_lost:
                await delivery.requeue()
                return False
            pause_s = min(2 * pause_s, DEAD_LETTER_PAUSE_CAP_S)
        self._can()
        self._hooks.on_dead_letter(run, delivery, failure)
        return True

    def _cannot(self, what: str, error: Exception) -> None:
        """Log once for an outage, not for each message every second, that nothing can be published."""
        if self._unpublished.began():
            logger.warning("cannot %s; retrying (%s)", what, error)

    def _can(self) -> None:
        if (lasted_s := self._unpublished.ended()) is not None:
            logger.warning("publishing works again after %.1f s", lasted_s)

    async def _publish_letter(self, delivery: Delivery, failure: Failure, *, attempts: int) -> None:
        channel, pool = self._confirm_channel, self._settings.pool
        letter = dead_letter(
            delivery,
            failure,
            attempts=attempts,
            worker_id=self._settings.worker_id,
            died_at=self._records.clock.now(),
            frame_max=await channel.frame_max(),
        )
        try:
            await channel.publish(names.DEAD_EXCHANGE, letter, routing_key=pool, mandatory=True)
        except UnroutableError:
            # Somebody deleted the queue or its binding.
            logger.warning("the dead-letter queue of pool %s is gone; declaring it again", pool)
            await channel.on_own_channel(partial(declare_dead_letters, pool=pool, settings=self._settings))
            await channel.publish(names.DEAD_EXCHANGE, letter, routing_key=pool, mandatory=True)

    async def _wait(self, delivery: Delivery, delay_s: float) -> None:
        """Let a message wait here, without prefetch capacity, for ``delay_s`` or until a drain begins."""
        with delivery.parked(), suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._leaving.wait()

    def _result(
        self, run: JobRun, state: JobState, failure: Failure | None, completion: Completion | None = None
    ) -> Result:
        generation_s = time.monotonic() - run.started
        total_s = max(0.0, (self._records.clock.now() - run.job.waits_since).total_seconds())
        if completion is None and run.answer.tokens:
            # Whatever ended the answer, its readers have seen this part of it.
            completion = Completion(response=run.cut_response(), usage=run.answer.usage)
        return Result(
            job_id=run.job.id,
            state=state,
            response=completion.response if completion else None,
            error=failure,
            usage=completion.usage if completion else run.answer.usage,
            timings=Timings(
                queue_wait_s=max(0.0, total_s - generation_s),
                time_to_first_token_s=run.first_token_s,
                generation_s=generation_s,
                total_s=total_s,
            ),
            worker_id=self._settings.worker_id,
            model_identity=run.model_identity,
            attempts=run.charged,
            citations=tuple(passage.citation for passage in run.job.passages or ()),
        )


def _ack_or_carry(delivery: Delivery, ended: Job | None, following: Payload | None) -> Delivery | None:
    """Ack the message, unless it has to carry the turn ``following``."""
    if ended is None or following is None:
        delivery.ack()
        return None
    return delivery.carrying(following.job, reply_to=following.reply_to, witness=delivery.witness or ended)
