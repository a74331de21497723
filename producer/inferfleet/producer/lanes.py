"""The producer's side of session lanes: a turn is published, or waits in its lane with a turn in front.

A producer holds no message that RabbitMQ would deliver again. So it returns only once it has seen that the
turn in front is queued or runs. ``inferfleet.wire.redis.session_lanes`` has a diagram of the lane;
``inferfleet.worker.lanes`` is the worker's side.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Protocol, assert_never

from inferfleet.producer.publisher import Publisher
from inferfleet.schemas.errors import (
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
    SessionBusyError,
    SessionTooLargeError,
    UnknownPoolError,
)
from inferfleet.schemas.job import Job, JobState, OnBusy
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.job_reading import Standing
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_lanes import EnterResult, EnterStatus, Payload, SessionLanes

logger = logging.getLogger(__name__)

FRONT_POLL_S = 0.02
"""How often a producer whose turn enters a lane checks whether the turn in front is queued or runs."""


class Cancel(Protocol):
    """``Submission.cancel``."""

    async def __call__(self, job_id: str, *, keep: bool) -> JobState:
        """Cancel a job; with ``keep``, its partial answer stays in its session."""
        ...


class LaneEntry:
    """Puts the turns of one client into their lanes, and makes sure that the turns in front of them run."""

    def __init__(
        self,
        *,
        settings: ProducerSettings,
        records: JobRecords,
        session_lanes: SessionLanes,
        publisher: Publisher,
        cancel: Cancel,
    ) -> None:
        self._settings = settings
        self._records = records
        self._session_lanes = session_lanes
        self._publisher = publisher
        self._cancel = cancel

    async def take_turn(self, job: Job) -> None:
        """Publish the turn if its session is free; otherwise queue it in the lane, as ``on_busy`` says."""
        stop = job.on_busy in {OnBusy.INTERRUPT, OnBusy.ROLLBACK}
        looked_after = ""
        while True:
            with uncertain_without_redis():
                entered = await self._session_lanes.enter(Payload(job, self._settings.client_id))
            match entered.status:
                case EnterStatus.RUN:
                    await self.publish(Payload(job, self._settings.client_id, entered.warm))
                    return
                case EnterStatus.WAIT:
                    if await self._wait_in_lane(job, entered, stop=stop):
                        return
                    stop = False
                case EnterStatus.BUSY:
                    # The turn may have ended, and the process that was to publish the next one may have died.
                    if looked_after == entered.owner or not await self._may_be_stuck(entered):
                        raise SessionBusyError(
                            f"session {job.session_id!r} has an unfinished turn, job {entered.owner}: wait, "
                            "or submit with on_busy=enqueue, interrupt or rollback"
                        )
                    looked_after = entered.owner
                    await self._until_front_goes_on(job, entered)
                case EnterStatus.BEGUN:
                    # Another caller with the same key has submitted it.
                    return
                case EnterStatus.TOO_LARGE:
                    raise SessionTooLargeError(
                        f"session {job.session_id!r}, with the turns that wait, would exceed "
                        f"{self._settings.max_session_bytes:,} bytes (INFERFLEET_MAX_SESSION_BYTES): wait "
                        "for them, fork the session from an earlier turn, or start a new one"
                    )
                case EnterStatus.FULL:
                    raise QueueFullError(
                        f"as many turns of pool {job.pool!r} wait for their sessions as its queue may hold "
                        "jobs (INFERFLEET_QUEUE_MAX_LENGTH); try again later"
                    )
                case EnterStatus.MISSING:
                    raise _forgotten(job)
                case _:
                    assert_never(entered.status)
            held = await self._records.held(job.id)
            if held.state is None:
                raise _forgotten(job)
            if not held.waits:
                return

    async def publish(self, payload: Payload, *, again: bool = False) -> None:
        """Publish the turn in front; with ``again``, it has had a message before."""
        await self._publisher.publish(payload.job, reply_to=payload.reply_to, warm=payload.warm)
        # No error if this fails: the worker that gets the message does the same.
        with suppress(ServiceUnreachableError, ServiceRefusedError):
            await self._session_lanes.published(payload.job, again=again)

    async def pass_over(self, ended: Job) -> None:
        """Let the turn behind an ended one run."""
        following = await self._session_lanes.advance(ended)
        if following is None:
            return
        try:
            await self.publish(following)
        except UnknownPoolError as error:
            # The next producer that checks the lane finds the turn in front, and ends it.
            logger.warning("cannot publish the turn behind job %s (%s)", ended.id, error)

    async def _wait_in_lane(self, job: Job, entered: EnterResult, *, stop: bool) -> bool:
        """Make sure that the job's turn will come. Return false if it has no place in the lane any more."""
        await self._publisher.require_pool(job.pool)
        if stop:
            await self._stop_turn(job, entered.owner, keep=job.on_busy is OnBusy.INTERRUPT)
        if stop or entered.unpublished or await self._may_be_stuck(entered):
            return await self._until_front_goes_on(job, entered)
        return True

    async def _may_be_stuck(self, entered: EnterResult) -> bool:
        """Return whether no process is known to bring the turn in front to its end."""
        if entered.again is not None:
            return True
        standing = await self._records.standing(entered.owner)
        return standing.over or standing is Standing.STALLED

    async def _until_front_goes_on(self, job: Job, entered: EnterResult) -> bool:
        """Wait until the turn in front is queued or runs, and repair what prevents that.

        The turn may never have been published, may have lost its message when Redis lost its last second, or
        may have ended without a successor. Without a repair this job would be accepted and wait for ever.
        Returns whether the job has its place in the lane.
        """
        grace_s = 0.0 if entered.again else self._settings.turn_publish_grace_s
        awaited, deadline = "", 0.0
        while True:
            front = await self._session_lanes.front(job)
            if not front.owner or (front.owner == job.id and not front.unpublished):
                return front.placed
            standing = await self._records.standing(front.owner)
            stalled = standing is Standing.STALLED and not front.revived
            if not (front.unpublished or standing.over or stalled):
                return front.placed
            if front.owner != awaited:
                awaited, deadline = front.owner, time.monotonic() + (0.0 if stalled else grace_s)
            if time.monotonic() < deadline:
                await asyncio.sleep(FRONT_POLL_S)
            elif standing.over:
                await self.pass_over(job.model_copy(update={"id": front.owner}))
            else:
                try:
                    await self._publish_front(job, front.owner, again=stalled)
                except QueueFullError:
                    if not stalled:
                        raise
                    # Most likely the queue has the turn's message.
                    return front.placed

    async def _publish_front(self, job: Job, owner: str, *, again: bool) -> None:
        """Publish the turn in front, whose producer has died; with ``again``, it has had a message before."""
        front = await self._session_lanes.front(job, take=owner)
        if front.owner != owner:
            return
        payload = Payload(job, self._settings.client_id) if owner == job.id else front.payload
        try:
            if payload is not None:
                await self.publish(payload, again=again)
            elif again:
                # The turn came from another AMQP client, which has published it.
                await self._session_lanes.published(job.model_copy(update={"id": owner}), again=True)
            else:
                await self._session_lanes.end_lost(owner)
                await self.pass_over(job.model_copy(update={"id": owner}))
        except UnknownPoolError:
            if owner == job.id:
                raise
            # No worker can run the turn, and its producer was not told that it was accepted.
            await self._stop_turn(job, owner, keep=False)

    async def _stop_turn(self, job: Job, owner: str, *, keep: bool) -> None:
        """Stop the turn in front. A turn that never ran ends at once, without waiting for its message."""
        try:
            over = (await self._cancel(owner, keep=keep)).terminal
        except JobNotFoundError:
            # The turn's producer took it back meanwhile.
            over = True
        if over:
            await self.pass_over(job.model_copy(update={"id": owner}))


@contextmanager
def uncertain_without_redis() -> Generator[None]:
    """Turn an outage of Redis into ``PublishUnconfirmedError``: the turn may or may not be in its lane."""
    try:
        yield
    except ServiceUnreachableError as error:
        raise PublishUnconfirmedError(
            f"Redis went away while a turn asked for its place, so it may or may not run ({error}). "
            "Submitting again with the same idempotency key is safe"
        ) from error


def _forgotten(job: Job) -> PublishUnconfirmedError:
    return PublishUnconfirmedError(
        f"Redis lost the record of job {job.id} while it was submitted: it may run or not. "
        "Submitting again with the same idempotency key is safe"
    )
