"""One queue: the order of its messages, who gets the next one, and what expires. No input or output.

Order is by priority, then by age. A message that comes back keeps its place. As in RabbitMQ's classic
queues, what has expired leaves only when it reaches the head: behind living messages of a higher priority
it stays, and is counted.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
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
class Entry:
    """A message's place in one queue. Sorts by what is delivered first.

    ``expires_at`` is on the queue's clock, in seconds.
    """

    rank: int
    position: int
    message: Message = field(compare=False)
    expires_at: float | None = field(compare=False, default=None)
    redelivered: bool = field(compare=False, default=False)


class DeathReason(StrEnum):
    """Why a message leaves its queue for the dead-letter exchange."""

    REJECTED = "rejected"
    EXPIRED = "expired"
    MAXLEN = "maxlen"


class Timer(Protocol):
    """A call that waits for its time."""

    def cancel(self) -> None:
        """Forget it."""
        ...


class Clock(Protocol):
    """Time in seconds, and calls in the future. An asyncio event loop is one."""

    def time(self) -> float:
        """The time now."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Arrange a call."""
        ...


class Consumer(Protocol):
    """Who takes messages from a queue."""

    @property
    def has_credit(self) -> bool:
        """Whether it may be given one more message now."""
        ...

    def deliver(self, entry: Entry) -> None:
        """Take the message. It is no longer in the queue."""
        ...

    def queue_deleted(self) -> None:
        """The queue is gone; nothing more will come."""
        ...


class Queue:
    """A queue's messages and consumers.

    ``bury`` is called with each message that dies here, ``vanish`` when the queue's own time is up:
    it was auto-deleted, or unused for ``x-expires``.
    """

    def __init__(
        self,
        name: str,
        *,
        arguments: QueueArguments,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
        clock: Clock,
        bury: Callable[[Queue, Entry, DeathReason], None],
        vanish: Callable[[Queue], None],
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.deleted = False
        self._ready: list[Entry] = []
        self._consumers: deque[Consumer] = deque()
        self._positions = itertools.count()
        self._clock = clock
        self._bury = bury
        self._vanish = vanish
        self._last_used_at = clock.time()
        self._timer: Timer | None = None
        self._armed_for: float | None = None
        self._arm()

    @property
    def ready_count(self) -> int:
        """Messages that wait. Those that are delivered and not acked are not counted."""
        return len(self._ready)

    @property
    def consumer_count(self) -> int:
        """Consumers, with or without credit."""
        return len(self._consumers)

    def publish(self, message: Message) -> bool:
        """Take a message. ``False``: the queue is full and refuses it."""
        limit = self.arguments.max_length
        if limit is not None and self.arguments.overflow is Overflow.REJECT_PUBLISH:
            self._drop_expired()
            if len(self._ready) >= limit:
                return False
        entry = Entry(
            rank=-min(message.properties.priority or 0, self.arguments.max_priority or 0),
            position=next(self._positions),
            message=message,
            expires_at=self._expiry(message),
        )
        # Straight to a consumer if nothing waits: a message with a TTL of 0 lives just long enough for that.
        if not self._ready and (consumer := self._next_consumer()) is not None:
            consumer.deliver(entry)
        else:
            heapq.heappush(self._ready, entry)
            self.dispatch()
            self._drop_overflow()
        return True

    def get(self) -> Entry | None:
        """Take the message at the head, if there is one."""
        self.touch()
        self._drop_expired()
        entry = heapq.heappop(self._ready) if self._ready else None
        self._arm()
        return entry

    def requeue(self, entries: Iterable[Entry]) -> None:
        """Take messages back that were delivered, each to its old place."""
        if self.deleted:
            return
        for entry in entries:
            entry.redelivered = True
            heapq.heappush(self._ready, entry)
        self.dispatch()
        self._drop_overflow()

    def reject(self, entry: Entry) -> None:
        """A consumer does not want the message, and nobody else should get it."""
        if not self.deleted:
            self._bury(self, entry, DeathReason.REJECTED)

    def purge(self) -> int:
        """Throw away what waits, and say how much it was."""
        count = len(self._ready)
        self._ready.clear()
        self._arm()
        return count

    def add_consumer(self, consumer: Consumer) -> None:
        """Let a consumer take its turn from now on."""
        self._consumers.append(consumer)
        self.dispatch()

    def remove_consumer(self, consumer: Consumer) -> None:
        """Give this consumer nothing more. The last one takes an auto-delete queue with it."""
        self._consumers.remove(consumer)
        self.touch()
        if self.auto_delete and not self._consumers:
            self._vanish(self)

    def touch(self) -> None:
        """Count as used: ``x-expires`` starts anew."""
        self._last_used_at = self._clock.time()
        self._arm()

    def delete(self) -> None:
        """End: messages are gone, consumers are told."""
        self.deleted = True
        self._ready.clear()
        consumers, self._consumers = self._consumers, deque()
        self._arm()
        for consumer in consumers:
            consumer.queue_deleted()

    def dispatch(self) -> None:
        """Deliver what waits, in turn to each consumer that has credit. Call it when credit came back."""
        self._drop_expired()
        while self._ready and (consumer := self._next_consumer()) is not None:
            consumer.deliver(heapq.heappop(self._ready))
            self._drop_expired()
        self._arm()

    def _next_consumer(self) -> Consumer | None:
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_credit:
                return consumer
        return None

    def _expiry(self, message: Message) -> float | None:
        own = message.properties.expiration
        ttls = (self.arguments.message_ttl, int(own) if own else None)
        shortest = min((ttl for ttl in ttls if ttl is not None), default=None)
        return None if shortest is None else self._clock.time() + shortest / 1000

    def _drop_expired(self) -> None:
        now = self._clock.time()
        while self._ready and (expires_at := self._ready[0].expires_at) is not None and expires_at < now:
            self._bury(self, heapq.heappop(self._ready), DeathReason.EXPIRED)

    def _drop_overflow(self) -> None:
        limit = self.arguments.max_length
        if limit is None or self.arguments.overflow is Overflow.REJECT_PUBLISH:
            return
        while len(self._ready) > limit:
            self._bury(self, heapq.heappop(self._ready), DeathReason.MAXLEN)

    def _arm(self) -> None:
        """Set the timer to the next thing that happens by itself: the head expires, or the queue does."""
        deadline = self._next_deadline()
        if deadline == self._armed_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = deadline
        self._timer = None if deadline is None else self._clock.call_at(deadline, self._on_timer)

    def _next_deadline(self) -> float | None:
        if self.deleted:
            return None
        head = self._ready[0].expires_at if self._ready else None
        return min((when for when in (head, self._unused_until()) if when is not None), default=None)

    def _unused_until(self) -> float | None:
        if self.arguments.expires is None or self._consumers:
            return None
        return self._last_used_at + self.arguments.expires / 1000

    def _on_timer(self) -> None:
        self._armed_for = None
        unused_until = self._unused_until()
        if unused_until is not None and self._clock.time() >= unused_until:
            self._vanish(self)
        else:
            self.dispatch()
