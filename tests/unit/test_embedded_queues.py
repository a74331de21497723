"""The embedded broker's queues, on a clock that the test moves."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import pytest
from pamqp.commands import Basic

from inferfleet.local.embedded.amqp_errors import SoftError
from inferfleet.local.embedded.queue_arguments import QueueArguments
from inferfleet.local.embedded.queues import DeathReason, Entry, Message, Queue


class Call:
    """A call in the future."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._calls: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> Call:
        call = Call(callback)
        heapq.heappush(self._calls, (when, next(self._numbers), call))
        return call

    def advance(self, seconds: float) -> None:
        end = self._now + seconds
        while self._calls and self._calls[0][0] <= end:
            when, _, call = heapq.heappop(self._calls)
            # A loop's timers fire a little late.
            self._now = max(self._now, when) + 1e-6
            if call.callback is not None:
                call.callback()
        self._now = end


class Reader:
    """A consumer with so much credit."""

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.entries: list[Entry] = []
        self.ended = False

    @property
    def has_credit(self) -> bool:
        return self.credit > 0

    @property
    def bodies(self) -> list[bytes]:
        return [entry.message.body for entry in self.entries]

    def deliver(self, entry: Entry) -> None:
        self.credit -= 1
        self.entries.append(entry)

    def queue_deleted(self) -> None:
        self.ended = True


class Setting:
    """A queue, and what became of its dead and of itself."""

    def __init__(self, *, auto_delete: bool = False, **arguments: object) -> None:
        self.clock = ManualClock()
        self.dead: list[tuple[bytes, DeathReason]] = []
        self.vanished = False
        self.queue = Queue(
            "q",
            arguments=QueueArguments.read(
                {f"x-{name.replace('_', '-')}": v for name, v in arguments.items()}
            ),
            durable=True,
            auto_delete=auto_delete,
            owner=None,
            clock=self.clock,
            bury=lambda _, entry, reason: self.dead.append((entry.message.body, reason)),
            vanish=self._vanish,
        )

    def publish(self, body: bytes, *, priority: int | None = None, expiration: str | None = None) -> bool:
        properties = Basic.Properties(priority=priority, expiration=expiration)
        return self.queue.publish(Message(exchange="", routing_key="q", properties=properties, body=body))

    def drain(self) -> list[bytes]:
        reader = Reader(credit=1000)
        self.queue.add_consumer(reader)
        self.queue.remove_consumer(reader)
        return reader.bodies

    def _vanish(self, queue: Queue) -> None:
        self.vanished = True
        queue.delete()


def test_a_message_leaves_when_its_time_is_up_although_nobody_looks() -> None:
    setting = Setting(message_ttl=500)
    setting.publish(b"a")
    setting.clock.advance(0.4)
    setting.publish(b"b")
    setting.clock.advance(0.2)
    assert setting.dead == [(b"a", DeathReason.EXPIRED)]
    setting.clock.advance(0.4)
    assert setting.dead == [(b"a", DeathReason.EXPIRED), (b"b", DeathReason.EXPIRED)]


def test_the_shorter_of_the_two_times_to_live_counts() -> None:
    setting = Setting(message_ttl=500)
    setting.publish(b"own is shorter", expiration="100")
    setting.clock.advance(0.2)
    setting.publish(b"own is longer", expiration="9000")
    setting.clock.advance(0.6)
    assert [body for body, _ in setting.dead] == [b"own is shorter", b"own is longer"]


def test_an_expired_message_behind_a_living_one_stays_and_is_counted() -> None:
    setting = Setting(max_priority=10)
    setting.publish(b"alive", priority=9)
    setting.publish(b"expired", priority=1, expiration="100")
    setting.clock.advance(1)
    assert (setting.queue.ready_count, setting.dead) == (2, [])
    assert setting.drain() == [b"alive"]
    assert setting.dead == [(b"expired", DeathReason.EXPIRED)]


def test_a_requeued_message_keeps_its_place_and_its_time_to_live() -> None:
    setting = Setting(max_priority=10, message_ttl=1000)
    for body in (b"a", b"b", b"c"):
        setting.publish(body, priority=5)
    reader = Reader(credit=2)
    setting.queue.add_consumer(reader)
    setting.queue.remove_consumer(reader)
    setting.clock.advance(0.5)
    setting.queue.requeue(reversed(reader.entries))
    assert [entry.redelivered for entry in reader.entries] == [True, True]
    assert setting.drain() == [b"a", b"b", b"c"]
    setting.queue.requeue(reader.entries)
    setting.clock.advance(0.6)
    assert [body for body, _ in setting.dead] == [b"a", b"b"]


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


def test_a_full_queue_refuses_until_an_expired_message_makes_room() -> None:
    setting = Setting(max_length=1, overflow="reject-publish", message_ttl=100)
    assert setting.publish(b"a")
    assert not setting.publish(b"b")
    setting.clock.advance(0.2)
    assert setting.publish(b"c")
    assert setting.dead == [(b"a", DeathReason.EXPIRED)]


def test_a_full_queue_that_drops_its_head_drops_the_highest_priority() -> None:
    setting = Setting(max_length=1, max_priority=10)
    setting.publish(b"low", priority=1)
    setting.publish(b"high", priority=9)
    assert setting.dead == [(b"high", DeathReason.MAXLEN)]


def test_what_is_delivered_does_not_count_towards_the_length() -> None:
    setting = Setting(max_length=1, overflow="reject-publish")
    setting.queue.add_consumer(Reader(credit=1))
    assert [setting.publish(body) for body in (b"delivered", b"waits", b"refused")] == [True, True, False]


def test_an_unused_queue_ends_after_x_expires_and_use_starts_the_time_anew() -> None:
    setting = Setting(expires=1000)
    setting.clock.advance(0.9)
    setting.publish(b"a message is no use")
    setting.queue.get()
    setting.clock.advance(0.9)
    reader = Reader(credit=0)
    setting.queue.add_consumer(reader)
    setting.clock.advance(5)
    assert not setting.vanished
    setting.queue.remove_consumer(reader)
    setting.clock.advance(1.1)
    assert setting.vanished


def test_an_auto_delete_queue_ends_with_its_last_consumer_but_not_before_its_first() -> None:
    setting = Setting(auto_delete=True)
    setting.clock.advance(10)
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
        ({"x-message-ttl": -1}, "x-message-ttl"),
        ({"x-expires": 0}, "x-expires"),
        ({"x-max-length": True}, "x-max-length"),
        ({"x-overflow": "reject-publish-dlx"}, "x-overflow"),
        ({"x-dead-letter-exchange": 5}, "x-dead-letter-exchange"),
        ({"x-dead-letter-routing-key": "k"}, "routing_key_but_no_dlx_defined"),
        ({"x-queue-type": "quorum"}, "classic queues only"),
        ({"x-single-active-consumer": True}, "x-single-active-consumer"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(
    arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(SoftError, match=complaint) as refusal:
        QueueArguments.read(arguments)
    assert refusal.value.code == 406


def test_arguments_of_storage_and_unknown_ones_are_ignored() -> None:
    read = QueueArguments.read({"x-queue-mode": "lazy", "x-queue-type": "classic", "x-of-mine": 1})
    assert read == QueueArguments()
