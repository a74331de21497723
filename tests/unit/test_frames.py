"""Frames are spelled and read as pamqp does it, whichever pieces they come in."""

from __future__ import annotations

import asyncio
import struct
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from inferfleet.wire.rabbitmq import frames
from inferfleet.wire.rabbitmq.frames import (
    DELIVER,
    HEARTBEAT,
    Contents,
    Properties,
    acknowledgement,
    confirmation,
    content_header,
    delivery,
    publishing,
)
from inferfleet.wire.rabbitmq.stream import FrameHandler, FrameReader

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


PROPERTIES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("content_type", "content_encoding", "correlation_id", "reply_to"), short_texts),
    **dict.fromkeys(("expiration", "message_id", "message_type", "user_id", "app_id"), short_texts),
    "delivery_mode": st.sampled_from([1, 2]),
    "priority": st.integers(0, 255),
    "headers": st.dictionaries(short_texts, st.one_of(short_texts, st.integers(0, 10), st.booleans())),
    "timestamp": st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
}


@given(st.integers(0, 2**40), st.fixed_dictionaries({}, optional=PROPERTIES))
def test_a_content_header_is_read(size: int, properties: dict[str, Any]) -> None:
    spelling = payload(ContentHeader(body_size=size, properties=Basic.Properties(**properties)))
    # pamqp writes no text that is empty.
    expected = {name: value for name, value in properties.items() if value != ""}
    if "timestamp" in expected:
        expected["timestamp"] = int(expected["timestamp"].timestamp())
    assert content_header(spelling) == (size, expected)


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(b"\x00\x00\x00\x03\x01aZ", id="a type that does not exist"),
        pytest.param(b"\x00\x00\x00\x04\x02\xff\xfet", id="a name that is not UTF-8"),
        pytest.param(struct.pack(">I", 60_000) + b"\x00F\x00\x00\xea\x00" * 10_000, id="tables in tables"),
    ],
)
def test_headers_that_cannot_be_read_are_left_out(table: bytes) -> None:
    flags = (1 << 15 | 1 << 13 | 1 << 7).to_bytes(2, "big")
    spelling = b"\x00\x3c\x00\x00" + (9).to_bytes(8, "big") + flags + b"\x01a" + table + b"\x01m"
    assert content_header(spelling) == (9, {"content_type": "a", "headers": {}, "message_id": "m"})


def test_headers_without_an_end_are_left_out_with_what_is_behind_them() -> None:
    flags = (1 << 15 | 1 << 13 | 1 << 7).to_bytes(2, "big")
    spelling = (
        b"\x00\x3c\x00\x00" + (9).to_bytes(8, "big") + flags + b"\x01a" + b"\x00\x00\xff\xff" + b"\x01m"
    )
    assert content_header(spelling) == (9, {"content_type": "a"})


def test_text_that_is_not_utf_8_is_no_error() -> None:
    flags = (1 << 7).to_bytes(2, "big")
    spelling = b"\x00\x3c\x00\x00" + (9).to_bytes(8, "big") + flags + b"\x03a\xff\xfe"
    assert content_header(spelling) == (9, {"message_id": "a\ufffd\ufffd"})


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


SHORT_TEXTS = (
    *("content_type", "content_encoding", "correlation_id", "reply_to", "expiration", "message_id"),
    *("message_type", "user_id", "app_id"),
)


@given(
    texts=st.dictionaries(st.sampled_from(SHORT_TEXTS), st.text(max_size=60)),
    octets=st.dictionaries(st.sampled_from(["delivery_mode", "priority"]), st.integers(0, 255)),
    size=st.integers(0, 2**40),
)
def test_short_properties_are_spelled_as_pamqp_spells_them(
    texts: dict[str, str], octets: dict[str, int], size: int
) -> None:
    properties = Basic.Properties()
    for name, value in (texts | octets).items():
        setattr(properties, name, value)
    spelling = ContentHeader(body_size=size, properties=properties).marshal()
    assert frames._content_header(properties, size) == spelling


@pytest.mark.parametrize(("name", "value"), [("message_id", "é" * 128), ("priority", 256), ("priority", -1)])
def test_a_short_property_that_does_not_fit_is_an_error(name: str, value: object) -> None:
    properties = Basic.Properties()
    setattr(properties, name, value)
    with pytest.raises(ValueError, match=name if name == "message_id" else "range"):
        frames._content_header(properties, 0)


def test_a_broker_without_a_limit_gets_the_whole_body() -> None:
    data = publishing(
        OURS,
        exchange="",
        routing_key="q",
        mandatory=False,
        properties=Basic.Properties(),
        body=b"x" * 200_000,
        frame_max=0,
    )
    assert sum(len(frame.value) for _, frame in unspelled(data)[2:]) == 200_000


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

    def arrived(method: bytes, properties: Properties, body: bytes) -> None:
        messages.append((delivery(method)[0], properties.get("message_id"), body))

    takers: dict[int, FrameHandler] = {OURS: Contents(DELIVER, arrived).take}
    reader = FrameReader(takers, asyncio.get_running_loop(), on_channel_end=takers.pop)
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
    reader = FrameReader({}, asyncio.get_running_loop(), on_channel_end=print)
    half = message(1, "a", b"x")[:-5]
    reader.feed_data(half)
    reader.feed_eof()
    assert await reader.read() == half


async def test_after_the_end_of_a_channel_nothing_is_taken() -> None:
    end = Basic.Cancel(consumer_tag="c")
    messages, others = await sorted_out(
        spelled(Channel.Close(reply_code=404, reply_text="", class_id=0, method_id=0))
        + message(1, "late", b"x")
        + spelled(end)
    )
    assert messages == []
    names = ["Channel.Close", "Basic.Deliver", "ContentHeader", "ContentBody", "Basic.Cancel"]
    assert [frame.name for _, frame in others] == names
