"""The bytes under a connection to RabbitMQ, of which some frames are read and written without aiormq.

aiormq reads each frame with three awaits, and hands it through two queues and a task. For frames that every
message has, that is a fifth of what a job costs a worker. So a channel's owner may take frames as they come,
and write some. aiormq does not know of them; all the rest of the protocol is its own.
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

FrameHandler = Callable[[int, bytes], bool]
"""Is shown a frame's type and payload. True if it took the frame."""

LIFE_SIGN_S: Final = 1.0
"""How often aiormq hears that the connection is alive, while it gets no other frame."""

SILENT_TICKS: Final = 2
"""Halves of a heartbeat in which a broker that is there has sent something."""

DEAD_TICKS: Final = 4
"""Halves of a heartbeat after which a silent broker is taken for gone: two whole ones (AMQP 0-9-1, 4.2.7)."""

KEEPALIVE_S: Final = 20
"""After so long without traffic TCP asks whether the other end is there. Helps where heartbeats are off."""

KEEPALIVE_PROBES: Final = 3
KEEPALIVE_PROBE_S: Final = 5


class FrameStream(TransportFactory):
    """The stream of one connection."""

    def __init__(self) -> None:
        self._takers: dict[int, FrameHandler] = {0: self._look_for_the_end}
        self._writer: asyncio.StreamWriter | None = None
        self._reader: FrameReader | None = None
        self._silent_ticks = 0
        self.closed_with: tuple[int, str] | None = None
        """Code and text with which the broker has closed the connection, if it said goodbye."""

    @property
    def closing(self) -> bool:
        """Whether this end knows that the connection is at its end."""
        return self._writer is None or self._writer.is_closing()

    @property
    def silent(self) -> bool:
        """Whether the broker, if it is there, has missed a heartbeat."""
        return self._silent_ticks >= SILENT_TICKS

    def watch(self, heartbeat_s: float) -> None:
        """Break the connection when nothing has come for two heartbeats; aiormq waits for more than three.

        A broker that has nothing else to say says so at least once in ``heartbeat_s``. Counted in ticks of
        our own, because a process that was stopped finds the clock far ahead.
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
        """From now on, show a channel's frames to ``taker`` first."""
        self._takers[channel] = taker

    def leave(self, channel: int) -> None:
        """Neither take nor write frames of a channel any more, because it is about to be closed."""
        self._takers.pop(channel, None)

    def write(self, channel: int, frames: bytes) -> None:
        """Write whole frames of a channel that frames are taken of.

        On a channel or a connection that is no more, this does nothing.
        """
        if channel in self._takers and self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames)

    @property
    def flows(self) -> bool:
        """Whether the connection is there and the other end reads as fast as we write: no need to drain."""
        if self._writer is None:
            return False
        transport = self._writer.transport
        least, _ = transport.get_write_buffer_limits()
        return transport.get_write_buffer_size() <= least and not transport.is_closing()

    async def drain(self) -> None:
        """Wait while the other end reads more slowly than we write.

        Raises:
            ConnectionError: The connection is no more.

        """
        if self._writer is not None:
            try:
                await self._writer.drain()
            except OSError as error:
                raise ConnectionError(str(error)) from error

    def abort(self) -> None:
        """Break the connection; what was not sent yet is dropped."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, as aiormq's own transports do."""
        contexts: SSLContextProvider = kwargs.pop("ssl_context_provider")
        options: dict[str, Any] = {**kwargs, "host": url.host, "port": url.port}
        if url.scheme == "amqps":
            options["ssl"] = await contexts.get_context()
        loop = asyncio.get_running_loop()
        reader = FrameReader(self._takers, loop)
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
        # aiormq does not tell why it was not let in.
        if kind == METHOD and payload.startswith(CONNECTION_ENDS):
            self.closed_with = close_reason(payload)
        return False


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The names are Linux'; macOS calls the first one TCP_KEEPALIVE.
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_S),
        ("TCP_KEEPALIVE", KEEPALIVE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_PROBE_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class FrameReader(asyncio.StreamReader):
    """What aiormq reads: the stream without the frames that were taken."""

    def __init__(self, takers: dict[int, FrameHandler], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._takers = takers
        self._clock = loop.time
        self._rest = b""
        self._alive_at = 0.0
        self.heard = True
        """Whether something has come since this was last made false."""

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # typeshed has an iterable of numbers
        """Sort what came in: frames to their takers, the others to aiormq."""
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
        # RabbitMQ sends no heartbeats while it sends other frames. Those that were taken count, too.
        if has_taken and self._clock() - self._alive_at > LIFE_SIGN_S:
            self._alive_at = self._clock()
            super().feed_data(HEARTBEAT)

    def _taken(self, channel: int, kind: int, payload: bytes) -> bool:
        if kind == METHOD and payload.startswith(CHANNEL_ENDS):
            # Before aiormq answers: behind its answer no frame may follow.
            del self._takers[channel]
            return False
        return self._takers[channel](kind, payload)

    def feed_eof(self) -> None:
        """Hand out the half of a frame that will never be whole, for aiormq to complain of."""
        if self._rest:
            super().feed_data(self._rest)
            self._rest = b""
        super().feed_eof()
