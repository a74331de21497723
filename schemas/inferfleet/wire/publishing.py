"""A connection for publishing: opened when first needed, and again after it broke; every message confirmed.

Used for publishing only, because RabbitMQ blocks publishing connections when it runs out of memory or
disk, and what is consumed must still be acknowledged then.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Protocol
from uuid import uuid4

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity
from pamqp.commands import Basic

from inferfleet.schemas.errors import PublishUnconfirmedError, ServiceUnreachableError
from inferfleet.wire.amqp import Connection, connection_errors, declare_exchanges, open_amqp
from inferfleet.wire.breaker import Breaker
from inferfleet.wire.confirms import Confirms


class Outgoing(Protocol):
    """What can be published: an ``OutgoingMessage``, or aio-pika's ``Message``."""

    @property
    def body(self) -> bytes:
        """What the message carries."""
        ...

    @property
    def properties(self) -> Basic.Properties:
        """What it says of itself."""
        ...


class ConfirmChannel:
    """A channel in confirm mode that heals itself. Safe for many tasks at once."""

    def __init__(self, url: str, *, connect_timeout_s: float, confirm_timeout_s: float, name: str) -> None:
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._confirm_timeout_s = confirm_timeout_s
        self._name = name
        self._stack = AsyncExitStack()
        self._breaker = Breaker("RabbitMQ", ServiceUnreachableError)
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None
        self._channel: AbstractChannel | None = None
        self._confirms: Confirms | None = None
        """What is published on that channel."""
        self._under_way: dict[str, asyncio.Future[None]] = {}

    async def channel(self) -> AbstractChannel:
        """The open channel, with the exchanges declared.

        Raises:
            ServiceUnreachableError: There is no connection to be had.

        """
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        async with self._opening:
            if self._channel is not None and not self._channel.is_closed:
                return self._channel
            await self._stack.aclose()
            with self._breaker.guarded():
                self._connection = connection = await self._stack.enter_async_context(
                    open_amqp(self._url, timeout_s=self._connect_timeout_s, name=self._name)
                )
            with connection_errors(self._url):
                channel = await connection.channel()
                await declare_exchanges(channel)
                self._confirms = Confirms(
                    connection.stream, await channel.get_underlay_channel(), frame_max=connection.frame_max
                )
            self._channel = channel
            return channel

    async def publish(
        self, exchange: str, message: Outgoing, *, routing_key: str = "", mandatory: bool = False
    ) -> None:
        """Publish and wait for the confirm. Messages with the same id go one after the other.

        Raises:
            UnroutableError: ``mandatory``, and no queue is bound for the routing key.
            RefusedError: The queue refused the message.
            PublishUnconfirmedError: The connection broke, or no confirm came in time.
            ServiceUnreachableError: There is no connection to be had.

        """
        properties = message.properties
        # A returned message says its id, and not which of two it is.
        properties.message_id = message_id = properties.message_id or uuid4().hex
        while (other := self._under_way.get(message_id)) is not None:
            await asyncio.wait([other])
        self._under_way[message_id] = ended = asyncio.get_running_loop().create_future()
        try:
            await self._publish(exchange, message.body, properties, routing_key, mandatory)
        finally:
            del self._under_way[message_id]
            ended.set_result(None)

    async def queue_exists(self, name: str) -> bool:
        """Ask the broker for a queue.

        Raises:
            ServiceUnreachableError: There is no connection to be had, or it broke.

        """
        await self.channel()
        if self._connection is None:
            raise ServiceUnreachableError("the connection to RabbitMQ was closed")
        try:
            # On a channel of its own: the broker closes it when there is no such queue.
            async with self._connection.channel(publisher_confirms=False) as channel:
                await channel.declare_queue(name, passive=True)
        except ChannelNotFoundEntity:
            return False
        except (AMQPError, ChannelInvalidStateError, ConnectionError) as error:
            raise ServiceUnreachableError(f"the connection to RabbitMQ broke ({error})") from error
        return True

    async def _publish(
        self, exchange: str, body: bytes, properties: Basic.Properties, routing_key: str, mandatory: bool
    ) -> None:
        await self.channel()
        if self._confirms is None:
            raise ServiceUnreachableError("the connection to RabbitMQ was closed")
        try:
            async with asyncio.timeout(self._confirm_timeout_s):
                await self._confirms.publish(
                    exchange, body, properties, routing_key=routing_key, mandatory=mandatory
                )
        except TimeoutError as error:
            raise PublishUnconfirmedError(
                f"RabbitMQ did not confirm message {properties.message_id} within "
                f"{self._confirm_timeout_s:g} s: it may be queued or not. "
                "A broker that is out of memory or disk blocks publishers; look at its alarms"
            ) from error
        except ConnectionError as error:
            raise PublishUnconfirmedError(
                f"the connection to RabbitMQ broke before it confirmed message {properties.message_id}: "
                "it may be queued or not. Submitting again with the same idempotency key is safe"
            ) from error

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        await self._stack.aclose()
