"""Moves the jobs that wait in a canary pool back to the pool to which they were submitted.

For each message: first the job's record, then a message in the other queue, and the ack last. A process that
dies in between leaves a job with two messages, of which the fence lets only one run.

What workers of the canary pool hold stays with them. Turns that wait in lanes have no message yet: when one
comes into the canary pool's queue, it is moved then.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_listing import JobFilter
from inferfleet.producer.routing import in_pool
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import Job
from inferfleet.schemas.message import read_job
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.rabbitmq.connection import Connection, open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors
from inferfleet.wire.rabbitmq.queue_reader import QueueReader, ReadMessage


@asynccontextmanager
async def moving(settings: ProducerSettings) -> AsyncGenerator[Connection]:
    """Open a connection on which jobs are moved.

    Raises:
        InferfleetError: RabbitMQ does not answer, or refuses the login.

    """
    name = f"{settings.client_id} (rollout)"
    async with open_amqp(settings.amqp_url, timeout_s=settings.connect_timeout_s, name=name) as connection:
        yield connection


async def move_back(
    fleet: Fleet, connection: Connection, settings: ProducerSettings, *, pool: str, canary: str
) -> int:
    """Move the jobs in the queue of ``canary`` that were submitted to ``pool``. Return how many were moved.

    Jobs that were submitted to the canary pool itself stay there.

    Raises:
        QueueFullError: The queue of ``pool`` is full; the rest stays in the canary pool.
        InferfleetError: A service does not answer.

    """
    moved = 0
    async with _reading(connection, settings, canary) as queue:
        for _ in range(queue.count):
            message = await queue.get()
            if message is None:
                break
            job = _job_of(message)
            if job is None or job.submitted_to != pool:
                # Without an ack, RabbitMQ requeues it in its place when the channel closes.
                continue
            await fleet.submission.move(in_pool(job, pool), from_pool=canary, reply_to=_reply_to(message))
            queue.ack(message)
            moved += 1
    return moved


async def any_left(fleet: Fleet, *, pool: str, canary: str) -> bool:
    """Return whether the canary pool has unfinished jobs that were submitted to ``pool``."""
    async for record in fleet.list_jobs(JobFilter(pool=canary)):
        if record.submitted_to == pool:
            return True
    return False


@asynccontextmanager
async def _reading(
    connection: Connection, settings: ProducerSettings, pool: str
) -> AsyncGenerator[QueueReader]:
    with connection_errors(settings.amqp_url):
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(job_queue(pool), passive=True)
        underlay = await channel.get_underlay_channel()
    try:
        yield QueueReader(connection.stream, underlay, queue)
    finally:
        connection.stream.leave(underlay.number)
        with connection_errors(settings.amqp_url):
            await channel.close()


def _job_of(message: ReadMessage) -> Job | None:
    headers: Mapping[str, Any] = message.properties.get("headers", {})
    try:
        return read_job(
            message.body, message_type=message.properties.get("message_type", ""), headers=headers
        )
    except InvalidJobError:
        # A worker dead-letters it.
        return None


def _reply_to(message: ReadMessage) -> str:
    reply_to: str = message.properties.get("reply_to", "")
    return reply_to
