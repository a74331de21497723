"""Acknowledgements, batched naturally: what finishes while one write is in flight goes out with the next.

A contiguous run of finished deliveries is one ``multiple`` ack; the others go singly. Only ``multiple``
acks would be cheaper still, but then one slow job would hold the prefetch credit of all behind it.
"""

from __future__ import annotations

import asyncio
import logging

import aiormq.abc
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

logger = logging.getLogger(__name__)

BROKEN = (AMQPError, ChannelInvalidStateError, ConnectionError)
"""What a channel raises that is no more."""


class Acknowledger:
    """Acks the deliveries of one channel. It never names a tag twice: RabbitMQ would close the channel."""

    def __init__(self, channel: aiormq.abc.AbstractChannel) -> None:
        self._channel = channel
        self._unsettled: dict[int, None] = {}
        """Tags in order of delivery, which is ascending."""
        self._finished: set[int] = set()
        self._returning: set[int] = set()
        """Tags that go back to the queue. Until that is written, no ``multiple`` ack may reach past them."""
        self._arrived = asyncio.Event()

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
            logger.debug("delivery %d is back in the queue by itself (%s)", tag, error)
        finally:
            self._returning.discard(tag)

    def ack(self, tag: int) -> None:
        """Put an ack into the next batch. A tag that is settled already, or about to be, is left alone."""
        if self.holds(tag):
            self._finished.add(tag)
            self._arrived.set()

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._arrived.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write what is finished now."""
        self._arrived.clear()
        prefix, singles = self._take()
        last = len(singles) - 1
        try:
            if prefix is not None:
                await self._channel.basic_ack(prefix, multiple=True, wait=not singles)
            for position, tag in enumerate(singles):
                await self._channel.basic_ack(tag, wait=position == last)
        except BROKEN as error:
            # The broker will deliver these again, find each terminal, and the ack comes then.
            logger.info("acks lost with the connection (%s)", error)

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
