"""Acks are batched, and no tag is ever named twice: RabbitMQ would close the channel."""

from __future__ import annotations

import asyncio

from aio_pika.exceptions import ChannelInvalidStateError
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.frame import unmarshal

from inferfleet.worker.acknowledger import Acknowledger


class Channel:
    """Writes down the acks, and knows like a broker what they settle. It stands in for the stream, too."""

    number = 3

    def __init__(self) -> None:
        self.acks: list[tuple[int, bool]] = []
        self.unsettled: set[int] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, number: int, frames: bytes) -> None:
        assert number == self.number
        if self.closing.done():
            return
        while frames:
            consumed, channel, ack = unmarshal(frames)
            frames = frames[consumed:]
            assert isinstance(ack, Basic.Ack)
            assert channel == self.number
            assert ack.delivery_tag in self.unsettled, f"406: tag {ack.delivery_tag} is unknown"
            self.acks.append((ack.delivery_tag, ack.multiple))
            self.unsettled -= {
                tag
                for tag in self.unsettled
                if tag == ack.delivery_tag or (ack.multiple and tag < ack.delivery_tag)
            }

    async def basic_nack(self, delivery_tag: int, requeue: bool = False) -> None:
        assert requeue
        assert delivery_tag in self.unsettled, f"406: tag {delivery_tag} is unknown"
        await self.open.wait()
        if self.closing.done():
            raise ChannelInvalidStateError("closed")
        self.unsettled.discard(delivery_tag)

    def deliver(self, acknowledger: Acknowledger, *tags: int) -> None:
        for tag in tags:
            self.unsettled.add(tag)
            acknowledger.delivered(tag)


def pair() -> tuple[Channel, Acknowledger]:
    channel = Channel()
    return channel, Acknowledger(channel, channel)  # type: ignore[arg-type]


async def test_neighbours_that_have_finished_are_one_ack() -> None:
    channel, acknowledger = pair()
    channel.deliver(acknowledger, 1, 2, 3, 4)
    for tag in (3, 1, 2):
        acknowledger.ack(tag)
    acknowledger.flush()
    assert channel.acks == [(3, True)]
    assert channel.unsettled == {4}


async def test_a_slow_job_holds_up_nobody_behind_it() -> None:
    channel, acknowledger = pair()
    channel.deliver(acknowledger, 1, 2, 3, 4, 5)
    for tag in (1, 3, 5):
        acknowledger.ack(tag)
    acknowledger.flush()
    assert channel.acks == [(1, True), (3, False), (5, False)]
    assert channel.unsettled == {2, 4}
    acknowledger.ack(2)
    acknowledger.ack(4)
    acknowledger.flush()
    assert channel.acks[3:] == [(4, True)]
    assert channel.unsettled == set()


async def test_an_ack_that_comes_twice_is_written_once() -> None:
    channel, acknowledger = pair()
    channel.deliver(acknowledger, 1, 2)
    acknowledger.ack(1)
    acknowledger.ack(1)
    acknowledger.flush()
    acknowledger.ack(1)
    acknowledger.ack(99)
    acknowledger.flush()
    assert channel.acks == [(1, True)]


async def test_what_was_given_back_is_passed_over_by_the_acks_behind_it() -> None:
    channel, acknowledger = pair()
    channel.deliver(acknowledger, 1, 2, 3)
    await acknowledger.requeue(2)
    for tag in (1, 2, 3):
        acknowledger.ack(tag)
    acknowledger.flush()
    assert channel.acks == [(3, True)]


async def test_while_something_is_being_given_back_no_ack_names_it_or_reaches_past_it() -> None:
    channel, acknowledger = pair()
    channel.deliver(acknowledger, 1, 2, 3)
    channel.open.clear()
    returning = asyncio.create_task(acknowledger.requeue(2))
    await asyncio.sleep(0)
    for tag in (1, 2, 3):
        acknowledger.ack(tag)
    acknowledger.flush()
    assert (channel.acks, channel.unsettled) == ([(1, True), (3, False)], {2})
    channel.open.set()
    await returning
    assert (channel.unsettled, acknowledger.unsettled) == (set(), 0)


async def test_what_finishes_in_one_turn_of_the_event_loop_goes_out_together() -> None:
    channel, acknowledger = pair()
    channel.deliver(acknowledger, *range(1, 11))
    for tag in range(1, 10):
        acknowledger.ack(tag)
    assert channel.acks == []
    await asyncio.sleep(0)
    assert channel.acks == [(9, True)]
    acknowledger.ack(10)
    await asyncio.sleep(0)
    assert channel.acks == [(9, True), (10, True)]


async def test_acks_for_a_lost_connection_are_given_up() -> None:
    """The broker delivers these again, and the records say that they are done."""
    channel, acknowledger = pair()
    channel.deliver(acknowledger, 1)
    channel.closing.set_result(None)
    acknowledger.ack(1)
    acknowledger.flush()
    acknowledger.flush()
    assert channel.acks == []


async def test_it_counts_what_is_not_settled() -> None:
    channel, acknowledger = pair()
    channel.deliver(acknowledger, 1, 2, 3)
    assert acknowledger.unsettled == 3
    acknowledger.ack(2)
    assert [acknowledger.holds(tag) for tag in (1, 2, 3, 4)] == [True, False, True, False]
    acknowledger.flush()
    assert acknowledger.unsettled == 2


@given(
    st.lists(
        st.tuples(st.sampled_from(["deliver", "ack", "requeue", "flush"]), st.integers(0, 30)), max_size=80
    )
)
def test_whatever_the_order_every_finished_delivery_is_settled_once(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        channel, acknowledger = pair()
        delivered: list[int] = []
        finished: set[int] = set()
        for step, number in steps:
            match step:
                case "deliver":
                    delivered.append(len(delivered) + 1)
                    channel.deliver(acknowledger, delivered[-1])
                case "ack" if delivered:
                    tag = delivered[number % len(delivered)]
                    finished.add(tag)
                    acknowledger.ack(tag)
                case "requeue" if delivered:
                    await acknowledger.requeue(delivered[number % len(delivered)])
                case "flush":
                    acknowledger.flush()
                case _:
                    pass
        acknowledger.flush()
        assert not channel.unsettled & finished
        assert len(channel.unsettled) == acknowledger.unsettled

    asyncio.run(play())
