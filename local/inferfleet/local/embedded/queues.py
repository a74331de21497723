"""One queue: the order of its messages, and which consumer gets the next one. No input or output.

Messages are ordered by priority, then by age. A requeued message keeps its place.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from pamqp.commands import Basic

from inferfleet.local.embedded.queue_arguments import Overflow, QueueArguments


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
    """A queue's messages and consumers. Calls ``vanish`` when the end of its last consumer deletes it."""

    def __init__(
        self,
        name: str,
        *,
        arguments: QueueArguments,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
        vanish: Callable[[Queue], None],
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
        heapq.heappush(self._ready, entry)
        self.dispatch()
        self._drop_overflow()
        return True

    def get(self) -> QueuedMessage | None:
        """Take the message at the head, if there is one."""
        return heapq.heappop(self._ready) if self._ready else None

    def requeue(self, entries: Iterable[QueuedMessage]) -> None:
        """Take delivered messages back, each to its old place."""
        if self.deleted:
            return
        for entry in entries:
            entry.redelivered = True
            heapq.heappush(self._ready, entry)
        self.dispatch()
        self._drop_overflow()

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
        if self.auto_delete and not self._consumers:
            self._vanish(self)

    def delete(self) -> None:
        """Delete the queue: drop its messages, and tell its consumers."""
        self.deleted = True
        self._ready.clear()
        consumers, self._consumers = self._consumers, deque()
        for consumer in consumers:
            consumer.queue_deleted()

    def dispatch(self) -> None:
        """Deliver waiting messages round-robin to consumers with credit. Call this when credit returned."""
        while self._ready and (consumer := self._next_consumer()) is not None:
            consumer.deliver(heapq.heappop(self._ready))

    def _next_consumer(self) -> Consumer | None:
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_credit:
                return consumer
        return None

    def _drop_overflow(self) -> None:
        limit = self.arguments.max_length
        if limit is None or self.arguments.overflow is Overflow.REJECT_PUBLISH:
            return
        while len(self._ready) > limit:
            heapq.heappop(self._ready)
