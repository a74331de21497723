"""Redis' wire protocol (RESP 3) in front of the store: one command per turn, so others can interleave."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

import hiredis

from inferfleet.local.simulation.answers import Answer, encode
from inferfleet.local.simulation.store import Store, xread_arguments

BLOCKING = b"XREAD"


class RedisServer:
    """One Redis: a store and its clients. ``log``, if given, gets each command with its reply."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.blocked: list[RedisClient] = []
        self.log: list[tuple[int, list[bytes], Answer]] | None = None
        self.commands = 0

    def run(self, command: list[bytes]) -> Answer:
        """Run a command, and wake the clients that wait for it."""
        self.commands += 1
        answer = self.store.run(command)
        if self.log is not None:
            self.log.append((self.store.now_us(), command, answer))
        if grown := self.store.grown:
            for client in self.blocked.copy():
                client.look(grown)
            grown.clear()
        return answer


class RedisClient(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._reader = hiredis.Reader()
        self._waiting: deque[list[bytes]] = deque()
        self._blocked: tuple[list[bytes], list[bytes], int | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a client."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Queue the complete commands."""
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            self._waiting.append(command)
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep running the commands that the client has sent."""
        if self._blocked is not None:
            self._unblock()

    def look(self, grown: set[bytes]) -> None:
        """Check whether the lines for which a blocked read waits have arrived in these streams."""
        assert self._blocked is not None  # noqa: S101 - it is on the list
        keys, positions, count = self._blocked
        if grown.isdisjoint(keys):
            return
        if (answer := self._server.store.xread(keys, positions, count)) is not None:
            self._unblock()
            self._reply(answer)

    def _go_on(self) -> None:
        if self._waiting and not self._running and self._blocked is None:
            self._running = True
            asyncio.get_running_loop().call_soon(self._one)

    def _one(self) -> None:
        self._running = False
        command = self._waiting.popleft()
        answer = self._server.run(command)
        if answer is None and command[0].upper() == BLOCKING:
            count, block_ms, keys, positions = xread_arguments(tuple(command[1:]))
            if block_ms is not None:
                self._block(keys, positions, count, block_ms)
                return
        self._reply(answer)
        self._go_on()

    def _block(self, keys: list[bytes], positions: list[bytes], count: int | None, block_ms: int) -> None:
        self._blocked = (keys, positions, count)
        self._server.blocked.append(self)
        self._timer = asyncio.get_running_loop().call_later(block_ms / 1000, self._timed_out)

    def _timed_out(self) -> None:
        if self._blocked is not None:
            self._unblock()
            self._reply(None)

    def _unblock(self) -> None:
        self._blocked = None
        self._server.blocked.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        self._go_on()

    def _reply(self, answer: Answer) -> None:
        parts: list[bytes] = []
        encode(answer, parts)
        self._transport.write(b"".join(parts))
