"""Acknowledgements, batched naturally: what finishes within one turn of the event loop goes out together.

A contiguous run of finished deliveries is one ``multiple`` ack; the others go singly. Only ``multiple``
acks would be cheaper still, but then one slow job would hold the prefetch credit of all behind it.
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
"""What a channel raises that is no more."""


class Acknowledger:
    """Acks the deliveries of one channel. It never names a tag twice: RabbitMQ would close the channel."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, stream: FrameStream) -> None:
        self._channel = channel
        self._stream = stream
        self._unsettled: dict[int, None] = {}
        """Tags in order of delivery, which is ascending."""
        self._finished: set[int] = set()
        self._returning: set[int] = set()
        """Tags that go back to the queue. Until that is written, no ``multiple`` ack may reach past them."""

    @property
    def unsettled(self) -> int:
        """How many deliveries are not settled yet."""
        return len(self._unsettled)

    def holds(self, tag: int) -> bool:
        """Whether this delivery still has to be settled, and nobody has begun to."""
        return tag in self._unsettled and tag not in self._finished and tag not in self._returning

    def delivered(self, tag: int) -> None:
        """Note a delivery that will have to be settled."""
        self._unsettled[tag] = None

    async def requeue(self, tag: int) -> None:
        """Give a delivery back. One that is settled already, or about to be, is left alone."""
        if not self.holds(tag):
            return
        self._returning.add(tag)
        try:
            await self._channel.basic_nack(tag, requeue=True)
            del self._unsettled[tag]
        except BROKEN as error:
            # A broken session has requeued it already.
            logger.debug("RabbitMQ has requeued delivery %d itself (%s)", tag, error)
        finally:
            self._returning.discard(tag)

    def ack(self, tag: int) -> None:
        """Put an ack into the next batch. A tag that is settled already, or about to be, is left alone."""
        if self.holds(tag):
            if not self._finished:
                asyncio.get_running_loop().call_soon(self.flush)
            self._finished.add(tag)

    def flush(self) -> None:
        """Write what is finished now.

        On a channel that is no more this does nothing: the broker delivers these again, each is found to have
        ended, and the ack comes then.
        """
        prefix, singles = self._take()
        acks = [] if prefix is None else [acknowledgement(self._channel.number, prefix, multiple=True)]
        acks += (acknowledgement(self._channel.number, tag, multiple=False) for tag in singles)
        if acks:
            self._stream.write(self._channel.number, b"".join(acks))

    def _take(self) -> tuple[int | None, list[int]]:
        """Split what is finished into the end of the contiguous prefix and the rest."""
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
