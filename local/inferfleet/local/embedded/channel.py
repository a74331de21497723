"""One channel of a connection: its publishing, its consumers, and its unacked messages."""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, field
from typing import Protocol

from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Confirm, Exchange, Queue
from pamqp.header import ContentHeader

from inferfleet.local.embedded import topology
from inferfleet.local.embedded.amqp_errors import (
    NO_ROUTE,
    HardError,
    not_implemented,
    precondition_failed,
    unexpected_frame,
)
from inferfleet.local.embedded.deliveries import ChannelConsumer, Delivered, Ledger, queues_of
from inferfleet.local.embedded.queues import Message, QueuedMessage
from inferfleet.local.embedded.virtual_host import VirtualHost


class Sender(Protocol):
    """Sends to the client on this channel."""

    def __call__(self, method: Frame, message: Message | None = None) -> None:
        """Send a method, with the message that belongs to it if there is one."""
        ...


@dataclass(slots=True)
class _Incoming:
    """A message that is being published: method, then header, then body in pieces."""

    method: Basic.Publish
    header: ContentHeader | None = None
    pieces: list[bytes] = field(default_factory=list[bytes])
    received: int = 0


class Channel:
    """Executes the methods of one channel. Raises ``AmqpError`` for those that it cannot execute."""

    def __init__(self, *, host: VirtualHost, owner: object, send: Sender) -> None:
        self._host = host
        self._owner = owner
        self._send = send
        self._prefetch = 0
        self._consumers: dict[str, ChannelConsumer] = {}
        self._ledger = Ledger()
        self._confirming = False
        self._last_publish = 0
        self._incoming: _Incoming | None = None

    def close(self) -> None:
        """Stop consuming, and requeue the unacked messages."""
        for consumer in list(self._consumers.values()):
            self._cancel(consumer)
        _requeue(self._ledger.settle(0, multiple=True))

    def receive(self, frame: Frame | ContentHeader | ContentBody) -> None:
        """Execute one method, or take a part of the message that is being published."""
        match frame:
            case ContentHeader():
                self._receive_header(frame)
            case ContentBody():
                self._receive_body(frame)
            case _ if self._incoming is not None:
                raise unexpected_frame("expected content, got a method")
            case Basic.Publish():
                if frame.immediate:
                    raise not_implemented("immediate=true")
                self._incoming = _Incoming(frame)
            case Basic.Ack():
                self._ack(frame.delivery_tag or 0, multiple=frame.multiple)
            case Basic.Nack():
                self._return(frame.delivery_tag or 0, multiple=frame.multiple, requeue=frame.requeue)
            case Basic.Reject():
                self._return(frame.delivery_tag or 0, multiple=False, requeue=frame.requeue)
            case Basic.Qos():
                if frame.prefetch_size or frame.global_:
                    raise not_implemented("prefetch by size or for a whole channel")
                self._prefetch = frame.prefetch_count
                self._send(Basic.QosOk())
            case Basic.Consume():
                self._consume(frame)
            case Basic.Cancel():
                if (consumer := self._consumers.get(frame.consumer_tag or "")) is not None:
                    self._cancel(consumer)
                if not frame.nowait:
                    self._send(Basic.CancelOk(consumer_tag=frame.consumer_tag))
            case Basic.Get():
                self._get(frame)
            case Confirm.Select():
                self._confirming = True
                if not frame.nowait:
                    self._send(Confirm.SelectOk())
            case (
                Exchange.Declare()
                | Exchange.Delete()
                | Exchange.Bind()
                | Queue.Declare()
                | Queue.Delete()
                | Queue.Purge()
                | Queue.Bind()
                | Queue.Unbind()
            ):
                answer = topology.carry_out(frame, self._host, self._owner)
                if answer is not None:
                    self._send(answer)
            case _:
                raise not_implemented(frame.name)

    def _receive_header(self, header: ContentHeader) -> None:
        if self._incoming is None or self._incoming.header is not None:
            raise unexpected_frame("got a content header that belongs to nothing")
        self._incoming.header = header
        self._publish_when_whole(self._incoming)

    def _receive_body(self, body: ContentBody) -> None:
        if self._incoming is None or self._incoming.header is None:
            raise unexpected_frame("got a content body that belongs to nothing")
        piece = body.value or b""
        self._incoming.pieces.append(piece)
        self._incoming.received += len(piece)
        self._publish_when_whole(self._incoming)

    def _publish_when_whole(self, incoming: _Incoming) -> None:
        if incoming.header is None or incoming.received < incoming.header.body_size:
            return
        self._incoming = None
        properties, method = incoming.header.properties, incoming.method
        if properties.expiration is not None:
            raise precondition_failed("the embedded broker does not support 'expiration'")
        if properties.headers:
            try:
                properties.marshal()
            except (TypeError, ValueError, ArithmeticError, struct.error) as error:
                # If it were queued, it would break the connection of each consumer that gets it.
                raise precondition_failed(f"the embedded broker cannot keep a header: {error}") from error
        message = Message(
            exchange=method.exchange,
            routing_key=method.routing_key,
            properties=properties,
            body=b"".join(incoming.pieces),
        )
        outcome = self._host.publish(message)
        # The return is sent before the confirm, so that the publisher knows of it at the confirm.
        if method.mandatory and not outcome.routed:
            self._send(
                Basic.Return(
                    reply_code=NO_ROUTE,
                    reply_text="NO_ROUTE",
                    exchange=method.exchange,
                    routing_key=method.routing_key,
                ),
                message,
            )
        if self._confirming:
            self._last_publish += 1
            if outcome.accepted:
                self._send(Basic.Ack(delivery_tag=self._last_publish))
            else:
                self._send(Basic.Nack(delivery_tag=self._last_publish, requeue=False))

    def _consume(self, method: Basic.Consume) -> None:
        if method.exclusive:
            raise not_implemented("exclusive consumers")
        tag = method.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
        if tag in self._consumers:
            raise HardError(530, f"NOT_ALLOWED - attempt to reuse consumer tag '{tag}'")
        queue = self._host.queue(method.queue, owner=self._owner)
        consumer = ChannelConsumer(
            tag=tag,
            queue=queue,
            no_ack=method.no_ack,
            prefetch=self._prefetch,
            send=self._deliver,
            ended=self._end,
        )
        self._consumers[tag] = consumer
        if not method.nowait:
            self._send(Basic.ConsumeOk(consumer_tag=tag))
        queue.add_consumer(consumer)

    def _deliver(self, consumer: ChannelConsumer, entry: QueuedMessage) -> None:
        tag = self._ledger.record(Delivered(consumer.queue, entry, consumer), acked=consumer.no_ack)
        self._send(
            Basic.Deliver(
                consumer_tag=consumer.tag,
                delivery_tag=tag,
                redelivered=entry.redelivered,
                exchange=entry.message.exchange,
                routing_key=entry.message.routing_key,
            ),
            entry.message,
        )

    def _cancel(self, consumer: ChannelConsumer) -> None:
        del self._consumers[consumer.tag]
        consumer.queue.remove_consumer(consumer)

    def _end(self, consumer: ChannelConsumer) -> None:
        """Tell the client that the queue was deleted. It can still ack its messages."""
        del self._consumers[consumer.tag]
        self._send(Basic.Cancel(consumer_tag=consumer.tag, nowait=True))

    def _get(self, method: Basic.Get) -> None:
        queue = self._host.queue(method.queue, owner=self._owner)
        entry = queue.get()
        if entry is None:
            self._send(Basic.GetEmpty())
            return
        tag = self._ledger.record(Delivered(queue, entry, None), acked=method.no_ack)
        self._send(
            Basic.GetOk(
                delivery_tag=tag,
                redelivered=entry.redelivered,
                exchange=entry.message.exchange,
                routing_key=entry.message.routing_key,
                message_count=queue.ready_count,
            ),
            entry.message,
        )

    def _ack(self, tag: int, *, multiple: bool) -> None:
        for queue in queues_of(self._ledger.settle(tag, multiple=multiple)):
            queue.dispatch()

    def _return(self, tag: int, *, multiple: bool, requeue: bool) -> None:
        """Requeue messages, or dead-letter them."""
        settled = self._ledger.settle(tag, multiple=multiple)
        if requeue:
            _requeue(settled)
            return
        for queue in queues_of(settled):
            queue.reject(each.entry for each in settled if each.queue is queue)
            queue.dispatch()


def _requeue(delivered: list[Delivered]) -> None:
    for queue in queues_of(delivered):
        queue.requeue([each.entry for each in delivered if each.queue is queue])
