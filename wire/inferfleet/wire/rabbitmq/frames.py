"""Encodes and decodes the AMQP frames of a message.

This module handles only the frames that go over the wire once per message; aiormq reads and writes all
others. Section numbers are those of the AMQP 0-9-1 specification.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from pamqp.base import Frame
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader

from inferfleet.wire.rabbitmq.headers import field_table, spelled

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
"""Types of frames (4.2.3)."""

FRAME_START: Final = struct.Struct(">BHI")
"""Type, channel and size of the payload. After the payload comes one more byte, ``FRAME_END`` (4.2.3)."""

FRAME_END: Final = b"\xce"

FRAME_OVERHEAD: Final = FRAME_START.size + len(FRAME_END)
"""The bytes of a frame besides its payload."""

UNLIMITED_FRAME: Final = 131_072
"""The largest frame that we write if the broker sets no limit, which is a ``frame_max`` of 0."""

SMALLEST_FRAME_MAX: Final = 4096
"""The frame size that every peer accepts (4.2.3)."""

HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00" + FRAME_END
"""A heartbeat frame (4.2.7)."""

_TAG_AND_BITS: Final = struct.Struct(">QB")

_CONTENT_HEADER: Final = struct.Struct(">4xQH")

_CONTENT_HEADER_START: Final = struct.Struct(">HHQH")

LONGEST_SHORT_TEXT: Final = 255
"""The longest short string, in bytes (4.2.5.3)."""

Read = Callable[[bytes, int], tuple[int, Any]]
"""Reads the value at a position, and returns where it ends and the value."""


def _short_text(data: bytes, start: int) -> tuple[int, str]:
    end = start + 1 + data[start]
    return end, data[start + 1 : end].decode(errors="replace")


def _octet(data: bytes, start: int) -> tuple[int, int]:
    return start + 1, data[start]


def _seconds(data: bytes, start: int) -> tuple[int, int]:
    return start + 8, int.from_bytes(data[start : start + 8], "big")


_PROPERTIES: Final[tuple[tuple[str, Read], ...]] = (
    ("content_type", _short_text),
    ("content_encoding", _short_text),
    ("headers", field_table),
    ("delivery_mode", _octet),
    ("priority", _octet),
    ("correlation_id", _short_text),
    ("reply_to", _short_text),
    ("expiration", _short_text),
    ("message_id", _short_text),
    ("timestamp", _seconds),
    ("message_type", _short_text),
    ("user_id", _short_text),
    ("app_id", _short_text),
    ("cluster_id", _short_text),
)
"""The properties in the order of their flags (4.2.6.1), with the functions that read them."""

_SHORT: Final = tuple(
    (1 << bit, name)
    for bit, (name, read) in zip(range(15, 1, -1), _PROPERTIES, strict=True)
    if read in {_short_text, _octet}
)
"""The properties that are a short string or an octet, with their flags."""


def _method(frame: type[Frame]) -> bytes:
    """Return the first four bytes of a method's payload: the ids of its class and method."""
    return frame.index.to_bytes(4, "big")


DELIVER: Final = _method(Basic.Deliver)
RETURN: Final = _method(Basic.Return)
GET_OK: Final = _method(Basic.GetOk)
GET_EMPTY: Final = _method(Basic.GetEmpty)
ACK: Final = _method(Basic.Ack)
NACK: Final = _method(Basic.Nack)
CHANNEL_ENDS: Final = (_method(Channel.Close), _method(Channel.CloseOk))
CONNECTION_ENDS: Final = _method(Connection.Close)


CONNECTION_FORCED: Final = 320
"""The code for a connection that an operator, or a broker that shuts down, closes (1.2)."""


def delivery(method: bytes) -> tuple[int, str]:
    """Read the delivery tag and the consumer's tag of a ``Basic.Deliver``."""
    end = 5 + method[4]
    return int.from_bytes(method[end : end + 8], "big"), method[5:end].decode()


def confirmation(method: bytes) -> tuple[int, bool]:
    """Read the tag of a ``Basic.Ack`` or ``Basic.Nack``, and whether it covers all earlier tags."""
    tag, bits = _TAG_AND_BITS.unpack_from(method, 4)
    return tag, bool(bits & 1)


def close_reason(method: bytes) -> tuple[int, str]:
    """Read the code and the text of a ``Connection.Close``."""
    return int.from_bytes(method[4:6], "big"), _short_text(method, 6)[1]


def acknowledgement(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Encode a ``Basic.Ack``."""
    return _frame(METHOD, channel, ACK + _TAG_AND_BITS.pack(tag, multiple))


def get(channel: int, queue: str) -> bytes:
    """Encode a ``Basic.Get``."""
    return _frame(METHOD, channel, _method(Basic.Get) + Basic.Get(queue=queue).marshal())


def publishing(
    channel: int,
    *,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    properties: Basic.Properties,
    body: bytes,
    frame_max: int,
) -> bytes:
    """Encode a message: the method, the header, and the body in frames of at most ``frame_max`` bytes.

    Raises:
        ValueError: A property, the exchange or the routing key cannot be encoded, or the properties do not
            fit into a frame.

    """
    header = _content_header(properties, len(body))
    most = (frame_max or UNLIMITED_FRAME) - FRAME_OVERHEAD
    if frame_max and len(header) > max(most, SMALLEST_FRAME_MAX - FRAME_OVERHEAD):
        # If it were written, the broker would close the connection of all messages on it.
        raise ValueError(f"the properties take {len(header):,} bytes, and the broker takes {most:,}")
    bodies = (body[start : start + most] for start in range(0, len(body), most))
    return b"".join(
        (
            _publish_frame(channel, exchange, routing_key, mandatory),
            _frame(HEADER, channel, header),
            *(_frame(BODY, channel, part) for part in bodies),
        )
    )


def _content_header(properties: Basic.Properties, size: int) -> bytes:
    """Encode a content header. For strings and octets, as jobs have, this takes a quarter of pamqp's time."""
    if properties.headers or properties.timestamp is not None:
        return ContentHeader(body_size=size, properties=properties).marshal()
    flags = 0
    parts: list[bytes] = []
    for flag, name in _SHORT:
        value: str | int | None = getattr(properties, name)
        if value is None or value == "":
            continue
        flags |= flag
        spelled_value = value.encode() if isinstance(value, str) else b""
        if len(spelled_value) > LONGEST_SHORT_TEXT:
            raise ValueError(f"{name}: is longer than {LONGEST_SHORT_TEXT} bytes")
        parts.append(
            bytes((len(spelled_value),)) + spelled_value if isinstance(value, str) else bytes((value,))
        )
    return b"".join((_CONTENT_HEADER_START.pack(60, 0, size, flags), *parts))


@lru_cache(maxsize=128)
def _publish_frame(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    return _frame(METHOD, channel, _method(Basic.Publish) + publish.marshal())


class SpelledProperties(Basic.Properties):
    """Properties of a message whose headers are encoded already: the entries of their table."""

    def __init__(self, headers: bytes, **properties: Any) -> None:
        super().__init__(headers={"spelled": True}, **properties)
        self._spelled = spelled(headers)

    def encode_property(self, name: str, value: Any) -> bytes:
        """Encode one property."""
        return self._spelled if name == "headers" else super().encode_property(name, value)


def content_header(payload: bytes) -> tuple[int, Properties]:
    """Read the size of the body and the properties from a content header (4.2.6.1).

    Leaves out a truncated property and those behind it. An error here would close the connection, and the
    broker would deliver the same message again.
    """
    size, flags = _CONTENT_HEADER.unpack_from(payload)
    properties: Properties = {}
    position, most = _CONTENT_HEADER.size, len(payload)
    with suppress(ValueError, IndexError):
        for name, read in _present(flags):
            end, value = read(payload, position)
            if end > most:
                break
            properties[name], position = value, end
    return size, properties


@lru_cache(maxsize=128)
def _present(flags: int) -> tuple[tuple[str, Read], ...]:
    """Return the properties that a header has, in order. The highest bit is the first property."""
    return tuple(each for bit, each in zip(range(15, 1, -1), _PROPERTIES, strict=True) if flags >> bit & 1)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return FRAME_START.pack(kind, channel, len(payload)) + payload + FRAME_END


Properties = dict[str, Any]
"""The properties of a message, by their names in the specification."""

OnMessage = Callable[[bytes, Properties, bytes], None]
"""A callback that gets the method that brought a message, the message's properties, and its body."""


class Contents:
    """Assembles messages: a method that brings one, its header, and bodies up to the header's size."""

    def __init__(self, method: bytes, on_message: OnMessage) -> None:
        self._method = method
        self._on_message = on_message
        self._begun: bytes | None = None
        self._properties: Properties = {}
        self._parts: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, payload: bytes) -> bool:
        """Take a frame. Return false if it does not belong to such a message."""
        if kind == METHOD:
            if not payload.startswith(self._method):
                return False
            self._begun = payload
            return True
        if self._begun is None:
            return False
        if kind == HEADER:
            self._missing, self._properties = content_header(payload)
            self._parts = []
        else:
            self._parts.append(payload)
            self._missing -= len(payload)
        if self._missing <= 0:
            method, self._begun = self._begun, None
            self._on_message(method, self._properties, b"".join(self._parts))
        return True
