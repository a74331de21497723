"""Frames become messages, and everything else goes the usual way."""

from __future__ import annotations

import asyncio
from typing import Any

from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from inferfleet.worker.deliveries import Deliveries, Frame

Message = tuple[int | None, str | None, bytes]


async def sorted_out(*frames: object) -> tuple[list[Message], list[object]]:
    """Give frames to a channel: the messages that came of them, and what was passed on."""
    queue: asyncio.Queue[Frame] = asyncio.Queue()
    messages: list[Message] = []

    def arrived(deliver: Basic.Deliver, properties: Basic.Properties, body: bytes) -> None:
        messages.append((deliver.delivery_tag, properties.message_id, body))

    Deliveries.taken_from(queue, arrived)
    for frame in frames:
        await queue.put((1, frame))
    return messages, [queue.get_nowait()[1] for _ in range(queue.qsize())]


def deliver(tag: int) -> Basic.Deliver:
    return Basic.Deliver(consumer_tag="c", delivery_tag=tag, exchange="", routing_key="q")


def header(size: int, **properties: Any) -> ContentHeader:
    return ContentHeader(body_size=size, properties=Basic.Properties(**properties))


async def test_a_message_of_one_frame() -> None:
    messages, others = await sorted_out(deliver(1), header(3, message_id="a"), ContentBody(b"abc"))
    assert messages == [(1, "a", b"abc")]
    assert others == []


async def test_a_message_of_many_frames_between_two_others() -> None:
    messages, _ = await sorted_out(
        *(deliver(1), header(0, message_id="empty")),
        *(
            deliver(2),
            header(5, message_id="long"),
            ContentBody(b"ab"),
            ContentBody(b"cd"),
            ContentBody(b"e"),
        ),
        *(deliver(3), header(1, message_id="short"), ContentBody(b"x")),
    )
    assert messages == [(1, "empty", b""), (2, "long", b"abcde"), (3, "short", b"x")]


async def test_what_is_not_a_delivery_is_passed_on_in_order() -> None:
    answers = [Basic.ConsumeOk(consumer_tag="c"), Basic.Cancel(consumer_tag="c")]
    messages, others = await sorted_out(answers[0], deliver(1), header(1), ContentBody(b"x"), answers[1])
    assert [body for _, _, body in messages] == [b"x"]
    assert others == answers


async def test_the_content_of_another_method_is_passed_on() -> None:
    """A returned message, for example: only what follows a delivery belongs to it."""
    frames = [Basic.Return(reply_code=312), header(1), ContentBody(b"x")]
    messages, others = await sorted_out(*frames)
    assert messages == []
    assert others == frames
