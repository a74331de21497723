"""Declares the exchanges and queues that a worker needs, when it subscribes and regularly afterwards.

An operator, a policy or a script may delete any of them while workers run. RabbitMQ only notifies a worker of
a cancelled consumer, so the worker declares all of them again from time to time. This does not change those
that exist.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import aiormq.abc
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelLockedResource

from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.schemas.names import (
    CONTROL_EXCHANGE,
    JOBS_EXCHANGE,
    announcements,
    control_queue,
    warm_queue,
    warm_turns,
)
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.connection import Connection
from inferfleet.wire.rabbitmq.errors import connection_errors
from inferfleet.wire.rabbitmq.frames import DELIVER, Contents, Properties
from inferfleet.wire.rabbitmq.topology import declare_pool, declare_warm_queue, exclusive_arguments

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 15.0
"""How often exchanges and queues that may vanish without notice are declared again."""


class Topology:
    """The exchanges and queues of a subscription. The worker gets commands from the first declaration on."""

    def __init__(
        self, connection: Connection, settings: WorkerSettings, on_control: Callable[[bytes], None]
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._on_control = on_control
        self._listening: AbstractChannel | None = None
        """The channel on which commands arrive."""
        self._hears = False
        """Whether the command queue has our consumer."""
        self._deaf = asyncio.Event()
        """Set when the command queue has lost our consumer."""
        self._left = False
        """Whether the worker takes no more turns into its own queue."""

    async def declare(self) -> str:
        """Declare the pool and the worker's own queues. Return the name of the pool's queue.

        Raises:
            ServiceUnreachableError: The broker does not answer, or another worker has the id.
            ServiceRefusedError: The broker refuses a declaration.
            ConfigurationError: A queue exists with other arguments.

        """
        with connection_errors(self._settings.amqp_url):
            # On a separate channel, because the broker closes a channel at every refusal.
            async with self._connection.channel(publisher_confirms=False) as channel:
                queue = await declare_pool(channel, self._settings.pool, self._settings)
                # Before its own queue, because then no other worker has the id.
                await self._listen()
                if self._settings.warm_wait_s and not self._left:
                    await declare_warm_queue(channel, self._settings)
        return queue.name

    async def leave(self) -> None:
        """Let the next turns of the sessions that ran here go to the pool's queue at once.

        The worker's own queue stays, because turns may lie in it. RabbitMQ moves them, and deletes it later.
        """
        self._left = True
        pool, worker_id = self._settings.pool, self._settings.worker_id
        async with self._connection.channel(publisher_confirms=False) as channel:
            own = await channel.get_underlay_channel()
            await own.queue_unbind(
                warm_queue(pool, worker_id), JOBS_EXCHANGE, routing_key=warm_turns(pool, worker_id)
            )

    async def watch(self) -> None:
        """Declare lost exchanges and queues again, until cancelled."""
        complaint = ""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._deaf.wait()
            self._deaf.clear()
            try:
                await self.declare()
                complaint = ""
            except Exception as error:
                # A later check may succeed. A broken subscription is reported elsewhere.
                if str(error) != complaint and not self._connection.stream.closing:
                    complaint = str(error)
                    logger.warning("cannot declare the pool's queues again (%s)", complaint)

    async def _listen(self) -> None:
        if self._listening is None or self._listening.is_closed:
            self._listening = await self._connection.channel(publisher_confirms=False)
            channel = await self._listening.get_underlay_channel()
            channel.on_consumer_cancel_callbacks.add(self._on_cancel)
            channel.closing.add_done_callback(self._on_closing)
            # Parsed here, because aiormq closes the connection at properties that it cannot parse.
            self._connection.stream.take(channel.number, Contents(DELIVER, self._hear).take)
            self._hears = False
        worker_id = self._settings.worker_id
        try:
            queue = await self._listening.declare_queue(
                control_queue(worker_id), exclusive=True, auto_delete=True, arguments=exclusive_arguments()
            )
        except ChannelLockedResource as error:
            # After a network cut, RabbitMQ takes some time to notice that the old connection is dead.
            raise ServiceUnreachableError(
                f"another worker named {worker_id!r} is connected, or was until a moment ago; "
                "wait a minute, or choose another --worker-id"
            ) from error
        await queue.bind(CONTROL_EXCHANGE)
        await queue.bind(JOBS_EXCHANGE, routing_key=announcements(self._settings.pool))
        if not self._hears:
            channel = await self._listening.get_underlay_channel()
            # Before the answer, because the cancellation of the consumer may come with it.
            self._hears = True
            try:
                await channel.basic_consume(queue.name, not_here, no_ack=True)
            except BaseException:
                self._hears = False
                raise

    def _hear(self, _: bytes, __: Properties, body: bytes) -> None:
        self._on_control(body)

    def _on_cancel(self, _: object) -> None:
        logger.warning("this worker's control queue was deleted; declaring it again")
        self._hears = False
        self._deaf.set()

    def _on_closing(self, _: object) -> None:
        self._hears = False
        self._deaf.set()


async def not_here(message: aiormq.abc.DeliveredMessage) -> None:
    """Be the placeholder consumer of a channel whose deliveries are read from the stream."""
    raise AssertionError("deliveries are taken from the stream")
