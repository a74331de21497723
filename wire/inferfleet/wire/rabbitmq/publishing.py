"""A connection for publishing with confirms, opened when it is first needed and again after it broke.

It is used only for publishing: RabbitMQ blocks publishing connections when it runs out of memory or disk, and
workers must still be able to ack.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple, Protocol, TypeVar
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.commands import Basic

from inferfleet.schemas import names
from inferfleet.schemas.control import UrgentJob
from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    PublishUnconfirmedError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.wire.breaker import Breaker
from inferfleet.wire.outage import Outage
from inferfleet.wire.rabbitmq.confirms import (
    ChannelEndedError,
    Confirms,
    NackedError,
    RefusedError,
    UnroutableError,
)
from inferfleet.wire.rabbitmq.connection import Connection, open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors, refused
from inferfleet.wire.rabbitmq.frames import UNLIMITED_FRAME
from inferfleet.wire.rabbitmq.topology import declare_exchanges, is_away

T = TypeVar("T")


class Outgoing(Protocol):
    """A message to publish: an ``OutgoingMessage``, or aio-pika's ``Message``."""

    @property
    def body(self) -> bytes:
        """The body of the message."""
        ...

    @property
    def properties(self) -> Basic.Properties:
        """The properties of the message."""
        ...


class Depth(NamedTuple):
    """How many messages are ready in a queue, and how many consumers it has.

    A quorum queue without a leader has 0 of both.
    """

    ready: int
    consumers: int


class ConfirmChannel:
    """A channel in confirm mode that reconnects by itself. Safe for many concurrent tasks.

    If a connection turns out to be dead, it is replaced once before a call fails. When the broker refuses a
    message, it closes the channel for all messages in flight. Those are then published again one by one on a
    separate connection, where the broker refuses only the one that it meant. This may queue a message twice.

    Jobs of at least the priority ``announce_from`` are announced to the pool's workers.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        confirm_timeout_s: float,
        name: str,
        announce_from: int = names.PRIORITY_LEVELS,
    ) -> None:
        self._confirm_timeout_s = confirm_timeout_s
        self._announce_from = announce_from
        link = partial(_Link, url, connect_timeout_s=connect_timeout_s, answer_timeout_s=confirm_timeout_s)
        self._shared = link(name=name)
        self._lone = link(name=f"{name}, one by one")
        self.outage = self._shared.outage
        """The outages of RabbitMQ: each from a failed attempt to connect to the next successful one."""
        self._alone = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._queueing = 0
        """How many messages are being published one by one, or wait for that."""
        self._refused_bytes: int | None = None
        """The size of the smallest message that was too large. Others of that size are published alone."""
        self._under_way: dict[str, asyncio.Future[None] | None] = {}
        """The ids of messages in flight, each with the future for which others of the same id wait."""

    async def publish(
        self, exchange: str, message: Outgoing, *, routing_key: str = "", mandatory: bool = False
    ) -> bool:
        """Publish and wait for the confirm. Messages with the same id are published one after the other.

        Returns whether the message may be queued twice.

        Raises:
            UnroutableError: ``mandatory``, and no queue is bound for the routing key.
            RefusedError: The broker nacked the message. An earlier copy may be queued, if it is ``in_doubt``.
            ServiceRefusedError: The broker refuses the message. It is not queued.
            PublishUnconfirmedError: The connection broke, or no confirm came in time.
            ServiceUnreachableError: RabbitMQ cannot be reached. The message is not queued.

        """
        properties = message.properties
        # A returned message has only its id, which does not distinguish two of them.
        properties.message_id = message_id = properties.message_id or uuid4().hex
        while message_id in self._under_way:
            other = self._under_way[message_id] or asyncio.get_running_loop().create_future()
            self._under_way[message_id] = other
            await asyncio.wait([other])
        self._under_way[message_id] = None
        try:
            return await self._publish(
                _Publication(exchange, message.body, properties, routing_key, mandatory)
            )
        finally:
            if (awaited := self._under_way.pop(message_id)) is not None:
                awaited.set_result(None)

    async def publish_job(self, message: Outgoing, *, pool: str, warm: str = "") -> bool:
        """Publish a job to its pool. If somebody has deleted the binding of the pool's queue, bind it again.

        A turn that need not be announced goes to the queue of the worker with the routing key ``warm``, if
        there is one and it has room; it has no order in common with the pool's queue.

        Returns and raises the same as ``publish``.
        """
        if (message.properties.priority or 0) < self._announce_from:
            twice = False
            if warm:
                try:
                    return await self.publish(names.JOBS_EXCHANGE, message, routing_key=warm, mandatory=True)
                except NackedError as error:
                    twice = error.in_doubt
                except UnroutableError:
                    # That worker has gone.
                    pass
                except PublishUnconfirmedError as error:
                    if not isinstance(error.__cause__, UnroutableError):
                        raise
                    # Its queue has gone with the connection: RabbitMQ 3.10 closes that, if the queue expires.
                    twice = True
            return await self._publish_job(message, pool) or twice
        published, _ = await asyncio.gather(
            self._publish_job(message, pool), self._announce(message, pool), return_exceptions=True
        )
        if isinstance(published, BaseException):
            raise published
        return published

    async def _announce(self, message: Outgoing, pool: str) -> None:
        """Tell the pool's workers of an urgent job. If this fails, a full worker finds the job later."""
        if message.properties.message_id is None:
            return
        notice = UrgentJob(job_id=message.properties.message_id)
        announcement = aio_pika.Message(notice.model_dump_json().encode())
        with suppress(InferfleetError):
            # Its frames follow those of the job.
            await self.publish(names.JOBS_EXCHANGE, announcement, routing_key=names.announcements(pool))

    async def _publish_job(self, message: Outgoing, pool: str) -> bool:
        try:
            return await self.publish(names.JOBS_EXCHANGE, message, routing_key=pool, mandatory=True)
        except UnroutableError:
            if not await self._bind_again(names.JOBS_EXCHANGE, names.job_queue(pool), pool):
                raise
        return await self.publish(names.JOBS_EXCHANGE, message, routing_key=pool, mandatory=True)

    @property
    def circuit_open(self) -> bool:
        """Whether calls fail at once, because RabbitMQ has just failed several times."""
        return self._shared.breaker.open

    async def waiting(self, queue: str) -> int | None:
        """Count the messages that are ready in a queue; ``None`` if there is no such queue.

        Raises:
            ServiceUnreachableError: RabbitMQ cannot be reached, or the connection broke.
            ServiceRefusedError: The broker refuses to say.

        """
        depth = await self.depth(queue)
        return None if depth is None else depth.ready

    async def depth(self, queue: str) -> Depth | None:
        """Count the ready messages and the consumers of a queue; ``None`` if there is no such queue.

        Raises the same as ``waiting``.
        """

        async def ask(channel: AbstractChannel) -> Depth | ChannelNotFoundEntity:
            try:
                declared = (await channel.declare_queue(queue, passive=True)).declaration_result
            except ChannelNotFoundEntity as error:
                return error
            return Depth(declared.message_count or 0, declared.consumer_count or 0)

        # One at a time, because when a queue is full, many tasks ask at once.
        async with self._asking:
            found = await self.on_own_channel(ask)
        if isinstance(found, ChannelNotFoundEntity):
            _require_gone(queue, found)
            return None
        return found

    async def on_own_channel(self, work: Callable[[AbstractChannel], Awaitable[T]]) -> T:
        """Run a declaration or query on a channel that the broker may close without harm to any message.

        It may run twice: if the connection turns out to be dead, it is tried once more on a new one.

        Raises:
            ServiceUnreachableError: RabbitMQ cannot be reached, or the connection broke.
            ServiceRefusedError: The broker refuses.

        """

        async def on(connection: Connection) -> T:
            async with connection.channel(publisher_confirms=False) as channel:
                return await work(channel)

        return await self._shared.on_connection(on)

    async def _bind_again(self, exchange: str, queue: str, routing_key: str) -> bool:
        """Bind a queue whose binding or exchange somebody has deleted. Return false if there is no queue."""

        async def bind(channel: AbstractChannel) -> ChannelNotFoundEntity | None:
            await declare_exchanges(channel)
            try:
                declared = await channel.declare_queue(queue, passive=True)
            except ChannelNotFoundEntity as error:
                return error
            await declared.bind(exchange, routing_key=routing_key)
            return None

        error = await self.on_own_channel(bind)
        if error is not None:
            _require_gone(queue, error)
        return error is None

    async def frame_max(self) -> int:
        """Return the largest frame size that the broker accepts, in bytes.

        Raises:
            ServiceUnreachableError: RabbitMQ cannot be reached.
            ServiceRefusedError: The broker refuses.

        """

        async def ask(connection: Connection) -> int:
            return connection.frame_max or UNLIMITED_FRAME

        return await self._shared.on_connection(ask)

    async def aclose(self) -> None:
        """Close all connections, and open none any more."""
        async with AsyncExitStack() as stack:
            for link in (self._shared, self._lone):
                link.retired = True
                stack.push_async_callback(link.aclose)

    async def _publish(self, publication: _Publication) -> bool:
        sent = False
        broken = False
        refusal: BaseException | None = None
        alone = self._refused_bytes is not None and len(publication.body) >= self._refused_bytes
        while True:
            try:
                if alone:
                    await self._publish_alone(publication)
                else:
                    await self._send(self._shared, publication)
                return sent
            except ChannelEndedError as error:
                if error.refusal is None:
                    if broken:
                        raise self._unconfirmed(publication, error, sent=sent or error.sent) from error
                    broken = True
                elif alone:
                    raise self._verdict(publication, error.refusal, sent=sent, before=refusal) from error
                else:
                    alone, refusal = True, error.refusal
                sent = sent or error.sent
            except RefusedError as error:
                # The exchange is missing, so the message was not routed the first time either.
                if sent and not isinstance(refusal, ChannelNotFoundEntity):
                    if isinstance(error, NackedError):
                        # A queue whose process dies may end the connection first, and then nack.
                        error.in_doubt = True
                        raise
                    raise self._unconfirmed(publication, error, sent=True) from error
                raise
            except (ServiceUnreachableError, ServiceRefusedError, ConfigurationError) as error:
                if sent:
                    raise self._unconfirmed(publication, error, sent=True) from error
                raise

    async def _publish_alone(self, publication: _Publication) -> None:
        self._queueing += 1
        try:
            async with self._alone:
                await self._send(self._lone, publication)
        finally:
            self._queueing -= 1
            if not self._queueing:
                await self._lone.aclose()

    async def _send(self, link: _Link, publication: _Publication) -> None:
        confirms = await link.confirms()
        try:
            await confirms.publish(
                publication.exchange,
                publication.body,
                publication.properties,
                routing_key=publication.routing_key,
                mandatory=publication.mandatory,
            )
        except NackedError:
            link.leave(confirms)
            raise
        except TimeoutError as error:
            if link.abort_if_silent():
                raise ChannelEndedError(error, refusal=None, sent=True) from error
            raise PublishUnconfirmedError(
                f"RabbitMQ did not confirm message {publication.properties.message_id} within "
                f"{self._confirm_timeout_s:g} s: it may or may not be queued. "
                "A broker that is out of memory or disk blocks publishers; look at its alarms"
            ) from error

    def _verdict(
        self, publication: _Publication, refusal: BaseException, *, sent: bool, before: BaseException | None
    ) -> Exception:
        """Decide what it means that the broker closed a channel on which only this message was published.

        The message was not queued then. Nor was it queued before, if the earlier channel had been closed for
        the same kind of reason: either because of this message, or because of an earlier one, after which the
        broker ignores all others.
        """
        if isinstance(refusal, ChannelPreconditionFailed) and "message size" in str(refusal):
            size = len(publication.body)
            self._refused_bytes = size if self._refused_bytes is None else min(size, self._refused_bytes)
        if sent and type(before) is not type(refusal):
            return self._unconfirmed(publication, refusal, sent=True)
        return refused(
            f"RabbitMQ refuses message {publication.properties.message_id} ({len(publication.body):,} bytes)",
            refusal,
        )

    def _unconfirmed(self, publication: _Publication, error: BaseException, *, sent: bool) -> Exception:
        if not sent:
            return ServiceUnreachableError(f"the connection to RabbitMQ broke ({error})")
        return PublishUnconfirmedError(
            "the connection to RabbitMQ broke before it confirmed message "
            f"{publication.properties.message_id} ({error}): it may or may not be queued. Submitting again "
            "with the same idempotency key is safe"
        )


def _require_gone(queue: str, error: ChannelNotFoundEntity) -> None:
    """Raise ``ServiceUnreachableError`` if the queue exists, on a node that is down: it may be back soon."""
    if is_away(error):
        raise ServiceUnreachableError(f"RabbitMQ has the queue {queue} on a node that is down") from error


class _Publication(NamedTuple):
    """One message, with its exchange and routing key."""

    exchange: str
    body: bytes
    properties: Basic.Properties
    routing_key: str
    mandatory: bool


class _Link:
    """A connection with a channel in confirm mode, each opened when first needed and again after it ended."""

    def __init__(self, url: str, *, connect_timeout_s: float, answer_timeout_s: float, name: str) -> None:
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._name = name
        self._stack = AsyncExitStack()
        self.breaker = Breaker("RabbitMQ", ServiceUnreachableError)
        self.outage = Outage()
        self._connecting = _Attempts()
        self._opening = _Attempts()
        self._connection: Connection | None = None
        self._channel: AbstractChannel | None = None
        self._confirms: Confirms | None = None
        """The confirms of the channel."""
        self._left: list[tuple[AbstractChannel, Confirms]] = []
        """Channels on which nothing more is published, to be closed once their messages are settled."""
        self.retired = False
        """Whether the link must open no connection any more."""

    async def confirms(self) -> Confirms:
        """Return the confirms of an open channel, with declared exchanges. Raises as ``on_connection``."""
        if self._confirms is not None and self._confirms.open:
            return self._confirms
        async with self._opening.turn():
            if self._confirms is None or not self._confirms.open:
                self._confirms = await self.on_connection(self._open)
            return self._confirms

    async def on_connection(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run something on the connection; once more on a new one if the connection turns out to be dead.

        Raises:
            ServiceUnreachableError: RabbitMQ cannot be reached, or the connection broke again.
            ServiceRefusedError: The broker refuses.
            ConfigurationError: An exchange or queue exists with other arguments.

        """
        try:
            return await self._on(await self._connected(), work)
        except _DeadConnectionError:
            return await self._on(await self._connected(), work)

    def leave(self, confirms: Confirms) -> None:
        """Publish on a new channel from now on, because this one has nacked a message.

        RabbitMQ looks up a quorum queue's leader when a channel first publishes to it. A channel that finds a
        leader whose node has just died nacks everything for as long as that node is away.
        """
        if self._confirms is confirms and self._channel is not None:
            self._left.append((self._channel, confirms))
            self._channel = self._confirms = None

    def abort_if_silent(self) -> bool:
        """Abort the connection if the broker has missed a heartbeat. Return whether it has."""
        silent = self._connection is not None and self._connection.stream.silent
        if silent and self._connection is not None:
            self._connection.stream.abort()
        return silent

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        async with self._connecting.lock:
            self._connection = self._channel = self._confirms = None
            self._left.clear()
            await self._stack.aclose()

    async def _open(self, connection: Connection) -> Confirms:
        settled = [left for left in self._left if left[1].settled]
        self._left = [left for left in self._left if left not in settled]
        for channel, confirms in settled:
            if confirms.open:
                await channel.close()
        async with connection.channel(publisher_confirms=False) as declaring:
            await declare_exchanges(declaring)
        self._channel = await connection.channel()
        underlay = await self._channel.get_underlay_channel()
        return Confirms(
            connection.stream,
            underlay,
            frame_max=connection.frame_max,
            timeout_s=self._answer_timeout_s,
        )

    async def _on(self, connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                with connection_errors(self._url):
                    return await work(connection)
        except TimeoutError as error:
            kind = _DeadConnectionError if self.abort_if_silent() else ServiceUnreachableError
            raise kind(f"RabbitMQ did not answer within {self._answer_timeout_s:g} s") from error
        except ServiceUnreachableError as error:
            connection.stream.abort()
            raise _DeadConnectionError(*error.args) from error

    async def _connected(self) -> Connection:
        async with self._connecting.turn():
            if self.retired:
                raise ServiceUnreachableError("this client was closed, and its connections with it")
            if self._connection is None or not self._connection.alive:
                self._connection = None
                self._left.clear()
                await self._stack.aclose()
                try:
                    with self.breaker.guarded():
                        self._connection = await self._stack.enter_async_context(
                            open_amqp(self._url, timeout_s=self._connect_timeout_s, name=self._name)
                        )
                except ServiceUnreachableError:
                    self.outage.began()
                    raise
                self.outage.ended()
            return self._connection


class _Attempts:
    """Makes attempts one at a time. Whoever waited for one that failed fails with it, and makes none."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._failure: Exception | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Make an attempt in the block."""
        waits = self.lock.locked()
        async with self.lock:
            if waits and self._failure is not None:
                # Without the traces of all who waited before.
                raise self._failure.with_traceback(None)
            self._failure = None
            try:
                yield
            except Exception as failure:
                self._failure = failure
                raise


class _DeadConnectionError(ServiceUnreachableError):
    """An open connection turned out to be dead."""
