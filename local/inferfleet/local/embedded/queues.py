"""One queue: the order of its messages, and which consumer gets the next one. No input or output.

Messages are ordered by priority, then by age. A requeued message keeps its place, and its time to live. As in
RabbitMQ, only the message at the head expires. A dead letter keeps its properties; no ``x-death`` is added.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from pamqp.commands import Basic

from inferfleet.local.embedded.queue_arguments import Overflow, QueueArguments

TIMER_SLACK_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A published message and its routing. All queues to which it was routed share it."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes


@dataclass(slots=True, order=True)
class QueuedMessage:
    """A message's place in one queue. Sorts in the order of delivery."""

    rank: int
    position: int
    message: Message = field(compare=False)
    redelivered: bool = field(compare=False, default=False)
    until: float | None = field(compare=False, default=None)
    """When it expires, by the event loop's clock."""


class Consumer(Protocol):
    """A consumer of a queue."""

    @property
    def unacked(self) -> int:
        """How many unacked messages the consumer has."""
        ...

    @property
    def has_credit(self) -> bool:
        """Whether the consumer may get one more message."""
        ...

    def deliver(self, entry: QueuedMessage) -> None:
        """Take the message, which is no longer in the queue."""
        ...

    def queue_deleted(self) -> None:
        """Note that the queue was deleted, so that no more messages will come."""
        ...


class Queue:
    """A queue's messages and consumers.

    Calls ``vanish`` when it has to be deleted, because its last consumer has ended or nobody has used it for
    long, and ``dead_letter`` with each message that expires or is rejected.
    """

    def __init__(
        self,
        name: str,
        *,
        arguments: QueueArguments,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
        vanish: Callable[[Queue], None],
        dead_letter: Callable[[Queue, Message], None] = lambda _, __: None,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.deleted = False
        self._ready: list[QueuedMessage] = []
        self._consumers: deque[Consumer] = deque()
        self._positions = itertools.count()
        self._vanish = vanish
        self._dead_letter = dead_letter
        self._unused: asyncio.TimerHandle | None = None
        self.used()

    @property
    def ready_count(self) -> int:
        """The number of waiting messages, without the unacked ones."""
        return len(self._ready)

    @property
    def consumer_count(self) -> int:
        """The number of consumers, with or without credit."""
        return len(self._consumers)

    @property
    def ready(self) -> tuple[Message, ...]:
        """The waiting messages, the next one first."""
        return tuple(entry.message for entry in sorted(self._ready))

    @property
    def unacked_count(self) -> int:
        """The number of unacked messages of the current consumers."""
        return sum(consumer.unacked for consumer in self._consumers)

    def publish(self, message: Message) -> bool:
        """Take a message. Return false if the queue is full and refuses it."""
        limit, overflow = self.arguments.max_length, self.arguments.overflow
        if limit is not None and overflow is Overflow.REJECT_PUBLISH and len(self._ready) >= limit:
            return False
        entry = QueuedMessage(
            rank=-min(message.properties.priority or 0, self.arguments.max_priority or 0),
            position=next(self._positions),
            message=message,
        )
        if self.arguments.message_ttl is not None:
            entry.until = asyncio.get_running_loop().time() + self.arguments.message_ttl / 1000
        self._push(entry)
        self.dispatch()
        self._drop_overflow()
        return True

    def get(self) -> QueuedMessage | None:
        """Take the message at the head, if there is one."""
        self.used()
        self._drop_expired()
        return heapq.heappop(self._ready) if self._ready else None

    def requeue(self, entries: Iterable[QueuedMessage]) -> None:
        """Take delivered messages back, each to its old place."""
        if self.deleted:
            return
        for entry in entries:
            entry.redelivered = True
            self._push(entry)
        self.dispatch()
        self._drop_overflow()

    def reject(self, entries: Iterable[QueuedMessage]) -> None:
        """Dead-letter delivered messages."""
        for entry in entries:
            self._dead_letter(self, entry.message)

    def used(self) -> None:
        """Note that the queue is used, so that it does not vanish for a while."""
        if self.arguments.expires is None:
            return
        if self._unused is not None:
            self._unused.cancel()
        self._unused = asyncio.get_running_loop().call_later(self.arguments.expires / 1000, self._expire)

    def purge(self) -> int:
        """Delete all waiting messages, and return their number."""
        count = len(self._ready)
        self._ready.clear()
        return count

    def add_consumer(self, consumer: Consumer) -> None:
        """Add a consumer to the round-robin."""
        self._consumers.append(consumer)
        self.dispatch()

    def remove_consumer(self, consumer: Consumer) -> None:
        """Remove a consumer. Removing the last one deletes an auto-delete queue."""
        self._consumers.remove(consumer)
        self.used()
        if self.auto_delete and not self._consumers:
            self._vanish(self)

    def delete(self) -> None:
        """Delete the queue: drop its messages, and tell its consumers."""
        self.deleted = True
        if self._unused is not None:
            self._unused.cancel()
        self._ready.clear()
        consumers, self._consumers = self._consumers, deque()
        for consumer in consumers:
            consumer.queue_deleted()

    def dispatch(self) -> None:
        """Deliver waiting messages round-robin to consumers with credit. Call this when credit returned."""
        self._drop_expired()
        while self._ready and (consumer := self._next_consumer()) is not None:
            consumer.deliver(heapq.heappop(self._ready))

    def _next_consumer(self) -> Consumer | None:
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_credit:
                return consumer
        return None

    def _push(self, entry: QueuedMessage) -> None:
        heapq.heappush(self._ready, entry)
        if entry.until is not None:
            asyncio.get_running_loop().call_at(entry.until, self._drop_expired)

    def _drop_expired(self) -> None:
        while self._ready and (until := self._ready[0].until) is not None:
            # A timer may fire a little early.
            if until - asyncio.get_running_loop().time() > TIMER_SLACK_S:
                return
            self._dead_letter(self, heapq.heappop(self._ready).message)

    def _expire(self) -> None:
        self._unused = None
        if not self._consumers and not self.deleted:
            self._vanish(self)

    def _drop_overflow(self) -> None:
        limit = self.arguments.max_length
        if limit is None or self.arguments.overflow is Overflow.REJECT_PUBLISH:
            return
        while len(self._ready) > limit:
            heapq.heappop(self._ready)
