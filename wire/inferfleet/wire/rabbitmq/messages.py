"""Makes AMQP messages of jobs."""

from __future__ import annotations

from dataclasses import dataclass

import aio_pika
from pamqp.commands import Basic

from inferfleet.schemas import names
from inferfleet.schemas.job import Job
from inferfleet.schemas.message import message_body, trace_headers

_PERSISTENT = aio_pika.DeliveryMode.PERSISTENT.value


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish. Making aio-pika's own message object takes longer than all the rest."""

    body: bytes
    properties: Basic.Properties


def job_message(job: Job, *, reply_to: str, body: bytes | None = None) -> OutgoingMessage:
    """Wrap a job as the AMQP message that the contract describes. ``body`` is its body, if that is known."""
    return OutgoingMessage(
        message_body(job) if body is None else body,
        Basic.Properties(
            message_id=job.id,
            priority=int(job.priority),
            message_type=names.JOB_MESSAGE_TYPE,
            content_type="application/json",
            delivery_mode=_PERSISTENT,
            reply_to=reply_to,
            headers={**trace_headers(job)} or None,
        ),
    )
