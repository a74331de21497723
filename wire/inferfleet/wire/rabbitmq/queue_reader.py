"""Takes messages from a queue one by one, whatever their properties are.

aiormq closes the connection at a message whose properties it cannot parse, so nobody could read the messages
behind it. Therefore this module reads the frames of these messages itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import aiormq.abc
from aio_pika.abc import AbstractQueue

from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.wire.rabbitmq.frames import (
    GET_EMPTY,
    GET_OK,
    METHOD,
    Contents,
    Properties,
    acknowledgement,
    get,
)
from inferfleet.wire.rabbitmq.stream import FrameStream


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """One message. Unless it was acked, it returns to its queue when the channel is closed."""

    tag: int
    properties: Properties
    body: bytes


class QueueReader:
    """Takes messages from one queue, on a channel of its own."""

    def __init__(
        self, stream: FrameStream, channel: aiormq.abc.AbstractChannel, queue: AbstractQueue
    ) -> None:
        self._stream = stream
        self._channel = channel
        self._queue = queue
        self._answer: asyncio.Future[ReadMessage | None] | None = None
        self._contents = Contents(GET_OK, self._on_message)
        cast("asyncio.Future[None]", channel.closing).add_done_callback(self._on_closing)
        stream.take(channel.number, self._take)

    @property
    def count(self) -> int:
        """How many messages waited in the queue when it was opened."""
        return self._queue.declaration_result.message_count or 0

    async def get(self) -> ReadMessage | None:
        """Take the next message; ``None`` if the queue is empty. One call at a time.

        Raises:
            ServiceUnreachableError: The connection broke.

        """
        self._answer = asyncio.get_running_loop().create_future()
        if self._channel.is_closed:
            self._on_closing(None)
        else:
            self._stream.write(self._channel.number, get(self._channel.number, self._queue.name))
        return await self._answer

    def ack(self, message: ReadMessage) -> None:
        """Ack a message, which removes it for good."""
        self._stream.write(
            self._channel.number, acknowledgement(self._channel.number, message.tag, multiple=False)
        )

    async def acked(self) -> None:
        """Wait until RabbitMQ has got all acks so far.

        Raises what aiormq raises if the connection breaks: messages that were acked may be in the queue then.
        """
        # It answers in order, and this changes nothing for messages that are taken one by one.
        await self._channel.basic_qos(prefetch_count=0)

    async def purge(self) -> int:
        """Delete all messages that wait in the queue, and return how many these were."""
        purged: Any = await self._queue.purge()
        return int(purged.message_count or 0)

    def _take(self, kind: int, payload: bytes) -> bool:
        if kind == METHOD and payload.startswith(GET_EMPTY):
            self._resolve(None)
            return True
        return self._contents.take(kind, payload)

    def _on_message(self, method: bytes, properties: Properties, body: bytes) -> None:
        self._resolve(ReadMessage(int.from_bytes(method[4:12], "big"), properties, body))

    def _resolve(self, message: ReadMessage | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    def _on_closing(self, _: object) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(
                ServiceUnreachableError("the connection to RabbitMQ broke while a queue was read")
            )
