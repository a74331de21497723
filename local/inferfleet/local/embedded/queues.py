"""One queue: the order of its messages, and who gets the next one. No input or output.

Order is by priority, then by age. A message that comes back keeps its place.
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
    """What was published, and where to. Shared by all queues it was routed to."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes


@dataclass(slots=True, order=True)
class QueuedMessage:
    """A message's place in one queue. Sorts by what is delivered first."""

    rank: int
    position: int
    message: Message = field(compare=False)
    redelivered: bool = field(compare=False, default=False)


class Consumer(Protocol):
    """Who takes messages from a queue."""

    @property
    def unacked(self) -> int:
        """How many messages it has and has not acked."""
        ...

    @property
    def has_credit(self) -> bool:
        """Whether it may be given one more message now."""
        ...

    def deliver(self, entry: QueuedMessage) -> None:
        """Take the message. It is no longer in the queue."""
        ...

    def queue_deleted(self) -> None:
        """The queue is gone; nothing more will come."""
        ...


class Queue:
    """A queue's messages and consumers. ``vanish`` is called when its last consumer takes it along."""

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
        """Messages that wait. Those that are delivered and not acked are not counted."""
        return len(self._ready)

    @property
    def consumer_count(self) -> int:
        """Consumers, with or without credit."""
        return len(self._consumers)

    @property
    def ready(self) -> tuple[Message, ...]:
        """The messages that wait, the next one first."""
        return tuple(entry.message for entry in sorted(self._ready))

    @property
    def unacked_count(self) -> int:
        """Messages that present consumers have and have not acked."""
        return sum(consumer.unacked for consumer in self._consumers)

    def publish(self, message: Message) -> bool:
        """Take a message. ``False``: the queue is full and refuses it."""
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
        """Take messages back that were delivered, each to its old place."""
        if self.deleted:
            return
        for entry in entries:
            entry.redelivered = True
            heapq.heappush(self._ready, entry)
        self.dispatch()
        self._drop_overflow()

    def purge(self) -> int:
        """Throw away what waits, and say how much it was."""
        count = len(self._ready)
        self._ready.clear()
        return count

    def add_consumer(self, consumer: Consumer) -> None:
        """Let a consumer take its turn from now on."""
        self._consumers.append(consumer)
        self.dispatch()

    def remove_consumer(self, consumer: Consumer) -> None:
        """Give this consumer nothing more. The last one takes an auto-delete queue with it."""
        self._consumers.remove(consumer)
        if self.auto_delete and not self._consumers:
            self._vanish(self)

    def delete(self) -> None:
        """End: messages are gone, consumers are told."""
        self.deleted = True
        self._ready.clear()
        consumers, self._consumers = self._consumers, deque()
        for consumer in consumers:
            consumer.queue_deleted()

    def dispatch(self) -> None:
        """Deliver what waits, in turn to each consumer that has credit. Call it when credit came back."""
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
