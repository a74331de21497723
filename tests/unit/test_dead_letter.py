"""A dead letter can be made of any message, published in any frame, and read by any client."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import frame as pamqp_frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from inferfleet.schemas import Failure, FailureCode
from inferfleet.schemas.message import derived_id
from inferfleet.wire.rabbitmq.frames import content_header, publishing
from inferfleet.worker.broker import Delivery, Subscription
from inferfleet.worker.dead_letter import dead_letter

NOW = datetime.now(UTC)
FRAMES = (4096, 8192, 131_072)

short_texts = st.one_of(st.binary(max_size=255), st.text(max_size=60).map(lambda text: text.encode()[:255]))
any_values = st.one_of(
    st.sampled_from([b"V", b"t\x01", b"B\xfa", b"T" + b"\xff" * 8, b"Z", b"I\x00\x00\x00\x01"]),
    st.binary(max_size=300).map(lambda text: b"S" + struct.pack(">I", len(text)) + text),
    st.binary(max_size=30).map(lambda data: b"A" + struct.pack(">I", len(data)) + data),
    st.binary(max_size=30).map(lambda data: b"F" + struct.pack(">I", len(data)) + data),
    st.binary(max_size=20),
)
NAMES = [b"CC", b"BCC", b"x-death", b"x-inferfleet-code", b"x-inferfleet-left-out", b"k", b"\xff"]
entries = st.tuples(st.one_of(st.sampled_from(NAMES), st.binary(max_size=255)), any_values).map(
    lambda pair: bytes([len(pair[0])]) + pair[0] + pair[1]
)
tables = st.lists(entries, max_size=40).map(b"".join)


@st.composite
def content_headers(draw: st.DrawFn) -> bytes:
    flags, spelled = 0, b""
    for bit in range(15, 1, -1):
        if not draw(st.booleans()):
            continue
        flags |= 1 << bit
        match bit:
            case 13:
                table = draw(tables)
                spelled += struct.pack(">I", len(table)) + table
            case 12 | 11:
                spelled += bytes([draw(st.integers(0, 255))])
            case 6:
                spelled += struct.pack(">Q", draw(st.integers(0, 2**64 - 1)))
            case _:
                text = draw(short_texts)
                spelled += bytes([len(text)]) + text
    return struct.pack(">HHQH", 60, 0, 7, flags) + spelled


def delivered(header: bytes, body: bytes = b"no job.") -> Delivery:
    _, properties = content_header(header)
    return Delivery(
        subscription=cast("Subscription", None),
        tag=1,
        body=body,
        message_id=properties.get("message_id"),
        reply_to=properties.get("reply_to", ""),
        headers=properties.get("headers", {}),
        properties=properties,
    )


def published(letter: Any, *, frame_max: int) -> tuple[ContentHeader, bytes]:
    """Spell a letter, and read it as another client does."""
    data = publishing(
        1,
        exchange="x",
        routing_key="q",
        mandatory=True,
        properties=letter.properties,
        body=letter.body,
        frame_max=frame_max,
    )
    frames: list[Any] = []
    while data:
        consumed, _, frame = pamqp_frame.unmarshal(data)
        assert consumed <= frame_max
        frames.append(frame)
        data = data[consumed:]
    method, head, *bodies = frames
    assert isinstance(method, Basic.Publish)
    assert isinstance(head, ContentHeader)
    return head, b"".join(part.value for part in bodies)


@settings(max_examples=300)
@given(content_headers(), st.sampled_from(FRAMES), st.text(max_size=4096))
def test_any_message_becomes_a_letter_that_every_client_reads(
    header: bytes, frame_max: int, why: str
) -> None:
    failure = Failure(code=FailureCode.INVALID_REQUEST, message=why)
    letter = dead_letter(
        delivered(header), failure, attempts=0, worker_id="w" * 128, died_at=NOW, frame_max=frame_max
    )
    head, body = published(letter, frame_max=frame_max)
    assert body == b"no job."
    properties = head.properties
    found = properties.headers or {}
    assert found["x-inferfleet-code"] == "invalid_request"
    assert (properties.delivery_mode, properties.expiration, properties.user_id) == (2, None, None)
    assert properties.message_id
    assert not {"CC", "BCC", "x-death"} & set(found)
    assert len(str(found.get("x-inferfleet-left-out", ""))) <= 512


def header_of(entries: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, 7, 1 << 13) + struct.pack(">I", len(entries)) + entries


def letter_of(header: bytes, *, frame_max: int = 131_072) -> dict[str, Any]:
    """The headers of a letter, without ours but for what was left out."""
    failure = Failure(code=FailureCode.INVALID_REQUEST, message="why")
    letter = dead_letter(
        delivered(header), failure, attempts=0, worker_id="w", died_at=NOW, frame_max=frame_max
    )
    head, _ = published(letter, frame_max=frame_max)
    headers = dict(head.properties.headers or {})
    for name in ("code", "message", "attempts", "worker", "died-at"):
        del headers[f"x-inferfleet-{name}"]
    return headers


@pytest.mark.parametrize(
    ("entries", "carried", "left_out"),
    [
        pytest.param(b"\x01kB\xfa", {"k": 250}, None, id="an unsigned byte"),
        pytest.param(b"\x01kS\x00\x00\x00\x01\xff", {"k": b"\xff"}, None, id="bytes"),
        pytest.param(b"\x02\xff\xfet\x01", {}, r"header '\\xff\\xfe'", id="a name that is no text"),
        pytest.param(b"\x01kT" + b"\xff" * 8 + b"\x01bt\x01", {"b": True}, "header 'k'", id="a far time"),
        pytest.param(b"\x02CCA\x00\x00\x00\x00", {}, "header 'CC'", id="CC"),
        pytest.param(
            b"\x01kZ\x01bt\x01", {}, "headers after one without an end", id="a type that does not exist"
        ),
        pytest.param(b"\x11x-inferfleet-codet\x01", {}, "header 'x-inferfleet-code'", id="a name of ours"),
    ],
)
def test_what_is_left_out_is_said(entries: bytes, carried: dict[str, Any], left_out: str | None) -> None:
    expected = carried if left_out is None else carried | {"x-inferfleet-left-out": left_out}
    assert letter_of(header_of(entries)) == expected


def test_headers_that_do_not_fit_are_left_out_and_the_others_carried() -> None:
    large = b"\x01lS" + struct.pack(">I", 7000) + b"y" * 7000
    assert letter_of(header_of(large + b"\x01kt\x01"), frame_max=8192) == {
        "k": True,
        "x-inferfleet-left-out": "header 'l'",
    }


def test_a_message_without_an_id_gets_one_that_is_always_the_same() -> None:
    header = header_of(b"")
    failure = Failure(code=FailureCode.INVALID_REQUEST, message="why")
    letter = dead_letter(
        delivered(header), failure, attempts=0, worker_id="w", died_at=NOW, frame_max=131_072
    )
    assert letter.properties.message_id == derived_id(b"no job.", None)
