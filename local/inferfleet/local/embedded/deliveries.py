"""A channel's consumers, and the ledger of its unacked deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inferfleet.local.embedded.amqp_errors import precondition_failed
from inferfleet.local.embedded.queues import Queue, QueuedMessage


class ChannelConsumer:
    """A consumer of one queue.

    ``prefetch`` is how many unacked messages it may have; 0 is any number. ``send`` passes a message on to
    the client, ``ended`` tells it that the queue is gone.
    """

    def __init__(
        self,
        *,
        tag: str,
        queue: Queue,
        no_ack: bool,
        prefetch: int,
        send: Callable[[ChannelConsumer, QueuedMessage], None],
        ended: Callable[[ChannelConsumer], None],
    ) -> None:
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.unacked = 0
        self._prefetch = prefetch
        self._send = send
        self._ended = ended

    @property
    def has_credit(self) -> bool:
        """Whether the consumer may get one more message."""
        return self.no_ack or self._prefetch == 0 or self.unacked < self._prefetch

    def deliver(self, entry: QueuedMessage) -> None:
        """Send a message to the client."""
        self._send(self, entry)

    def queue_deleted(self) -> None:
        """Tell the client that no more messages will come."""
        self._ended(self)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delivered message. ``consumer`` is ``None`` if the client fetched it with ``basic.get``."""

    queue: Queue
    entry: QueuedMessage
    consumer: ChannelConsumer | None


class Ledger:
    """Numbers the deliveries of a channel, and keeps the unacked ones."""

    def __init__(self) -> None:
        self._last_tag = 0
        self._unacked: dict[int, Delivered] = {}

    def record(self, delivered: Delivered, *, acked: bool) -> int:
        """Number a delivery, and keep it unless it counts as acked at once."""
        self._last_tag += 1
        if not acked:
            self._unacked[self._last_tag] = delivered
            if delivered.consumer is not None:
                delivered.consumer.unacked += 1
        return self._last_tag

    def settle(self, tag: int, *, multiple: bool) -> list[Delivered]:
        """Strike off the deliveries that the client names, in order, and return the consumers' credit.

        ``multiple`` names all deliveries up to ``tag``, and with a tag of 0 all of them.

        Raises:
            SoftError: The tag was never given out, or is settled already.

        """
        if multiple and tag == 0:
            tags = list(self._unacked)
        elif tag not in self._unacked:
            raise precondition_failed(f"unknown delivery tag {tag}")
        elif multiple:
            tags = [each for each in self._unacked if each <= tag]
        else:
            tags = [tag]
        settled = [self._unacked.pop(each) for each in tags]
        for delivered in settled:
            if delivered.consumer is not None:
                delivered.consumer.unacked -= 1
        return settled


def queues_of(delivered: Iterable[Delivered]) -> list[Queue]:
    """Return the queues of these messages, each once."""
    return list({id(each.queue): each.queue for each in delivered}.values())
