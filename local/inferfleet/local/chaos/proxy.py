"""A TCP link that a test can disturb: held in one direction, slowed down, or broken.

TCP sends lost data again, so in a real network a cut in one direction delays bytes until it heals, but never
loses bytes in between. This includes the end of a connection: a peer behind a held direction does not learn
that the other one has gone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Self

from inferfleet.local.services.free_port import free_port
from inferfleet.wire.tasks import stop_listening

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
PATIENCE_S = 60.0

_SERVER = re.compile(r"(?<=[/@,])(?P<host>[^/@,:]+):(?P<port>\d+)(?=[,/?]|$)")

_NAMED = re.compile(rb"(?P<what>:|\$5\r\n|(?:MOVED|ASK) \d+ \S*:)(?P<port>\d{5})(?=\r\n)")
"""Where the answers of Redis name a port: as a number, as a string of its own, or in a redirection. All ports
that ``free_port`` returns have five digits, so an answer keeps its length."""


class Direction(StrEnum):
    """Which half of a connection."""

    TO_SERVICE = "to_service"
    TO_CLIENT = "to_client"


class Proxy:
    """A link to one service. Listens while its ``async with`` block runs; ``url`` is the address through it.

    The service may have several servers, and the URL names each with its port. ``named`` are the ports of
    servers that answers of Redis name, as those of Sentinels and of a Redis Cluster do: each gets a port of
    the link, which the answers then name instead. A direction that is held or slowed down stays so for later
    connections, until ``heal``.
    """

    def __init__(self, url: str, *, named: Mapping[int, int] | None = None) -> None:
        self._targets: dict[int, tuple[str, int]] = {}
        self.url = _SERVER.sub(self._place, url)
        self.named = {name: self._listen_for(HOST, port) for name, port in (named or {}).items()}
        """The ports of this link for the servers that answers name."""
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._caught = {direction: asyncio.Event() for direction in Direction}
        self._delay_s = dict.fromkeys(Direction, 0.0)
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._awaited: bytes | None = None
        self._passing = asyncio.Event()
        """The event that later connections get. It is cleared for stranded connections."""
        self.accepted = 0
        """How many connections clients have made."""
        self._stack = AsyncExitStack()
        self._passing.set()
        self.heal()

    async def __aenter__(self) -> Self:
        for port in self._targets:
            server = await asyncio.start_server(partial(self._accept, port), HOST, port)
            self._stack.push_async_callback(self._close, server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def hold(self, *directions: Direction) -> None:
        """Let nothing pass in these directions."""
        for direction in directions:
            if self._open[direction].is_set():
                self._open[direction].clear()
                self._caught[direction].clear()

    async def until_held(self, direction: Direction) -> None:
        """Wait until bytes were held in this direction: from then on the cut has an effect.

        Raises:
            RuntimeError: This direction is not held.
            TimeoutError: No bytes arrived that could be held.

        """
        if self._open[direction].is_set() and self._awaited is None:
            raise RuntimeError(f"nothing holds what goes {direction}")
        await asyncio.wait_for(self._caught[direction].wait(), PATIENCE_S)

    def hold_answers_to(self, request: bytes) -> None:
        """Once the client has sent these bytes, let nothing pass to it any more."""
        self._awaited = request

    def delay(self, direction: Direction, delay_s: float) -> None:
        """Delay everything in this direction."""
        self._delay_s[direction] = delay_s

    def heal(self) -> None:
        """Let everything pass again, first the held bytes."""
        self._awaited = None
        for direction in Direction:
            self._open[direction].set()
            self._delay_s[direction] = 0.0

    @property
    def connections(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def strand(self) -> int:
        """Let nothing pass on the existing connections without closing them. New connections work.

        This is what happens when a firewall forgets connections. Returns their number.
        """
        self._passing.clear()
        self._passing = asyncio.Event()
        self._passing.set()
        return self.connections

    def reset(self) -> int:
        """Break all connections and drop the held bytes, as when the machine at one end loses power.

        Returns how many connections it broke.
        """
        for writers in self._connections.values():
            for writer in writers:
                writer.transport.abort()
        for task in self._connections:
            task.cancel()
        return self.connections

    def _place(self, server: re.Match[str]) -> str:
        return f"{HOST}:{self._listen_for(server['host'], int(server['port']))}"

    def _listen_for(self, host: str, port: int) -> int:
        own = free_port()
        self._targets[own] = (host, port)
        return own

    def _accept(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine, so that a connection is known before anything can cancel its task.
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._connect(port, reader, writer, self._passing))
        self._connections[task] = (writer,)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        for writer in self._connections.pop(task):
            writer.transport.abort()

    async def _connect(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is one of the connections
        try:
            upstream, service = await asyncio.open_connection(*self._targets[port])
            self._connections[task] = (writer, service)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, service, Direction.TO_SERVICE, passing))
                pumps.create_task(self._pump(upstream, writer, Direction.TO_CLIENT, passing))
        except OSError:
            # The service is down: for the client it is the same as a broken link.
            pass

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
        passing: asyncio.Event,
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self.named and direction is Direction.TO_CLIENT:
                    data = _NAMED.sub(self._renamed, data)
                if not self._open[direction].is_set():
                    self._caught[direction].set()
                await self._pass(direction, passing)
                if direction is Direction.TO_SERVICE and self._awaited is not None and self._awaited in data:
                    self.hold(Direction.TO_CLIENT)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        await self._pass(direction, passing)
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    def _renamed(self, name: re.Match[bytes]) -> bytes:
        port = int(name["port"])
        return b"%s%d" % (name["what"], self.named.get(port, port))

    async def _pass(self, direction: Direction, passing: asyncio.Event) -> None:
        if self._delay_s[direction]:
            await asyncio.sleep(self._delay_s[direction])
        await self._open[direction].wait()
        await passing.wait()

    async def _close(self, server: asyncio.Server) -> None:
        await stop_listening(server)
        self.reset()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()
