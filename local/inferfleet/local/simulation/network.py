"""Connections in memory, whose bytes are in flight until the schedule lets them arrive.

A connection is two flows. A cut may lose the bytes in flight, or let them arrive later, when the client has
long made another connection. As in a real network, this causes late copies of commands.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from inferfleet.local.simulation.loop import Actor, VirtualLoop, What


class Flow:
    """One direction of a connection. ``to`` gets its bytes."""

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self._loop = loop
        self.queue: deque[bytes | None] = deque()
        self.to: Transport
        self.process: Actor

    @property
    def what(self) -> What:
        """The size and the checksum of what arrives next, or the end."""
        chunk = self.queue[0]
        return ("end",) if chunk is None else (len(chunk), zlib.crc32(chunk))

    def step(self) -> None:
        """Let the next bytes arrive, or the end."""
        chunk = self.queue.popleft()
        self.to.actor.context.copy().run(self.to.arrive, chunk)

    def carry(self, chunk: bytes | None) -> None:
        """Send bytes, or the end."""
        self.queue.append(chunk)
        if len(self.queue) == 1:
            self._loop.offer(self)


class _Socket:
    """Stands in for the socket of a transport."""

    def setsockopt(self, *_: Any) -> None:
        """Ignore an option."""

    def fileno(self) -> int:
        """Return that there is none."""
        return -1


class Transport(asyncio.Transport):
    """One end of a connection, as its protocol sees it."""

    def __init__(self, actor: Actor, protocol: asyncio.Protocol, loop: VirtualLoop, out: Flow) -> None:
        super().__init__({"socket": _Socket(), "peername": ("simulated", 1), "sockname": ("simulated", 2)})
        self.actor = actor
        self._protocol = protocol
        self._loop = loop
        self.out = out
        self._closing = False
        self.lost = False
        """Whether this side has lost the connection."""

    def arrive(self, chunk: bytes | None) -> None:
        """Pass arrived bytes to the protocol."""
        if self.lost or not self.actor.alive:
            return
        if chunk is not None:
            if not self._closing:
                self._protocol.data_received(chunk)
        else:
            self._protocol.eof_received()
            self.lose(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        if not self._closing and data:
            self.out.carry(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """Send bytes together."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Send the end behind all bytes."""
        if not self._closing:
            self.out.carry(None)
            self.lose(None)

    def abort(self) -> None:
        """Close at once, and drop unsent bytes."""
        self.out.queue.clear()
        self.close()

    def lose(self, error: Exception | None) -> None:
        """Tell the protocol that this side has lost the connection."""
        self._closing = True
        if not self.lost:
            self.lost = True
            if self.actor.alive:
                self._loop.call_soon(self._protocol.connection_lost, error, context=self.actor.context.copy())

    def is_closing(self) -> bool:
        """Return whether nothing can be written any more."""
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set another protocol."""
        assert isinstance(protocol, asyncio.Protocol)  # noqa: S101 - there are no datagrams
        self._protocol = protocol

    def pause_reading(self) -> None:
        """Do nothing: no message is that long."""

    def resume_reading(self) -> None:
        """Do nothing: reading is never paused."""

    def is_reading(self) -> bool:
        """Return true: reading is never paused."""
        return not self._closing

    def can_write_eof(self) -> bool:
        """Return false: half-closed connections are not simulated."""
        return False

    def get_write_buffer_size(self) -> int:
        """Writing never waits."""
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Writing never waits."""
        return 0, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Writing never waits."""


class Connection:
    """Both ends of one connection."""

    def __init__(self, client: Transport, server: Transport) -> None:
        self.client = client
        self.server = server

    @property
    def over(self) -> bool:
        """Whether neither side can be reached any more."""
        return self.client.lost and self.server.lost and not self.client.out.queue

    def flows(self) -> tuple[Flow, Flow]:
        """The flow to the server, and the flow to the client."""
        return self.client.out, self.server.out

    def cut(self, *, late: bool) -> None:
        """Break the connection. The bytes that the client has sent are lost, or arrive later."""
        up, down = self.flows()
        down.queue.clear()
        if not late:
            up.queue.clear()
        self.client.lose(ConnectionResetError("cut"))
        up.carry(None)


class Network:
    """The listeners, the connections, and the broken links."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._listening: dict[int, tuple[Actor, Callable[[], asyncio.Protocol]]] = {}
        self._connections: dict[tuple[Actor, Actor], list[Connection]] = {}
        self._refused_until: dict[tuple[Actor, Actor], float] = {}
        self._numbers = count()

    def listen(self, port: int, server: Actor, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Let clients connect to a port."""
        self._listening[port] = (server, protocol)

    def connect(self, client: Actor, port: int, protocol: asyncio.Protocol) -> Transport:
        """Connect, which takes no time.

        Raises:
            ConnectionRefusedError: The link is broken.

        """
        server, make = self._listening[port]
        if self._refused_until.get((client, server), -1.0) > self._loop.now:
            raise ConnectionRefusedError("the link is broken")
        number = next(self._numbers)
        up = Flow(f"{client.name}>{server.name}.{number}", self._loop)
        down = Flow(f"{server.name}>{client.name}.{number}", self._loop)
        here = Transport(client, protocol, self._loop, up)
        there_protocol = server.context.run(make)
        there = Transport(server, there_protocol, self._loop, down)
        up.to, down.to = there, here
        up.process, down.process = server, client
        connections = self._connections.setdefault((client, server), [])
        connections[:] = [connection for connection in connections if not connection.over]
        connections.append(Connection(here, there))
        server.context.copy().run(there_protocol.connection_made, there)
        client.context.copy().run(protocol.connection_made, here)
        return here

    def between(self, client: Actor, server: Actor) -> list[Connection]:
        """Return the connections between two actors."""
        return [
            connection for connection in self._connections.get((client, server), ()) if not connection.over
        ]

    def of(self, actor: Actor) -> list[Connection]:
        """Return all connections of an actor."""
        return [one for pair in list(self._connections) if actor in pair for one in self.between(*pair)]

    def refuse(self, client: Actor, server: Actor, seconds: float) -> None:
        """Refuse new connections for a while."""
        self._refused_until[client, server] = self._loop.now + seconds

    @property
    def is_whole(self) -> bool:
        """Whether connections are accepted on all links."""
        return all(until <= self._loop.now for until in self._refused_until.values())

    def heal(self) -> None:
        """Accept connections on all links again."""
        self._refused_until.clear()
