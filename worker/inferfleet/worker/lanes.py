"""The lanes of sessions, as a worker sees them: let the next turn run, and put a turn where it can wait."""

from __future__ import annotations

import logging
from functools import partial

from inferfleet.schemas import Failure, FailureCode, Job, names
from inferfleet.schemas.job import OnBusy
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.amqp import job_message
from inferfleet.wire.confirms import UnroutableError
from inferfleet.wire.publishing import ConfirmChannel
from inferfleet.wire.records import JobRecords
from inferfleet.wire.sessions import Entry, Payload, Sessions

logger = logging.getLogger(__name__)


class Lanes:
    """Moves turns from lanes to the queue and back."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        records: JobRecords,
        sessions: Sessions,
        confirm_channel: ConfirmChannel,
    ) -> None:
        self._settings = settings
        self._records = records
        self._sessions = sessions
        self._confirm_channel = confirm_channel

    async def let_next_run(self, ended: Job) -> None:
        """End a turn and publish the next one, if there is one. To be repeated until it returns.

        Raises:
            ServiceUnreachableError, PublishUnconfirmedError, RefusedError: The next turn is not published.

        """
        over = ended
        # The message of ``ended`` vouches for all that follows, until one of them is in the queue.
        while (following := await self._sessions.advance(over, witness=ended)) is not None:
            try:
                await self._publish(following)
            except UnroutableError:
                # Its pool is gone. No worker will ever see it, so it ends here.
                await self._fail(following)
                over = following.job
            else:
                return

    async def wait(self, job: Job, *, reply_to: str) -> bool:
        """Put a turn into its session's lane. False if it is its turn by now.

        Raises:
            ServiceUnreachableError, PublishUnconfirmedError, RefusedError: Its place is not safe yet.

        """
        waiting = job.model_copy(update={"on_busy": OnBusy.ENQUEUE})
        entered = await self._sessions.enter(Payload(waiting, reply_to), admitted=True)
        if entered.again is not None:
            await self._publish(entered.again)
        return entered.entry is Entry.WAIT

    async def _publish(self, payload: Payload) -> None:
        pool = payload.job.pool
        publish = partial(
            self._confirm_channel.publish,
            names.JOBS_EXCHANGE,
            job_message(payload.job, reply_to=payload.reply_to),
            routing_key=pool,
            mandatory=True,
        )
        try:
            await publish()
        except UnroutableError:
            if not await self._confirm_channel.bind_again(names.JOBS_EXCHANGE, names.job_queue(pool), pool):
                raise
            await publish()
        await self._sessions.published(payload.job)

    async def _fail(self, payload: Payload) -> None:
        """Commit that no worker can have the job."""
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
