"""The worker's side of RabbitMQ: a subscription that delivers jobs, and the settling of each delivery.

A subscription is one connection with its consumers. When it breaks, the broker delivers all unsettled
messages again; the worker opens another subscription, and jobs that run here keep running. This module does
not decide what to do with a delivery.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import aiormq.abc
from aiormq.exceptions import ChannelAccessRefused

from inferfleet.schemas import Job
from inferfleet.schemas.message import trace_headers
from inferfleet.schemas.names import warm_queue
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors, refused
from inferfleet.wire.rabbitmq.frames import (
    DELIVER,
    GET_EMPTY,
    GET_OK,
    METHOD,
    Contents,
    Properties,
    delivery,
    get,
)
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.stream import FrameStream
from inferfleet.wire.tasks import cancel_and_wait
from inferfleet.worker.acknowledger import BROKEN, Acknowledger
from inferfleet.worker.topology import Topology, not_here

logger = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 5.0
"""How long the broker may take to stop deliveries. An unreachable broker must not use up a drain's time."""


WARM = "warm"
"""The tag of the consumer of the worker's own queue."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the broker delivered it, and the subscription on which to settle it.

    The message of an ended turn may carry the next turn of its session (decision 16). Then the delivery is of
    that next turn, and ``witness`` is the job whose message it is. A ``warm`` one comes from the worker's own
    queue.
    """

    subscription: Subscription
    tag: int
    body: bytes
    message_id: str | None
    reply_to: str
    headers: Mapping[str, Any]
    properties: Properties = field(default_factory=dict[str, Any])
    witness: Job | None = None
    warm: bool = False

    def carrying(self, job: Job, *, reply_to: str, witness: Job) -> Delivery:
        """Return the same message as the message of another job: it is acked when that job has ended."""
        message = job_message(job, reply_to=reply_to)
        return replace(
            self,
            body=message.body,
            message_id=job.id,
            reply_to=reply_to,
            headers=trace_headers(job),
            properties={name: value for name, value in message.properties if value is not None},
            witness=None if witness.id == job.id else witness,
        )

    def ack(self) -> None:
        """Ack the message with the next batch. On a broken subscription this does nothing."""
        self.subscription.acknowledger.ack(self.tag)

    @property
    def is_lost(self) -> bool:
        """Whether the subscription is broken, so that the broker has delivered the message again, or will."""
        return self.subscription.is_closed

    def waiting_for_slot(self) -> AbstractContextManager[None]:
        """Keep a message that carries another job from taking prefetch capacity while the block runs.

        The ack that was not sent would have let a more urgent job come from the queue. A warm message takes
        none anyway.
        """
        return nullcontext() if self.witness is None or self.warm else self.subscription.carries()

    @contextmanager
    def parked(self) -> Generator[None]:
        """Keep the message from taking prefetch capacity while the block runs."""
        self.subscription.parked += not self.warm
        try:
            yield
        finally:
            self.subscription.parked -= not self.warm

    async def requeue(self) -> None:
        """Put the message into the pool's queue. On a broken subscription this does nothing.

        One that came from there gets its old place back, a warm one the last place.
        """
        await self.subscription.acknowledger.requeue(self.tag, dead_letter=self.warm)


class Subscription:
    """One connection to the broker with consumers on a pool's queue, and one on the worker's ``warm_queue``.

    ``leave`` keeps new turns out of the latter.
    """

    def __init__(
        self,
        channel: aiormq.abc.AbstractChannel,
        stream: FrameStream,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        warm_queue: str | None = None,
        leave: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._channel = channel
        self._stream = stream
        self._queue = queue
        self._on_delivery = on_delivery
        self._warm_queue = warm_queue
        self._leave = leave
        self._consumes_warm = False
        self._consumers: dict[str, int] = {}
        """How many deliveries each consumer may hold, oldest consumer first."""
        self._takers: dict[int, str] = {}
        """The consumer of each held delivery."""
        self._limit = 0
        self._backlog = False
        """Whether the queue had more messages than the worker may hold, as far as is known."""
        self._changing = asyncio.Lock()
        self._cancelled = asyncio.Event()
        self._beyond: set[int] = set()
        """The held deliveries that do not count for the prefetch: taken beyond it, or warm."""
        self._taking: asyncio.Future[Delivery | None] | None = None
        self.acknowledger = Acknowledger(channel, stream)
        self.parked = 0
        """Deliveries that only wait here, and take no prefetch capacity."""
        self.carrying = 0
        """Deliveries that carry a turn that waits for a slot. They take no prefetch capacity either, so that
        the queue keeps moving; lanes limit their number."""
        self.warm_places = 0
        """How many fewer deliveries the queue's consumers may hold, because warm turns run instead."""
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)
        self._deliveries = Contents(DELIVER, self._receive)
        self._taken = Contents(GET_OK, self._receive_taken)
        cast("asyncio.Future[None]", channel.closing).add_done_callback(lambda _: self._took(None))
        stream.take(channel.number, self._take_frame)

    @property
    def held(self) -> int:
        """How many deliveries are not settled yet."""
        return self.acknowledger.unsettled

    @property
    def _prefetched(self) -> int:
        """How many held deliveries take prefetch capacity."""
        self._beyond = set(filter(self.acknowledger.holds, self._beyond))
        return self.held - len(self._beyond)

    @contextmanager
    def carries(self) -> Generator[None]:
        """Count one more delivery that takes no prefetch capacity while the block runs."""
        self.carrying += 1
        try:
            yield
        finally:
            self.carrying -= 1

    @property
    def refilling(self) -> bool:
        """Whether a delivery is due: the queue had more jobs than the worker may hold, and there is room."""
        if not self._backlog:
            return False
        return self._prefetched < self._limit

    def ran_dry(self) -> None:
        """Expect no delivery until the subscription is full again."""
        self._backlog = False

    @property
    def is_closed(self) -> bool:
        """Whether the channel is closed."""
        return self._channel.closing.done()

    async def prefetch(self, limit: int, *, warm: int = 0) -> None:
        """Let the broker deliver messages until ``limit`` are unsettled. Call it again to change the limit.

        Beside them, it delivers up to ``warm`` turns from the worker's own queue, where no other worker could
        take them either; this number only changes between 0 and another.

        RabbitMQ fixes the prefetch of a consumer at its start. So a higher limit adds a consumer for the
        difference, and a lower limit cancels the newest consumers. Settling a delivery of a cancelled
        consumer frees no room; to fill that room, call this again with the same limit. When nothing is held,
        one consumer replaces several, so that whoever counts consumers counts workers.

        Raises:
            ServiceRefusedError: The permission to read the queue is missing.

        """
        async with self._changing:
            try:
                await self._prefetch_warm(warm)
                several = len(self._consumers) > 1 and not self._prefetched
                while self._consumers and (several or sum(self._consumers.values()) > limit):
                    await self._channel.basic_cancel(next(reversed(self._consumers)))
                    self._consumers.popitem()
                missing = limit - sum(self._consumers.values()) - self._orphans()
                if missing > 0:
                    # Noted before the request, because the broker delivers before it answers.
                    self._limit = sum(self._consumers.values()) + missing
                    await self._channel.basic_qos(prefetch_count=missing)
                    answer = await self._channel.basic_consume(self._queue, not_here)
                    self._consumers[str(answer.consumer_tag)] = missing
                self._limit = sum(self._consumers.values())
            except ChannelAccessRefused as error:
                raise refused("RabbitMQ does not let this worker consume jobs", error) from error
            except BROKEN as error:
                logger.info("the connection broke before consuming began (%s)", error)

    async def _prefetch_warm(self, limit: int) -> None:
        if self._warm_queue is None or self._consumes_warm == bool(limit):
            return
        self._consumes_warm = bool(limit)
        if not limit:
            await self._channel.basic_cancel(WARM)
            return
        await self._channel.basic_qos(prefetch_count=limit)
        await self._channel.basic_consume(self._warm_queue, not_here, consumer_tag=WARM)

    async def take_urgent(self, least: int) -> bool:
        """Take the next message of the queue beyond the prefetch, if its priority is at least ``least``.

        Returns whether it was; a less urgent message is requeued. Only one call may run at a time. Do
        not cancel it: this worker would keep the message, and not process it.
        """
        if self.is_closed:
            return False
        self._taking = asyncio.get_running_loop().create_future()
        self._stream.write(self._channel.number, get(self._channel.number, self._queue))
        found = await self._taking
        if found is None:
            return False
        if found.properties.get("priority", 0) < least:
            await found.requeue()
            return False
        self._on_delivery(found)
        return True

    def _orphans(self) -> int:
        """Return how many held deliveries belong to cancelled consumers."""
        holds = self.acknowledger.holds
        self._takers = {tag: taker for tag, taker in self._takers.items() if holds(tag)}
        return sum(taker not in self._consumers for taker in self._takers.values())

    def _take_frame(self, kind: int, payload: bytes) -> bool:
        if self._deliveries.take(kind, payload) or self._taken.take(kind, payload):
            return True
        if kind == METHOD and payload.startswith(GET_EMPTY):
            self._took(None)
            return True
        return False

    def _receive(self, method: bytes, properties: Properties, body: bytes) -> None:
        tag, consumer = delivery(method)
        self.acknowledger.delivered(tag)
        if consumer == WARM:
            self._beyond.add(tag)
            self._on_delivery(replace(self._delivery(tag, properties, body), warm=True))
            return
        self._takers[tag] = consumer
        if self._prefetched >= self._limit:
            self._backlog = True
        self._on_delivery(self._delivery(tag, properties, body))

    def _receive_taken(self, method: bytes, properties: Properties, body: bytes) -> None:
        tag = int.from_bytes(method[4:12], "big")
        self.acknowledger.delivered(tag)
        self._beyond.add(tag)
        self._took(self._delivery(tag, properties, body))

    def _took(self, taken: Delivery | None) -> None:
        if self._taking is not None and not self._taking.done():
            self._taking.set_result(taken)

    def _delivery(self, tag: int, properties: Properties, body: bytes) -> Delivery:
        return Delivery(
            subscription=self,
            tag=tag,
            body=body,
            message_id=properties.get("message_id"),
            reply_to=properties.get("reply_to", ""),
            headers=properties.get("headers", {}),
            properties=properties,
        )

    async def wait_closed(self) -> None:
        """Wait until the connection or the channel closes, or the broker cancels a consumer.

        The broker cancels a consumer when its queue is deleted, or moves to another node of a cluster.
        """
        cancelled = asyncio.create_task(self._cancelled.wait())
        ends: set[asyncio.Future[Any]] = {cast("asyncio.Future[None]", self._channel.closing), cancelled}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()

    async def stop_consuming(self) -> None:
        """Stop deliveries. Unsettled deliveries stay with this worker."""
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_S), self._changing:
                await self._prefetch_warm(0)
                while self._consumers:
                    await self._channel.basic_cancel(self._consumers.popitem()[0])
                if self._leave is not None:
                    await self._leave()
        except TimeoutError:
            # This closes the channel, and the broker requeues all unsettled messages.
            self._stream.leave(self._channel.number)
            logger.warning("RabbitMQ does not answer; giving up the connection")
        except BROKEN as error:
            logger.info("lost the connection to RabbitMQ; nothing more is delivered (%s)", error)

    def _on_cancel(self, _: object) -> None:
        logger.warning("RabbitMQ cancelled the consumer: its queue was deleted or moved")
        self._cancelled.set()


@asynccontextmanager
async def subscribe(
    settings: WorkerSettings,
    *,
    on_delivery: Callable[[Delivery], None],
    on_control: Callable[[bytes], None],
) -> AsyncGenerator[Subscription]:
    """Connect, declare the pool and listen for commands; consuming starts later.

    Raises:
        ServiceUnreachableError: The broker does not answer, refuses the login, or another worker has the id.
        ServiceRefusedError: The broker refuses a request.
        ConfigurationError: The pool's queue exists with other arguments.

    """
    async with open_amqp(
        settings.amqp_url, timeout_s=settings.connect_timeout_s, name=f"{settings.worker_id} (consume)"
    ) as connection:
        topology = Topology(connection, settings, on_control)
        queue = await topology.declare()
        with connection_errors(settings.amqp_url):
            channel = await connection.channel(publisher_confirms=False)
            subscription = Subscription(
                await channel.get_underlay_channel(),
                connection.stream,
                queue,
                on_delivery,
                warm_queue=warm_queue(settings.pool, settings.worker_id) if settings.warm_wait_s else None,
                leave=topology.leave if settings.warm_wait_s else None,
            )
        watching = asyncio.create_task(topology.watch())
        try:
            yield subscription
        finally:
            await cancel_and_wait(watching)
            subscription.acknowledger.flush()
