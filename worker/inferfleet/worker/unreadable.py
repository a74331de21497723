"""Ends the job that an unreadable message names.

The broker may have confirmed the job to its publisher, a client may wait for it, and turns of its session may
wait behind it. So this module ends the job as far as it can be identified, under a fence like any other end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from inferfleet.schemas import Failure, Job
from inferfleet.schemas.message import derived_id, known_of
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.followers import Followers
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_lanes import Payload
from inferfleet.worker.broker import Delivery
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.lanes import LaneAdvance

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndedUnreadable:
    """The result of ending a message's job.

    If ``busy_s`` is not 0, try again after so many seconds: another worker runs a job whose message this may
    be. The message has to carry ``following``, the turn behind its ``job``, if there is one.
    """

    busy_s: float = 0.0
    job: Job | None = None
    following: Payload | None = None


class UnreadableMessages:
    """Handles messages that are not jobs, and ends the jobs that they name."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        records: JobRecords,
        lanes: LaneAdvance,
        followers: Followers,
        hooks: Hooks,
    ) -> None:
        self._settings = settings
        self._records = records
        self._lanes = lanes
        self._followers = followers
        self._hooks = hooks

    async def end(
        self, delivery: Delivery, failure: Failure, *, is_running: Callable[[str], bool]
    ) -> EndedUnreadable:
        """End the message's job as failed, tell its client, and let the jobs run that follow it, and its
        session's next turn.

        A job with the same id stays as it is if it has ended, or if it belongs to another client, because any
        message may repeat an id.

        Raises:
            InferfleetError, RefusedError: The next turn, or a job that follows, is not published.

        """
        known = known_of(delivery.body, delivery.message_id)
        ids = list(known.ids)
        if delivery.reply_to:
            # Somebody waits for an answer, whatever id the message has.
            ids.append(derived_id(delivery.body, delivery.message_id))
        for job_id in ids:
            belonging = await self._records.belonging(job_id)
            reply_to, session_id = belonging or (delivery.reply_to, "")
            if is_running(job_id) or reply_to != delivery.reply_to:
                logger.warning(
                    "an unreadable message has the id of another client's job", extra={"job_id": job_id}
                )
                continue
            job = Job(
                id=job_id,
                pool=self._settings.pool,
                body={},
                session_id=session_id or known.session_id,
                submitted_at=self._records.clock.now(),
            )
            failed = await self._records.fail(
                job,
                failure,
                worker_id=self._settings.worker_id,
                lease_s=self._settings.lease_s,
                reply_to=reply_to,
            )
            if failed.busy_s:
                return EndedUnreadable(failed.busy_s)
            if failed.result is not None:
                self._hooks.on_end(None, failed.result)
            await self._followers.ended(job_id)
            if job.session_id is not None:
                return EndedUnreadable(job=job, following=await self._lanes.let_next_run(job, witness=job))
            break
        return EndedUnreadable()
