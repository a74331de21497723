"""The embedded broker's queues, without a connection."""

from __future__ import annotations

import pytest
from pamqp.commands import Basic

from inferfleet.local.embedded.amqp_errors import SoftError
from inferfleet.local.embedded.queue_arguments import QueueArguments
from inferfleet.local.embedded.queues import Message, Queue, QueuedMessage


class Reader:
    """A consumer with so much credit."""

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.entries: list[QueuedMessage] = []
        self.ended = False

    @property
    def unacked(self) -> int:
        return len(self.entries)

    @property
    def has_credit(self) -> bool:
        return self.credit > 0

    @property
    def bodies(self) -> list[bytes]:
        return [entry.message.body for entry in self.entries]

    def deliver(self, entry: QueuedMessage) -> None:
        self.credit -= 1
        self.entries.append(entry)

    def queue_deleted(self) -> None:
        self.ended = True


class Setting:
    """A queue, and whether it is still there."""

    def __init__(self, *, auto_delete: bool = False, **arguments: object) -> None:
        self.vanished = False
        self.queue = Queue(
            "q",
            arguments=QueueArguments.read(
                {f"x-{name.replace('_', '-')}": v for name, v in arguments.items()}
            ),
            durable=True,
            auto_delete=auto_delete,
            owner=None,
            vanish=self._vanish,
        )

    def publish(self, body: bytes, *, priority: int | None = None) -> bool:
        properties = Basic.Properties(priority=priority)
        return self.queue.publish(Message(exchange="", routing_key="q", properties=properties, body=body))

    def drain(self) -> list[bytes]:
        reader = Reader(credit=1000)
        self.queue.add_consumer(reader)
        self.queue.remove_consumer(reader)
        return reader.bodies

    def _vanish(self, queue: Queue) -> None:
        self.vanished = True
        queue.delete()


def test_a_requeued_message_keeps_its_place() -> None:
    setting = Setting(max_priority=10)
    for body in (b"a", b"b", b"c"):
        setting.publish(body, priority=5)
    reader = Reader(credit=2)
    setting.queue.add_consumer(reader)
    setting.queue.remove_consumer(reader)
    setting.queue.requeue(reversed(reader.entries))
    assert [entry.redelivered for entry in reader.entries] == [True, True]
    assert setting.drain() == [b"a", b"b", b"c"]


def test_consumers_with_credit_take_strict_turns() -> None:
    setting = Setting()
    readers = [Reader(credit=3), Reader(credit=1), Reader(credit=3)]
    for reader in readers:
        setting.queue.add_consumer(reader)
    for number in range(8):
        setting.publish(b"%d" % number)
    assert [reader.bodies for reader in readers] == [[b"0", b"3", b"5"], [b"1"], [b"2", b"4", b"6"]]
    assert setting.queue.ready_count == 1


def test_credit_that_comes_back_is_used_at_the_next_dispatch() -> None:
    setting = Setting()
    reader = Reader(credit=1)
    setting.queue.add_consumer(reader)
    setting.publish(b"a")
    setting.publish(b"b")
    reader.credit += 1
    setting.queue.dispatch()
    assert reader.bodies == [b"a", b"b"]


def test_a_full_queue_that_drops_its_head_drops_the_highest_priority() -> None:
    setting = Setting(max_length=1, max_priority=10)
    setting.publish(b"low", priority=1)
    setting.publish(b"high", priority=9)
    assert setting.drain() == [b"low"]


def test_what_is_delivered_does_not_count_towards_the_length() -> None:
    setting = Setting(max_length=1, overflow="reject-publish")
    setting.queue.add_consumer(Reader(credit=1))
    assert [setting.publish(body) for body in (b"delivered", b"waits", b"refused")] == [True, True, False]


def test_an_auto_delete_queue_ends_with_its_last_consumer_but_not_before_its_first() -> None:
    setting = Setting(auto_delete=True)
    setting.publish(b"waits")
    assert not setting.vanished
    readers = [Reader(credit=0), Reader(credit=0)]
    for reader in readers:
        setting.queue.add_consumer(reader)
    setting.queue.remove_consumer(readers[0])
    assert not setting.vanished
    setting.queue.remove_consumer(readers[1])
    assert setting.vanished


def test_a_deleted_queue_tells_its_consumers_and_takes_nothing_back() -> None:
    setting = Setting()
    reader = Reader(credit=1)
    setting.queue.add_consumer(reader)
    setting.publish(b"held")
    setting.queue.delete()
    assert reader.ended
    setting.queue.requeue(reader.entries)
    assert setting.queue.ready_count == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"x-max-priority": 256}, "x-max-priority"),
        ({"x-max-priority": "10"}, "x-max-priority"),
        ({"x-max-length": True}, "x-max-length"),
        ({"x-overflow": "reject-publish-dlx"}, "x-overflow"),
        ({"x-overflow": 5}, "x-overflow"),
        ({"x-queue-type": "quorum"}, "classic queues only"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(
    arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(SoftError, match=complaint) as refusal:
        QueueArguments.read(arguments)
    assert refusal.value.code == 406


@pytest.mark.parametrize(
    "name",
    [
        "x-max-length-bytes",
        "x-single-active-consumer",
    ],
)
def test_arguments_for_what_the_embedded_broker_lacks_are_refused_by_name(name: str) -> None:
    with pytest.raises(SoftError, match=f"the embedded broker does not support '{name}'") as refusal:
        QueueArguments.read({name: 1})
    assert refusal.value.code == 406


def test_arguments_of_storage_and_unknown_ones_are_ignored() -> None:
    read = QueueArguments.read({"x-queue-mode": "lazy", "x-queue-type": "classic", "x-of-mine": 1})
    assert read == QueueArguments()
