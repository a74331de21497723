"""One client's connection: the handshake, frames in and out, heartbeats, and closing after errors."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum, auto
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from pamqp.base import Frame
from pamqp.commands import Channel as ChannelMethod
from pamqp.commands import Connection as ConnectionMethod
from pamqp.heartbeat import Heartbeat

from inferfleet.local.embedded.amqp_errors import (
    AmqpError,
    HardError,
    SoftError,
    not_implemented,
    unexpected_frame,
)
from inferfleet.local.embedded.channel import Channel
from inferfleet.local.embedded.framing import (
    FRAME_MAX,
    FRAME_MIN,
    PROTOCOL_HEADER,
    Content,
    FrameBuffer,
    marshal,
)
from inferfleet.local.embedded.queues import Message
from inferfleet.local.embedded.virtual_host import VirtualHost

if TYPE_CHECKING:
    from pamqp.common import FieldTable

logger = logging.getLogger(__name__)

USER, PASSWORD = "guest", "guest"
CHANNEL_MAX = 2047
HEARTBEAT_S = 60
CLOSE_TIMEOUT_S = 5.0
REPLY_TEXT_BYTES = 255

SERVER_PROPERTIES: FieldTable = {
    "product": "inferfleet embedded broker",
    "version": version("inferfleet"),
    "platform": "Python",
    "capabilities": {
        "authentication_failure_close": True,
        "basic.nack": True,
        "consumer_cancel_notify": True,
        "publisher_confirms": True,
    },
}


class State(Enum):
    """The state of a connection."""

    GREETING = auto()
    AUTHENTICATING = auto()
    TUNING = auto()
    OPENING = auto()
    OPEN = auto()
    CLOSING = auto()


class ClientConnection(asyncio.Protocol):
    """Speaks AMQP 0-9-1 with one client."""

    def __init__(self, host: VirtualHost, *, connections: set[ClientConnection]) -> None:
        self._host = host
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._state = State.GREETING
        self._buffer = FrameBuffer()
        self._to_send: list[bytes] = []
        self._channels: dict[int, Channel] = {}
        # Channels that we closed: ignore what the client sends on them until it has noticed.
        self._closing: set[int] = set()
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a client, which sends first."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Handle every complete frame."""
        self._heard_at = self._loop.time()
        self._buffer.feed(data)
        try:
            if self._state is State.GREETING and (header := self._buffer.take_protocol_header()) is not None:
                self._greet(header)
            while self._listening() and (received := self._buffer.take_frame()) is not None:
                self._handle(*received)
        except HardError as error:
            self._close(error)
        except Exception:
            # The client must see a bug in this broker as a failure of the broker, not as silence.
            logger.exception("the embedded broker failed")
            self._close(HardError(541, "INTERNAL_ERROR"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Requeue everything that the disconnected client had."""
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._release()

    def abort(self) -> None:
        """Abort the connection, as a killed broker would."""
        self._transport.abort()

    # Frames in

    def _listening(self) -> bool:
        return self._state is not State.GREETING and not self._transport.is_closing()

    def _handle(self, number: int, frame: Frame | Content | Heartbeat) -> None:
        if isinstance(frame, Heartbeat):
            return
        if self._state is State.CLOSING:
            if isinstance(frame, ConnectionMethod.CloseOk):
                self._transport.close()
        elif number != 0:
            self._handle_on_channel(number, frame)
        elif self._state is State.OPEN:
            self._handle_when_open(frame)
        else:
            self._shake_hands(frame)

    def _greet(self, header: bytes) -> None:
        if header != PROTOCOL_HEADER:
            # As specified for an unknown protocol: send our own protocol header, and close.
            self._transport.write(PROTOCOL_HEADER)
            self._transport.close()
            return
        self._state = State.AUTHENTICATING
        self._send(0, ConnectionMethod.Start(server_properties=SERVER_PROPERTIES, mechanisms="PLAIN"))

    def _shake_hands(self, frame: Frame | Content) -> None:
        match self._state, frame:
            case State.AUTHENTICATING, ConnectionMethod.StartOk():
                if frame.mechanism != "PLAIN" or frame.response.split("\0")[-2:] != [USER, PASSWORD]:
                    raise HardError(
                        403,
                        "ACCESS_REFUSED - Login was refused using authentication mechanism "
                        f"{frame.mechanism}. For details see the broker logfile.",
                    )
                self._state = State.TUNING
                self._send(
                    0,
                    ConnectionMethod.Tune(
                        channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT_S
                    ),
                )
            case State.TUNING, ConnectionMethod.TuneOk():
                if 0 < frame.frame_max < FRAME_MIN:
                    raise HardError(530, f"NOT_ALLOWED - frame_max {frame.frame_max} is below {FRAME_MIN}")
                self._buffer.limit = min(frame.frame_max or FRAME_MAX, FRAME_MAX)
                self._state = State.OPENING
                if frame.heartbeat:
                    self._beat_later(frame.heartbeat)
            case State.OPENING, ConnectionMethod.Open():
                if frame.virtual_host != "/":
                    raise HardError(530, f"NOT_ALLOWED - vhost {frame.virtual_host} not found")
                self._state = State.OPEN
                self._send(0, ConnectionMethod.OpenOk())
            case _:
                raise unexpected_frame(f"{frame.name} during the handshake")

    def _handle_when_open(self, frame: Frame | Content) -> None:
        match frame:
            case ConnectionMethod.Close():
                self._release()
                self._send(0, ConnectionMethod.CloseOk())
                self._flush()
                self._transport.close()
            case _:
                raise not_implemented(f"{frame.name} on channel 0")

    def _handle_on_channel(self, number: int, frame: Frame | Content) -> None:
        if self._state is not State.OPEN:
            raise unexpected_frame("a channel before the connection is open")
        if number in self._closing:
            if isinstance(frame, ChannelMethod.CloseOk):
                self._closing.remove(number)
            elif isinstance(frame, ChannelMethod.Close):
                self._send(number, ChannelMethod.CloseOk())
            return
        channel = self._channels.get(number)
        match frame:
            case ChannelMethod.Open() if channel is None:
                self._channels[number] = Channel(
                    host=self._host, owner=self, send=partial(self._send, number)
                )
                self._send(number, ChannelMethod.OpenOk())
            case ChannelMethod.Close() if channel is not None:
                del self._channels[number]
                channel.close()
                self._send(number, ChannelMethod.CloseOk())
            case _ if channel is None:
                raise HardError(504, f"CHANNEL_ERROR - {frame.name} on channel {number}, which is not open")
            case _:
                try:
                    channel.receive(frame)
                except SoftError as error:
                    self._close_channel(number, channel, frame, error)

    # Frames out

    def _send(self, number: int, method: Frame, message: Message | None = None) -> None:
        """Queue frames, which leave together in the next turn of the loop, in one system call."""
        if not self._to_send:
            self._loop.call_soon(self._flush)
        self._to_send.extend(marshal(number, method, message, limit=self._buffer.limit))

    def _flush(self) -> None:
        if self._to_send and not self._transport.is_closing():
            self._transport.write(b"".join(self._to_send))
        self._to_send.clear()

    def _beat(self, interval_s: int) -> None:
        """Send a heartbeat; disconnect a client that was silent for two intervals."""
        if self._loop.time() - self._heard_at > 2 * interval_s:
            logger.warning("a client missed its heartbeats of %d s; its connection is cut", interval_s)
            self.abort()
            return
        self._transport.write(Heartbeat().marshal())
        self._beat_later(interval_s)

    def _beat_later(self, interval_s: int) -> None:
        self._timer = self._loop.call_later(interval_s / 2, self._beat, interval_s)

    # Ends

    def _close_channel(self, number: int, channel: Channel, frame: Frame | Content, error: AmqpError) -> None:
        del self._channels[number]
        self._closing.add(number)
        channel.close()
        class_id, method_id = divmod(frame.index, 1 << 16) if isinstance(frame, Frame) else (0, 0)
        self._send(
            number,
            ChannelMethod.Close(
                reply_code=error.code,
                reply_text=_short(error.text),
                class_id=class_id,
                method_id=method_id,
            ),
        )

    def _close(self, error: AmqpError) -> None:
        if self._state is State.CLOSING:
            return
        self._state = State.CLOSING
        self._buffer.clear()
        self._release()
        self._send(
            0,
            ConnectionMethod.Close(
                reply_code=error.code, reply_text=_short(error.text), class_id=0, method_id=0
            ),
        )
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    def _release(self) -> None:
        """Requeue the client's unacked messages, and delete its exclusive queues."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()
        self._host.disown(self)


def _short(text: str) -> str:
    """Cut to what fits into a short string."""
    return text.encode()[:REPLY_TEXT_BYTES].decode(errors="ignore")
