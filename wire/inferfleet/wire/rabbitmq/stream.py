"""The byte stream of a connection to RabbitMQ, some frames of which are read and written without aiormq.

aiormq reads each frame with three awaits, and passes it through two queues and a task. For the frames that
every message has, that is a fifth of a job's CPU time in a worker. So a channel's owner may take frames as
they arrive, and write some. aiormq does not see these frames; it handles the rest of the protocol.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from aiormq.connection import SSLContextProvider, TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from inferfleet.wire.rabbitmq.frames import (
    CHANNEL_ENDS,
    CONNECTION_ENDS,
    FRAME_OVERHEAD,
    FRAME_START,
    HEARTBEAT,
    METHOD,
    close_reason,
)
from inferfleet.wire.transports import abort

FrameHandler = Callable[[int, bytes], bool]
"""Gets a frame's type and payload, and returns true if it took the frame."""

LIFE_SIGN_S: Final = 1.0
"""How often aiormq gets a heartbeat frame while all other frames are taken."""

SILENT_TICKS: Final = 2
"""In so many halves of a heartbeat interval a live broker has sent something."""

DEAD_TICKS: Final = 4
"""After so many halves of a heartbeat interval a silent broker counts as dead: two intervals (4.2.7)."""

WRITE_AT_ONCE: Final = 65_536
"""So many collected bytes are written before the turn of the event loop is over."""

KEEPALIVE_S: Final = 20
"""After so long without traffic TCP probes the peer. This helps if heartbeats are off."""

KEEPALIVE_PROBES: Final = 3
KEEPALIVE_PROBE_S: Final = 5


class FrameStream(TransportFactory):
    """The stream of one connection, to an address of the URL's host."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._takers: dict[int, FrameHandler] = {0: self._look_for_the_end}
        self._writer: asyncio.StreamWriter | None = None
        self._reader: FrameReader | None = None
        self._silent_ticks = 0
        self._collecting = False
        """Whether something was written in this turn of the event loop."""
        self._collected: list[bytes] = []
        """What else was, and leaves with one system call at its end."""
        self._collected_bytes = 0
        self.closed_with: tuple[int, str] | None = None
        """The code and text with which the broker has closed the connection, if it did so properly."""

    @property
    def closing(self) -> bool:
        """Whether this side knows that the connection is ending."""
        return self._writer is None or self._writer.is_closing()

    @property
    def silent(self) -> bool:
        """Whether the broker has missed a heartbeat."""
        return self._silent_ticks >= SILENT_TICKS

    def watch(self, heartbeat_s: float) -> None:
        """Abort the connection when nothing has arrived for two heartbeats; aiormq waits for more than three.

        An idle broker sends a heartbeat at least every ``heartbeat_s``. The time is counted in ticks, because
        after a suspension of the process the clock is far ahead.
        """
        if not heartbeat_s or self._reader is None or self._writer is None or self._writer.is_closing():
            return
        self._silent_ticks = 0 if self._reader.heard else self._silent_ticks + 1
        self._reader.heard = False
        if self._silent_ticks >= DEAD_TICKS:
            self.abort()
        else:
            asyncio.get_running_loop().call_later(heartbeat_s / 2, self.watch, heartbeat_s)

    def take(self, channel: int, taker: FrameHandler) -> None:
        """Pass a channel's frames to ``taker`` first from now on."""
        self._takers[channel] = taker

    def leave(self, channel: int) -> None:
        """Stop taking and writing frames of a channel, because it is about to be closed."""
        self._write_collected()
        self._takers.pop(channel, None)

    def write(self, channel: int, frames: bytes) -> None:
        """Write whole frames of a channel whose frames are taken.

        The first frames of a turn of the event loop are sent at once, and those that follow together at its
        end. On a closed channel or connection this does nothing.
        """
        if channel not in self._takers or self._writer is None or self._writer.is_closing():
            return
        if not self._collecting:
            self._collecting = True
            asyncio.get_running_loop().call_soon(self._end_turn)
            self._writer.write(frames)
            return
        self._collected.append(frames)
        self._collected_bytes += len(frames)
        if self._collected_bytes >= WRITE_AT_ONCE:
            self._write_collected()

    def _end_turn(self) -> None:
        self._collecting = False
        self._write_collected()

    def _write_collected(self) -> None:
        if not self._collected:
            return
        frames = b"".join(self._collected)
        self._collected.clear()
        self._collected_bytes = 0
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames)

    @property
    def flows(self) -> bool:
        """Whether the connection is open and the peer reads as fast as we write: no drain is needed."""
        if self._writer is None:
            return False
        transport = self._writer.transport
        if transport.is_closing():
            # One with TLS does not know its buffer any more.
            return False
        least, _ = transport.get_write_buffer_limits()
        return transport.get_write_buffer_size() <= least

    async def drain(self) -> None:
        """Wait while the peer reads more slowly than we write.

        Raises:
            ConnectionError: The connection has closed.

        """
        if self._writer is not None:
            try:
                await self._writer.drain()
            except OSError as error:
                raise ConnectionError(str(error)) from error

    def abort(self) -> None:
        """Abort the connection, and drop data that was not sent yet."""
        self._collected.clear()
        if self._writer is not None:
            abort(self._writer.transport)

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, as aiormq's own transports do."""
        contexts: SSLContextProvider = kwargs.pop("ssl_context_provider")
        options: dict[str, Any] = {**kwargs, "host": self._address, "port": url.port}
        if url.scheme == "amqps":
            options["ssl"] = await contexts.get_context()
            options["server_hostname"] = url.host
        loop = asyncio.get_running_loop()
        reader = FrameReader(self._takers, loop, on_channel_end=self.leave)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(lambda: protocol, **options)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        _keep_alive(transport.get_extra_info("socket"))
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return reader, self._writer

    def _look_for_the_end(self, kind: int, payload: bytes) -> bool:
        # aiormq does not report why the broker refused the login.
        if kind == METHOD and payload.startswith(CONNECTION_ENDS):
            self.closed_with = close_reason(payload)
        return False


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # These are Linux' names; macOS calls the first one TCP_KEEPALIVE.
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_S),
        ("TCP_KEEPALIVE", KEEPALIVE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_PROBE_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class FrameReader(asyncio.StreamReader):
    """The stream that aiormq reads, without the frames that were taken."""

    def __init__(
        self,
        takers: dict[int, FrameHandler],
        loop: asyncio.AbstractEventLoop,
        *,
        on_channel_end: Callable[[int], object],
    ) -> None:
        super().__init__(loop=loop)
        self._takers = takers
        self._on_channel_end = on_channel_end
        self._clock = loop.time
        self._rest = b""
        self._alive_at = 0.0
        self.heard = True
        """Whether data has arrived since this was last set to false."""

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # typeshed has an iterable of numbers
        """Pass arrived frames to their takers, and the others to aiormq."""
        self.heard = True
        if self._rest:
            data = self._rest + data
        passed_on = start = 0
        has_taken = False
        while len(data) - start >= FRAME_OVERHEAD:
            kind, channel, size = FRAME_START.unpack_from(data, start)
            end = start + FRAME_OVERHEAD + size
            if end > len(data):
                break
            if channel in self._takers and self._taken(
                channel, kind, data[start + FRAME_START.size : end - 1]
            ):
                has_taken = True
                if passed_on < start:
                    super().feed_data(data[passed_on:start])
                passed_on = end
            start = end
        if passed_on < start:
            super().feed_data(data[passed_on:start])
        self._rest = data[start:]
        # RabbitMQ sends no heartbeats while it sends other frames, so taken frames count as heartbeats.
        if has_taken and self._clock() - self._alive_at > LIFE_SIGN_S:
            self._alive_at = self._clock()
            super().feed_data(HEARTBEAT)

    def _taken(self, channel: int, kind: int, payload: bytes) -> bool:
        if kind == METHOD and payload.startswith(CHANNEL_ENDS):
            # Before aiormq answers, because no frame may follow its answer.
            self._on_channel_end(channel)
            return False
        return self._takers[channel](kind, payload)

    def feed_eof(self) -> None:
        """Pass an incomplete frame to aiormq, which reports the error."""
        if self._rest:
            super().feed_data(self._rest)
            self._rest = b""
        super().feed_eof()
