"""Converts bytes to frames and back, without interpreting the frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pamqp import frame as frames
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from inferfleet.local.embedded.amqp_errors import HardError, unexpected_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inferfleet.local.embedded.queues import Message

FRAME_MAX = 131_072
FRAME_MIN = 4096
HEADER_SIZE = 7
OVERHEAD = HEADER_SIZE + 1
PROTOCOL_HEADER = ProtocolHeader().marshal()

Content = ContentHeader | ContentBody


class FrameBuffer:
    """Collects arriving bytes and returns them frame by frame.

    ``limit`` is the negotiated size in bytes: no frame may be larger, in either direction.
    """

    def __init__(self) -> None:
        self.limit = FRAME_MAX
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add arrived bytes."""
        self._bytes += data

    def clear(self) -> None:
        """Drop the remaining bytes, which do not count after an error."""
        self._bytes.clear()

    def take_protocol_header(self) -> bytes | None:
        """Take the first eight bytes of a connection, once they have arrived."""
        return self._take(len(PROTOCOL_HEADER))

    def take_frame(self) -> tuple[int, Frame | Content | Heartbeat] | None:
        """Take one frame with its channel's number; ``None`` while it is incomplete.

        Raises:
            HardError: The bytes are not a frame, or the frame is too large.

        """
        if len(self._bytes) < HEADER_SIZE:
            return None
        size = int.from_bytes(self._bytes[3:HEADER_SIZE]) + OVERHEAD
        if size > self.limit:
            raise HardError(501, f"FRAME_ERROR - a frame of {size} bytes; {self.limit} are agreed on")
        raw = self._take(size)
        if raw is None:
            return None
        try:
            _, number, frame = frames.unmarshal(raw)
        except PAMQPException as error:
            raise HardError(502, f"SYNTAX_ERROR - {error}") from error
        if isinstance(frame, ProtocolHeader):
            raise unexpected_frame("a protocol header in the middle of a connection")
        return number, frame

    def _take(self, size: int) -> bytes | None:
        if len(self._bytes) < size:
            return None
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        return taken


def marshal(number: int, method: Frame, message: Message | None, *, limit: int) -> Iterator[bytes]:
    """Turn a method, and the message that belongs to it, into frames no larger than ``limit`` bytes."""
    yield frames.marshal(method, number)
    if message is None:
        return
    yield frames.marshal(ContentHeader(body_size=len(message.body), properties=message.properties), number)
    room = limit - OVERHEAD
    for start in range(0, len(message.body), room):
        yield frames.marshal(ContentBody(message.body[start : start + room]), number)
