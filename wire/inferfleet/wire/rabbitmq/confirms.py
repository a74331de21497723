"""Publishes on one channel in confirm mode, and tracks the confirm of each message."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import aiormq.abc
from aio_pika.exceptions import AMQPChannelError
from pamqp.commands import Basic

from inferfleet.wire.rabbitmq.frames import (
    ACK,
    CONNECTION_FORCED,
    METHOD,
    NACK,
    RETURN,
    Contents,
    Properties,
    confirmation,
    publishing,
)
from inferfleet.wire.rabbitmq.stream import FrameStream


class RefusedError(Exception):
    """The broker did not queue a message."""


class NackedError(RefusedError):
    """The broker nacked a message: the queue is full, or its leader or process has just died.

    ``in_doubt`` says that an earlier copy of the message, which was not confirmed, may be queued.
    """

    in_doubt = False


class UnroutableError(RefusedError):
    """No queue is bound for the message's routing key."""


class ChannelEndedError(ConnectionError):
    """The channel has closed. If the message was ``sent``, it may or may not be queued.

    ``refusal`` is the broker's reason, if it closed the channel or the connection because of a message: this
    one, or another one.
    """

    def __init__(self, why: BaseException | None, *, refusal: BaseException | None, sent: bool) -> None:
        super().__init__(str(why) or type(why).__name__)
        self.refusal = refusal
        self.sent = sent


class Confirms:
    """Publishes messages on one channel, on which nothing else publishes."""

    def __init__(
        self,
        stream: FrameStream,
        channel: aiormq.abc.AbstractChannel,
        *,
        frame_max: int,
        timeout_s: float,
    ) -> None:
        self._stream = stream
        self._timeout_s = timeout_s
        self._number = channel.number
        self._frame_max = frame_max
        self._last_tag = 0
        self._unconfirmed: dict[int, tuple[asyncio.Future[Exception | None], float]] = {}
        """What waits for its confirm, and until when, by its tag: messages of a channel are counted from 1.
        The future holds what went wrong, as a value, since whoever waited may be gone."""
        self._expiry: asyncio.TimerHandle | None = None
        """One timer for all of them: one for each costs as much as its message's frames."""
        self._expires_at = math.inf
        self._mandatory: dict[str, asyncio.Future[Exception | None]] = {}
        """The futures of mandatory messages, which may be returned, by message id."""
        self._returns = Contents(RETURN, self._on_return)
        self._closing = cast("asyncio.Future[None]", channel.closing)
        self._closing.add_done_callback(self._on_closing)
        stream.take(channel.number, self._take)

    @property
    def settled(self) -> bool:
        """Whether no message waits for its confirm."""
        return not self._unconfirmed

    @property
    def open(self) -> bool:
        """Whether the channel is open, as far as this side knows."""
        return not self._closing.done() and not self._stream.closing

    async def publish(
        self, exchange: str, body: bytes, properties: Basic.Properties, *, routing_key: str, mandatory: bool
    ) -> None:
        """Publish a message and wait for the broker's confirm.

        A mandatory message needs a ``message_id`` that no other message in flight has.

        Raises:
            UnroutableError: ``mandatory``, and no queue is bound for the routing key.
            NackedError: The queue is full, or its leader or process has just died.
            ChannelEndedError: The channel has closed.
            TimeoutError: The broker did not answer within ``timeout_s``. The message may be queued.

        """
        frames = publishing(
            self._number,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            properties=properties,
            body=body,
            frame_max=self._frame_max,
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        # First: while the broker does not read, a message whose caller has given up must not be written.
        if not self._stream.flows:
            await self._drain(deadline)
        if self._closing.done():
            raise self._ended(_reason(self._closing), sent=False)
        confirmed: asyncio.Future[Exception | None] = loop.create_future()
        self._last_tag = tag = self._last_tag + 1
        self._unconfirmed[tag] = confirmed, deadline
        message_id = str(properties.message_id)
        if mandatory:
            self._mandatory[message_id] = confirmed
        self._stream.write(self._number, frames)
        if deadline < self._expires_at:
            self._expire_at(deadline)
        try:
            problem = await confirmed
        finally:
            self._unconfirmed.pop(tag, None)
            if mandatory:
                self._mandatory.pop(message_id, None)
        if problem is not None:
            raise problem

    async def _drain(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._stream.drain()
        except ConnectionError as error:
            raise self._ended(error, sent=False) from error

    def _take(self, kind: int, payload: bytes) -> bool:
        if kind == METHOD and payload.startswith((ACK, NACK)):
            self._on_confirmation(*confirmation(payload), refused=payload.startswith(NACK))
            return True
        return self._returns.take(kind, payload)

    def _on_confirmation(self, last: int, multiple: bool, *, refused: bool) -> None:
        tags = [tag for tag in self._unconfirmed if tag <= last] if multiple else [last]
        for tag in tags:
            confirmed, _ = self._unconfirmed.pop(tag, (None, 0.0))
            if confirmed is None or confirmed.done():
                # The caller has given up, or the message was returned just before.
                continue
            confirmed.set_result(
                NackedError("the broker nacked the message: its queue is full, or has lost its leader")
                if refused
                else None
            )

    def _on_return(self, method: bytes, properties: Properties, _: bytes) -> None:
        # The message's confirm follows.
        returned = Basic.Return()
        returned.unmarshal(method[4:])
        confirmed = self._mandatory.get(properties.get("message_id", ""))
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(
                UnroutableError(f"{returned.reply_text}, routing key {returned.routing_key!r}")
            )

    def _expire_at(self, deadline: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = deadline
        self._expiry = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._expires_at = math.inf
        now = asyncio.get_running_loop().time()
        for confirmed, deadline in self._unconfirmed.values():
            if deadline <= now and not confirmed.done():
                confirmed.set_result(TimeoutError())
        waiting = [deadline for confirmed, deadline in self._unconfirmed.values() if not confirmed.done()]
        if waiting:
            self._expire_at(min(waiting))

    def _on_closing(self, closing: asyncio.Future[None]) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        for confirmed, _ in self._unconfirmed.values():
            if not confirmed.done():
                confirmed.set_result(self._ended(_reason(closing), sent=True))

    def _ended(self, why: BaseException | None, *, sent: bool) -> ChannelEndedError:
        goodbye = self._stream.closed_with
        forced = goodbye is not None and goodbye[0] == CONNECTION_FORCED
        blamed = isinstance(why, AMQPChannelError) or (goodbye is not None and not forced)
        return ChannelEndedError(why, refusal=why if blamed else None, sent=sent)


def _reason(closing: asyncio.Future[Any]) -> BaseException | None:
    return None if closing.cancelled() else closing.exception()
