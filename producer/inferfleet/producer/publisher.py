"""Publishes jobs and commands, with errors that a caller can act on."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from aio_pika import Message
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from inferfleet.producer.job_making import check_pool
from inferfleet.schemas.control import Control
from inferfleet.schemas.errors import (
    ConfigurationError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.job import Job
from inferfleet.schemas.names import CONTROL_EXCHANGE, job_queue, run_queue
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.home import Home
from inferfleet.wire.rabbitmq.confirms import NackedError, RefusedError, UnroutableError
from inferfleet.wire.rabbitmq.delays import DelayedPublishing
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.rabbitmq.run_queue import declare_run_queue, run_message
from inferfleet.wire.rabbitmq.topology import declare_pool

NACK_PATIENCE_S = 5.0
"""How long a nacked job is published again, even without patience: about the time to elect a new leader."""

NACK_PAUSE_S = 1.0
"""The longest pause between two tries to publish a nacked job."""

FULL_AFTER_NACKS = 3
"""A queue that holds jobs and nacks this many in a row counts as full, even if it is below our own limit."""

_NOT_SENT = (ServiceUnreachableError, ServiceRefusedError, ConfigurationError)
"""Why a message was not sent this time. The file with the URL may be missing while somebody replaces it."""


class Publisher:
    """Publishes the messages of one client. Safe for many concurrent tasks."""

    def __init__(self, settings: ProducerSettings, *, home: Home | None = None) -> None:
        self._settings = settings
        self._home = home or Home()
        self._known_pools: set[str] = set()
        self._confirm_channel = ConfirmChannel(
            settings.amqp_url,
            connect_timeout_s=settings.connect_timeout_s,
            confirm_timeout_s=settings.publish_timeout_s,
            name=f"{settings.client_id} (publish)",
            announce_from=settings.preempt_from,
        )
        self._delayed = DelayedPublishing(self._confirm_channel, settings)
        self.outage = self._confirm_channel.outage
        """The outages of RabbitMQ."""

    async def publish(
        self,
        job: Job,
        *,
        reply_to: str | None = None,
        body: bytes | None = None,
        warm: str = "",
        delay_s: float = 0.0,
    ) -> bool:
        """Publish a job and wait for the broker's confirm. ``reply_to`` is this client by default.

        ``body`` is the body of its message, if that is known; ``warm`` as in ``ConfirmChannel.publish_job``.
        RabbitMQ keeps the message for the whole seconds of ``delay_s`` before it puts it into the pool's
        queue.

        Returns whether the job may be queued twice.

        Raises:
            UnknownPoolError: The pool has no queue.
            QueueFullError: The queue is full.
            ServiceRefusedError: The broker refuses this job: it is too large, or a permission is missing.
            PublishUnconfirmedError: The connection broke, the queue has no leader, or no confirm came.
            ServiceUnreachableError: RabbitMQ cannot be reached.

        """
        message = job_message(job, reply_to=reply_to or self._settings.client_id, body=body)
        send = partial(self._confirm_channel.publish_job, message, pool=job.pool)
        if delayed := delay_s >= 1:
            await self.require_pool(job.pool)
            due = time.monotonic() + delay_s
            send = partial(self._delayed.publish, message, pool=job.pool, due=due)
        # A turn of a session is not published later.
        publish_job = self._confirm_channel.publish_job
        first = partial(publish_job, message, pool=job.pool, warm=warm) if warm else send
        try:
            return await self._publish(first)
        except NackedError as nack:
            await self._publish_nacked(job, send, in_doubt=nack.in_doubt, delayed=delayed)
            # A queue that nacked without being full may have kept the message.
            return True
        except UnroutableError as error:
            raise _unknown_pool(job.pool) from error

    async def require_pool(self, pool: str) -> None:
        """Make sure that a pool has a queue, for a job that is published later.

        Asks the broker once for each pool.

        Raises:
            UnknownPoolError: The pool has no queue.
            ServiceUnreachableError: RabbitMQ cannot be reached.

        """
        self._home.check()
        if pool in self._known_pools:
            return
        async for attempt in self._patiently():
            with attempt:
                if await self._confirm_channel.waiting(job_queue(pool)) is None:
                    raise _unknown_pool(pool)
        self._known_pools.add(pool)

    async def waiting(self, queue: str) -> int | None:
        """Count the messages that wait in a queue; ``None`` if there is no such queue.

        Raises:
            ServiceUnreachableError: RabbitMQ cannot be reached.
            ServiceRefusedError: The broker refuses to say.

        """
        self._home.check()
        async for attempt in self._patiently():
            with attempt:
                return await self._confirm_channel.waiting(queue)
        raise AssertionError("tenacity returns or raises")

    async def send(self, order: Control) -> None:
        """Send a command to all workers.

        Raises:
            PublishUnconfirmedError: Some workers may not have got the command.
            ServiceRefusedError: The broker refuses the message.
            ServiceUnreachableError: RabbitMQ cannot be reached.

        """
        try:
            message = Message(order.model_dump_json().encode())
            await self._publish(partial(self._confirm_channel.publish, CONTROL_EXCHANGE, message))
        except RefusedError as error:
            raise PublishUnconfirmedError(
                f"RabbitMQ did not confirm a command to the workers ({error})"
            ) from error

    async def publish_run(self, run_id: str, *, queue: str, priority: int) -> None:
        """Publish a run of an agent that can go on. If it has no queue, declare that.

        Raises:
            ConfigurationError: The queue exists with other arguments.
            PublishUnconfirmedError: The message may or may not be queued.
            ServiceRefusedError: The broker refuses the message.
            ServiceUnreachableError: RabbitMQ cannot be reached.

        """
        self._home.check()
        async for attempt in self._patiently():
            with attempt:
                try:
                    await self._send_run(run_id, queue, priority)
                except UnroutableError:
                    await self._confirm_channel.on_own_channel(
                        partial(declare_run_queue, queue=queue, settings=self._settings)
                    )
                    await self._send_run(run_id, queue, priority)

    async def _send_run(self, run_id: str, queue: str, priority: int) -> None:
        try:
            await self._confirm_channel.publish(
                "", run_message(run_id, priority=priority), routing_key=run_queue(queue), mandatory=True
            )
        except NackedError as error:
            raise PublishUnconfirmedError(
                f"RabbitMQ did not confirm run {run_id} ({error}): it may or may not be queued"
            ) from error

    async def declare_pool(self, pool: str) -> None:
        """Declare the pool's queues.

        Raises:
            InvalidJobError: No pool may have this name.
            ConfigurationError: The pool's queue exists with other arguments.
            ServiceUnreachableError: RabbitMQ cannot be reached.
            ServiceRefusedError: The broker refuses, for example because a permission is missing.

        """
        self._home.check()
        check_pool(pool)
        await self._confirm_channel.on_own_channel(partial(declare_pool, pool=pool, settings=self._settings))

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        await self._confirm_channel.aclose()

    async def _publish_nacked(
        self, job: Job, send: Callable[[], Awaitable[bool]], *, in_doubt: bool, delayed: bool
    ) -> None:
        """Publish a nacked job again, unless its queue is full.

        A queue nacks when it is at a limit, ours or that of a policy. It also nacks when its leader or its
        process has just died; then it accepts the same message a moment later. Until a quorum queue has a new
        leader, it seems to be empty. ``in_doubt`` says that the job may be queued already. The queues for
        ``delayed`` jobs have no limit of ours.
        """
        limit, nacks, full_nacks = self._settings.queue_max_length, 1, 0
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(NackedError),
                wait=wait_random_exponential(multiplier=0.05, max=NACK_PAUSE_S),
                stop=stop_after_delay(max(NACK_PATIENCE_S, self._settings.patience_s)),
                reraise=True,
            ):
                with attempt:
                    waiting = None
                    with suppress(*_NOT_SENT):
                        if not delayed:
                            waiting = await self._confirm_channel.waiting(job_queue(job.pool))
                    full_nacks = full_nacks + 1 if waiting else 0
                    at_limit = limit is not None and waiting is not None and waiting >= limit
                    if waiting and (full_nacks > FULL_AFTER_NACKS or at_limit):
                        raise _full(job, waiting, in_doubt=in_doubt)
                    nacks += 1
                    try:
                        await self._publish(send)
                    except NackedError as error:
                        in_doubt |= error.in_doubt
                        raise
                    except (*_NOT_SENT, UnroutableError) as error:
                        # The queue that nacked the message before may have kept it.
                        raise _unconfirmed(job, f"RabbitMQ nacked it before ({error})") from error
        except NackedError as error:
            why = f"its queue nacked it {nacks} times and is not full, so that its leader may be away"
            raise _unconfirmed(job, why) from error

    async def _publish(self, send: Callable[[], Awaitable[bool]]) -> bool:
        """Publish a message by a call of ``send``. With patience, repeat it after an outage.

        Returns whether the message may be queued twice.
        """
        self._home.check()
        # A repetition may publish a job twice. That does no harm: the fence lets only one run. But once the
        # broker may have the message, a later refusal does not mean that it has not.
        unconfirmed: PublishUnconfirmedError | None = None
        try:
            # Outside the retry loop, which would cost a tenth of a submission.
            return await send()
        except PublishUnconfirmedError as error:
            if not self._settings.patience_s:
                raise
            unconfirmed = error
        except ServiceUnreachableError:
            if not self._settings.patience_s:
                raise
        twice = unconfirmed is not None
        async for attempt in self._patiently():
            with attempt:
                try:
                    twice |= await send()
                except PublishUnconfirmedError as error:
                    unconfirmed, twice = error, True
                    raise
                except NackedError as error:
                    error.in_doubt |= unconfirmed is not None
                    raise
                except (*_NOT_SENT, RefusedError) as error:
                    if unconfirmed is not None:
                        raise unconfirmed from error
                    raise
        return twice

    def _patiently(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type((ServiceUnreachableError, PublishUnconfirmedError)),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            stop=stop_after_delay(self._settings.patience_s),
            reraise=True,
        )


def _full(job: Job, waiting: int, *, in_doubt: bool) -> QueueFullError | PublishUnconfirmedError:
    full = f"the queue of pool {job.pool!r} is full with {count_of(waiting, 'job')}"
    if in_doubt:
        return _unconfirmed(job, f"an earlier try was not confirmed, and {full}")
    return QueueFullError(f"{full} (INFERFLEET_QUEUE_MAX_LENGTH, or a policy at the broker); try again later")


def _unconfirmed(job: Job, why: str) -> PublishUnconfirmedError:
    return PublishUnconfirmedError(
        f"job {job.id} may or may not be queued: {why}. Submitting it again with the same idempotency key "
        "is safe"
    )


def _unknown_pool(pool: str) -> UnknownPoolError:
    return UnknownPoolError(
        f"no queue is bound for the pool {pool!r}: start a worker for it, "
        f"`inferfleet worker --pool {pool}`, or declare it, `inferfleet pool declare {pool}`"
    )
