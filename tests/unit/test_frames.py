"""Frames are spelled and read as pamqp does it, whichever pieces they come in."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from inferfleet.wire.frames import (
    DELIVER,
    HEARTBEAT,
    Contents,
    acknowledgement,
    confirmation,
    delivery,
    publishing,
)
from inferfleet.wire.stream import FrameReader

OURS = 3
OTHER = 4

tags = st.integers(min_value=1, max_value=2**63 - 1)
short_texts = st.text(max_size=30).filter(lambda text: len(text.encode()) <= 255)


def spelled(frame: Any, channel: int = OURS) -> bytes:
    return pamqp_frame.marshal(frame, channel)


def payload(frame: Any) -> bytes:
    return spelled(frame)[7:-1]


def deliver(tag: int, consumer: str = "c") -> Basic.Deliver:
    return Basic.Deliver(consumer_tag=consumer, delivery_tag=tag, exchange="x", routing_key="q")


def header(size: int, **properties: Any) -> ContentHeader:
    return ContentHeader(body_size=size, properties=Basic.Properties(**properties))


def unspelled(data: bytes) -> list[tuple[int, Any]]:
    """Read frames with pamqp: each with its channel."""
    frames: list[tuple[int, Any]] = []
    while data:
        consumed, channel, frame = pamqp_frame.unmarshal(data)
        frames.append((channel, frame))
        data = data[consumed:]
    return frames


@given(tags, short_texts)
def test_a_delivery_is_read(tag: int, consumer: str) -> None:
    assert delivery(payload(deliver(tag, consumer))) == (tag, consumer)


@given(tags, st.booleans())
def test_a_confirmation_is_read(tag: int, multiple: bool) -> None:
    assert confirmation(payload(Basic.Ack(delivery_tag=tag, multiple=multiple))) == (tag, multiple)
    # The second bit of a nack, requeue, means nothing to a publisher.
    assert confirmation(payload(Basic.Nack(delivery_tag=tag, multiple=multiple))) == (tag, multiple)


@given(tags, st.booleans())
def test_an_acknowledgement_is_spelled(tag: int, multiple: bool) -> None:
    expected = spelled(Basic.Ack(delivery_tag=tag, multiple=multiple))
    assert acknowledgement(OURS, tag, multiple=multiple) == expected


@given(
    exchange=st.sampled_from(["", "jobs"]),
    routing_key=st.sampled_from(["", "pool-a"]),
    size=st.integers(0, 50),
)
def test_a_message_is_spelled(exchange: str, routing_key: str, size: int) -> None:
    properties = Basic.Properties(message_id="a", priority=5, headers={"traceparent": "00"})
    body = bytes(range(size))
    data = publishing(
        OURS,
        exchange=exchange,
        routing_key=routing_key,
        mandatory=True,
        properties=properties,
        body=body,
        frame_max=8 + 16,
    )
    (channel, publish), (_, head), *bodies = unspelled(data)
    assert channel == OURS
    assert isinstance(publish, Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == (exchange, routing_key, True)
    assert isinstance(head, ContentHeader)
    assert head.body_size == size
    assert dict(head.properties) == dict(properties)
    assert b"".join(part.value for _, part in bodies) == body
    assert all(0 < len(part.value) <= 16 for _, part in bodies)


def test_a_property_that_cannot_be_spelled_is_an_error() -> None:
    with pytest.raises((TypeError, ValueError)):
        publishing(
            OURS,
            exchange="x" * 300,
            routing_key="",
            mandatory=False,
            properties=Basic.Properties(),
            body=b"",
            frame_max=100,
        )


def test_a_heartbeat_is_one() -> None:
    assert spelled(Heartbeat(), 0) == HEARTBEAT


Message = tuple[int, str | None, bytes]


async def sorted_out(data: bytes, *cuts: int) -> tuple[list[Message], list[tuple[int, Any]]]:
    """Feed bytes, cut into pieces: the messages that came of them, and the frames that aiormq gets."""
    messages: list[Message] = []

    def arrived(method: bytes, properties: Basic.Properties, body: bytes) -> None:
        messages.append((delivery(method)[0], properties.message_id, body))

    reader = FrameReader({OURS: Contents(DELIVER, arrived).take}, asyncio.get_running_loop())
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        reader.feed_data(data[start:end])
    reader.feed_eof()
    return messages, unspelled(await reader.read())


def message(tag: int, message_id: str, *parts: bytes, channel: int = OURS) -> bytes:
    head = header(sum(len(part) for part in parts), message_id=message_id)
    return b"".join(
        spelled(frame, channel) for frame in (deliver(tag), head, *(ContentBody(part) for part in parts))
    )


CONSUME_OK = Basic.ConsumeOk(consumer_tag="c")
CANCEL = Basic.Cancel(consumer_tag="c")


@given(st.lists(st.integers(min_value=0), max_size=12))
async def test_messages_are_taken_and_all_else_is_passed_on_in_order(cuts: list[int]) -> None:
    data = b"".join(
        (
            spelled(CONSUME_OK),
            message(1, "empty"),
            message(2, "long", b"ab", b"cd", b"e"),
            spelled(Heartbeat(), 0),
            message(9, "not ours", b"y", channel=OTHER),
            message(3, "short", b"x"),
            spelled(CANCEL),
        )
    )
    messages, others = await sorted_out(data, *cuts)
    assert messages == [(1, "empty", b""), (2, "long", b"abcde"), (3, "short", b"x")]
    assert [(channel, frame.name) for channel, frame in others if frame.name != "Heartbeat"] == [
        (OURS, "Basic.ConsumeOk"),
        *((OTHER, "Basic.Deliver"), (OTHER, "ContentHeader"), (OTHER, "ContentBody")),
        (OURS, "Basic.Cancel"),
    ]


async def test_the_content_of_another_method_is_passed_on() -> None:
    """A returned message, for example: only what follows a delivery belongs to it."""
    returned = Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="x", routing_key="q")
    frames = (returned, header(1), ContentBody(b"x"))
    messages, others = await sorted_out(b"".join(spelled(frame) for frame in frames))
    assert messages == []
    assert [frame.name for _, frame in others] == ["Basic.Return", "ContentHeader", "ContentBody"]


async def test_messages_that_were_taken_are_a_sign_of_life() -> None:
    """RabbitMQ sends no heartbeats beside them, and aiormq would give the connection up."""
    _, others = await sorted_out(message(1, "a", b"x"))
    assert others == [(0, others[0][1])]
    assert isinstance(others[0][1], Heartbeat)


async def test_a_frame_that_breaks_off_is_left_to_aiormq() -> None:
    reader = FrameReader({}, asyncio.get_running_loop())
    half = message(1, "a", b"x")[:-5]
    reader.feed_data(half)
    reader.feed_eof()
    assert await reader.read() == half
