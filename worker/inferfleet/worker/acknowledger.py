"""Sends acks in natural batches: those of one turn of the event loop go out in one write.

A contiguous run of finished deliveries becomes one ``multiple`` ack; the others are acked singly. Only
``multiple`` acks would be cheaper still, but then one slow job would hold the prefetch credit of all
deliveries behind it.
"""

from __future__ import annotations

import asyncio
import logging

import aiormq.abc
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

from inferfleet.wire.rabbitmq.frames import acknowledgement
from inferfleet.wire.rabbitmq.stream import FrameStream

logger = logging.getLogger(__name__)

BROKEN = (AMQPError, ChannelInvalidStateError, ConnectionError)
"""What a closed channel raises."""


class Acknowledger:
    """Acks the deliveries of one channel. Never settles a tag twice: RabbitMQ would close the channel."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, stream: FrameStream) -> None:
        self._channel = channel
        self._stream = stream
        self._unsettled: dict[int, None] = {}
        """Tags in order of delivery, which is ascending."""
        self._finished: set[int] = set()
        self._returning: set[int] = set()
        """Tags that are being requeued. Until that is written, no ``multiple`` ack may cover them."""

    @property
    def unsettled(self) -> int:
        """How many deliveries are not settled yet."""
        return len(self._unsettled)

    def holds(self, tag: int) -> bool:
        """Return whether this delivery is unsettled, and nobody has begun to settle it."""
        return tag in self._unsettled and tag not in self._finished and tag not in self._returning

    def delivered(self, tag: int) -> None:
        """Record a new delivery, which has to be settled."""
        self._unsettled[tag] = None

    async def requeue(self, tag: int, *, dead_letter: bool = False) -> None:
        """Requeue a delivery, unless it is settled or somebody has begun to settle it.

        With ``dead_letter`` the broker puts it where the queue's dead letters go.
        """
        if not self.holds(tag):
            return
        self._returning.add(tag)
        try:
            await self._channel.basic_nack(tag, requeue=not dead_letter)
            del self._unsettled[tag]
        except BROKEN as error:
            # RabbitMQ requeues it by itself when the connection has broken.
            logger.debug("RabbitMQ has requeued delivery %d itself (%s)", tag, error)
        finally:
            self._returning.discard(tag)

    def ack(self, tag: int) -> None:
        """Put an ack into the next batch, unless the tag is settled or somebody has begun to settle it."""
        if self.holds(tag):
            if not self._finished:
                asyncio.get_running_loop().call_soon(self.flush)
            self._finished.add(tag)

    def flush(self) -> None:
        """Write the acks of all finished deliveries.

        On a closed channel this does nothing: the broker delivers these messages again, and the worker that
        gets one finds that its job has ended, and acks it.
        """
        prefix, singles = self._take()
        acks = [] if prefix is None else [acknowledgement(self._channel.number, prefix, multiple=True)]
        acks += (acknowledgement(self._channel.number, tag, multiple=False) for tag in singles)
        if acks:
            self._stream.write(self._channel.number, b"".join(acks))

    def _take(self) -> tuple[int | None, list[int]]:
        """Split the finished tags into the end of the contiguous prefix, and the rest."""
        prefix: int | None = None
        for tag in self._unsettled:
            if tag not in self._finished:
                break
            prefix = tag
        singles: list[int] = []
        for tag in sorted(self._finished):
            del self._unsettled[tag]
            if prefix is None or tag > prefix:
                singles.append(tag)
        self._finished.clear()
        return prefix, singles
