"""Publishes a waiting job again: because its message was lost, or to let it overtake others."""

from __future__ import annotations

import os
from itertools import count

from inferfleet.schemas import Job
from inferfleet.schemas.message import trace_of
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.lost_messages import LostMessages, Marks, Revival
from inferfleet.wire.redis.session_lanes import SessionLanes


class Republishing:
    """Publishes jobs of this worker's pool again."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        lost_messages: LostMessages,
        session_lanes: SessionLanes,
        confirm_channel: ConfirmChannel,
    ) -> None:
        self._pool = settings.pool
        self._lost_messages = lost_messages
        self._session_lanes = session_lanes
        self._confirm_channel = confirm_channel
        self._name = f"{settings.worker_id}:{os.urandom(4).hex()}"
        self._calls = count()

    def stub(self, job_id: str, marks: Marks, *, priority: int) -> Job:
        """Make a job without its request."""
        return Job(id=job_id, pool=self._pool, priority=priority, body={}, session_id=marks.session or None)

    async def publish(self, stub: Job, marks: Marks, *, promoted_to: int | None = None) -> Revival:
        """Publish a job, unless it has progressed since its marks were read.

        A turn must be in front of its session. With ``promoted_to`` the message has this priority instead of
        the job's.

        Raises:
            RefusedError, PublishUnconfirmedError, ServiceUnreachableError, ServiceRefusedError: As
                ``ConfirmChannel.publish_job``, or Redis cannot be reached or refuses.

        """
        revived = await self._lost_messages.revive(
            stub.id,
            marks,
            priority=stub.priority,
            call=f"{self._name}:{next(self._calls)}",
            promoted=promoted_to is not None,
        )
        if revived.status is not Revival.REVIVED:
            return revived.status
        if stub.session_id is not None:
            # From now on its producer cannot take it back.
            await self._session_lanes.front(stub, take=stub.id)
        traced = stub.model_copy(update=trace_of(revived.body))
        message = job_message(traced, reply_to=revived.reply_to, body=revived.body)
        if promoted_to is not None:
            message.properties.priority = promoted_to
        await self._confirm_channel.publish_job(message, pool=self._pool)
        if stub.session_id is not None:
            await self._session_lanes.published(stub, again=True)
        return revived.status
