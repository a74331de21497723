"""The worker's side of session lanes: publishes the next turn, and parks a turn that came too early.

A worker holds the message of the ended turn, the witness, which RabbitMQ delivers again until the next turn
is safe. ``inferfleet.wire.redis.session_lanes`` has a diagram of the lane; ``inferfleet.producer.lanes`` is
the producer's side.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from inferfleet.schemas import Failure, FailureCode, Job
from inferfleet.schemas.job import OnBusy
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.confirms import RefusedError, UnroutableError
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.followers import Followers
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_lanes import EnterStatus, Payload, SessionLanes
from inferfleet.worker.log import about

logger = logging.getLogger(__name__)


class LaneAdvance:
    """Moves turns from lanes to the queue and back."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        records: JobRecords,
        session_lanes: SessionLanes,
        confirm_channel: ConfirmChannel,
        followers: Followers,
    ) -> None:
        self._settings = settings
        self._records = records
        self._session_lanes = session_lanes
        self._confirm_channel = confirm_channel
        self._followers = followers

    async def let_next_run(self, ended: Job, *, witness: Job) -> Payload | None:
        """End a turn and publish the next one, if there is one. The caller repeats this until it returns.

        Returns the next turn if its queue is full or gone. Then this worker has to run it: the message of
        ``witness`` carries it, and stays unacked until it has ended, too.

        Raises:
            ServiceUnreachableError, PublishUnconfirmedError, RefusedError: The next turn is not published.

        """
        over = ended
        # One message carries all following turns, until one of them is in the queue.
        while (following := await self._session_lanes.advance(over, witness=witness)) is not None:
            try:
                return await self._let_run(following, witness)
            except UnroutableError:
                # The turn's pool is gone, so no worker would ever get the turn: end it here.
                if not await self._fail(following):
                    raise
                over = following.job
        return None

    async def wait(self, job: Job, *, reply_to: str, witness: Job) -> tuple[bool, Payload | None]:
        """Put a turn into its session's lane. False if it does not wait there, but may run.

        Also returns a turn that has to run first, if that has no message and its queue is full. The message
        of ``witness`` carries it, as in ``let_next_run``.

        Raises:
            ServiceUnreachableError, PublishUnconfirmedError, RefusedError: The turn's place is not safe yet.

        """
        waiting = Payload(job.model_copy(update={"on_busy": OnBusy.ENQUEUE}), reply_to)
        entered = await self._session_lanes.enter(waiting, admitted=True, witness=witness)
        if entered.status is EnterStatus.RUN and witness.id != job.id:
            # That turn has no message.
            return True, await self._let_run(waiting, witness)
        if entered.again is not None:
            return True, await self._let_run(entered.again, witness)
        if entered.status is EnterStatus.WAIT and entered.unpublished:
            await self._session_lanes.end_lost(entered.owner)
            front = job.model_copy(update={"id": entered.owner})
            return True, await self.let_next_run(front, witness=witness)
        return entered.status is EnterStatus.WAIT, None

    async def _let_run(self, turn: Payload, witness: Job) -> Payload | None:
        """Publish the turn that owns its session. Return it if the message of the witness has to carry it."""
        try:
            await self._publish(turn)
        except RefusedError:
            # It was admitted long ago, and if it waited for room, it would block the turns that make room. If
            # somebody has deleted this worker's queue, it comes back in a moment.
            if turn.job.pool != self._settings.pool:
                raise
            await self._session_lanes.published(turn.job, witness=witness)
            return turn
        return None

    async def _publish(self, payload: Payload) -> None:
        message = job_message(payload.job, reply_to=payload.reply_to)
        await self._confirm_channel.publish_job(message, pool=payload.job.pool, warm=payload.warm)
        await self._session_lanes.published(payload.job)

    async def pass_on(self, payload: Payload) -> None:
        """Publish a turn for any worker, because this one has no slot for it.

        Raises:
            RefusedError, PublishUnconfirmedError, ServiceUnreachableError, ServiceRefusedError: As
                ``ConfirmChannel.publish_job``.

        """
        await self._publish(replace(payload, warm=""))

    async def _fail(self, payload: Payload) -> bool:
        """Commit that no worker can get the job, and end those that follow it. False if a worker has it."""
        job = payload.job
        message = f"no queue is bound for the pool {job.pool!r} any more"
        failed = await self._records.fail(
            job,
            Failure(code=FailureCode.MODEL_UNAVAILABLE, message=message),
            worker_id=self._settings.worker_id,
            lease_s=self._settings.lease_s,
            reply_to=payload.reply_to,
        )
        if failed.result is not None:
            logger.warning("a session's next turn cannot run: %s", message, extra=about(job))
        if failed.busy_s:
            return False
        await self._followers.ended(job.id)
        return True
