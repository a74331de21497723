"""Makes AMQP messages of jobs."""

from __future__ import annotations

from dataclasses import dataclass

import aio_pika
from pamqp.commands import Basic

from inferfleet.schemas import names
from inferfleet.schemas.job import Job
from inferfleet.schemas.message import message_body

_PERSISTENT = aio_pika.DeliveryMode.PERSISTENT.value


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish. Making aio-pika's own message object takes longer than all the rest."""

    body: bytes
    properties: Basic.Properties


def job_message(job: Job, *, reply_to: str, body: bytes | None = None) -> OutgoingMessage:
    """Wrap a job as the AMQP message that the contract describes. ``body`` is its body, if that is known."""
    return message_of(
        message_body(job) if body is None else body, job_id=job.id, priority=job.priority, reply_to=reply_to
    )


def message_of(body: bytes, *, job_id: str, priority: int, reply_to: str) -> OutgoingMessage:
    """Make the message of a job of its body."""
    return OutgoingMessage(
        body,
        Basic.Properties(
            message_id=job_id,
            priority=int(priority),
            message_type=names.JOB_MESSAGE_TYPE,
            content_type="application/json",
            delivery_mode=_PERSISTENT,
            reply_to=reply_to,
        ),
    )
