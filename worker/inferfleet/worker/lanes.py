"""The lanes of sessions, as a worker sees them: let the next turn run, and put a turn where it can wait.

A worker has the message of the turn that ended, the witness, which comes again until the next turn is safe.
The lane is drawn in ``inferfleet.wire.redis.session_lanes``; the other side is ``inferfleet.producer.lanes``.
"""

from __future__ import annotations

import logging

from inferfleet.schemas import Failure, FailureCode, Job
from inferfleet.schemas.job import OnBusy
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.confirms import RefusedError, UnroutableError
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_lanes import EnterStatus, Payload, SessionLanes

logger = logging.getLogger(__name__)


class Lanes:
    """Moves turns from lanes to the queue and back."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        records: JobRecords,
        session_lanes: SessionLanes,
        confirm_channel: ConfirmChannel,
    ) -> None:
        self._settings = settings
        self._records = records
        self._session_lanes = session_lanes
        self._confirm_channel = confirm_channel

    async def let_next_run(self, ended: Job, *, witness: Job) -> Payload | None:
        """End a turn and publish the next one, if there is one. To be repeated until it returns.

        Returns the next turn if its queue is full, and it is this worker's to run: the message of ``witness``
        vouches for it, and stays unacked until it has ended, too.

        Raises:
            ServiceUnreachableError, PublishUnconfirmedError, RefusedError: The next turn is not published.

        """
        over = ended
        # One message vouches for all that follows, until one of them is in the queue.
        while (following := await self._session_lanes.advance(over, witness=witness)) is not None:
            try:
                return await self._let_run(following, witness)
            except UnroutableError:
                # Its pool is gone. No worker will ever see it, so it ends here.
                if not await self._fail(following):
                    raise
                over = following.job
        return None

    async def wait(self, job: Job, *, reply_to: str, witness: Job) -> tuple[bool, Payload | None]:
        """Put a turn into its session's lane. False if it does not wait there: it may have its turn by now.

        Returns also a turn that has to run first, if it has no message and its queue is full. That of
        ``witness`` vouches for it, as in ``let_next_run``.

        Raises:
            ServiceUnreachableError, PublishUnconfirmedError, RefusedError: Its place is not safe yet.

        """
        waiting = Payload(job.model_copy(update={"on_busy": OnBusy.ENQUEUE}), reply_to)
        entered = await self._session_lanes.enter(waiting, admitted=True, witness=witness)
        if entered.status is EnterStatus.RUN and witness.id != job.id:
            # It has no message of its own.
            return True, await self._let_run(waiting, witness)
        if entered.again is not None:
            return True, await self._let_run(entered.again, witness)
        if entered.status is EnterStatus.WAIT and entered.unpublished:
            await self._session_lanes.end_lost(entered.owner)
            front = job.model_copy(update={"id": entered.owner})
            return True, await self.let_next_run(front, witness=witness)
        return entered.status is EnterStatus.WAIT, None

    async def _let_run(self, turn: Payload, witness: Job) -> Payload | None:
        """Publish the turn that owns its session. Returns it if it has to run under the witness' message."""
        try:
            await self._publish(turn)
        except UnroutableError:
            raise
        except RefusedError:
            # It was admitted long ago, and waiting for room it would keep those from moving that make room.
            if turn.job.pool != self._settings.pool:
                raise
            await self._session_lanes.published(turn.job, witness=witness)
            return turn
        return None

    async def _publish(self, payload: Payload) -> None:
        message = job_message(payload.job, reply_to=payload.reply_to)
        await self._confirm_channel.publish_job(message, pool=payload.job.pool)
        await self._session_lanes.published(payload.job)

    async def _fail(self, payload: Payload) -> bool:
        """Commit that no worker can have the job. False if one has it."""
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
            logger.warning("a session's next turn cannot run: %s", message, extra={"job_id": job.id})
        return not failed.busy_s
