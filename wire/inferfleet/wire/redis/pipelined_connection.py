"""A connection to Redis that writes commands before the replies to earlier ones have arrived.

It is redis-py's own connection, with redis-py's login, TLS and protocol. Only the order of writes and reads
is ours, and the encoding of commands in C, which halves their cost in the client.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, cast

import hiredis
import redis.asyncio as aioredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.script import LOADED, Argument

# hiredis' type stub allows only a command of one word, and does not type the result.
pack = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)


class PipelinedConnection:
    """A connection that its owner writes and reads at the same time."""

    def __init__(
        self, client: aioredis.Redis, connection: AbstractConnection, *, timeout_s: float | None
    ) -> None:
        self._connection = connection
        # How redis-py converts some replies: HGETALL's to a dict, XRANGE's to pairs.
        self._readable: dict[Any, Callable[[Any], Any]] = cast("Any", client.response_callbacks)
        self.timeout_s = timeout_s
        """How long a reply may take before the connection counts as broken. The owner enforces this."""

    @classmethod
    @asynccontextmanager
    async def opened(cls, client: aioredis.Redis) -> AsyncGenerator[Self]:
        """Take a connection of the client, and close it at the end.

        Raises:
            redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError: Connecting failed.

        """
        pool: Any = client.connection_pool
        connection: AbstractConnection = await pool.get_connection()
        timeout_s: float | None = connection.socket_timeout
        # With a timeout, redis-py gives each write a task, and Python 3.11's wait_for may swallow a
        # cancellation there.
        connection.socket_timeout = None
        try:
            yield cls(client, connection, timeout_s=timeout_s)
        finally:
            connection.socket_timeout = timeout_s
            # Replies that nobody reads must not be mistaken for those of others.
            await connection.disconnect(nowait=True)
            await pool.release(connection)

    async def write(self, packed: Sequence[bytes]) -> None:
        """Send commands.

        Raises:
            redis.exceptions.ConnectionError: The connection broke.

        """
        await self._connection.send_packed_command(packed)

    async def answer(self) -> Any:
        """Wait for the next reply; that of a refused command is a ``ResponseError``.

        Raises:
            redis.exceptions.ConnectionError: The connection broke.

        """
        try:
            answer = cast("Any", await self._connection.read_response(timeout=math.inf))
        except ResponseError as error:
            return error
        return answer

    def readable(self, verb: Argument, answer: Any) -> Any:
        """Convert a reply as redis-py does, and raise a refusal."""
        if isinstance(answer, ResponseError):
            raise answer
        read = self._readable.get(verb)
        return answer if read is None else read(answer)

    async def learn_time(self, clock: RedisClock) -> None:
        """Ask Redis for its time, before anything else is written.

        Raises:
            redis.exceptions.TimeoutError: No reply arrived in time.
            redis.exceptions.ResponseError: Redis refused to say.

        """
        async with self._in_time():
            asked = time.monotonic()
            await self.write([pack(("TIME",))])
            if isinstance(answer := await self.answer(), ResponseError):
                raise answer
            clock.learn(answer, asked=asked, answered=time.monotonic())

    async def load_scripts(self) -> None:
        """Load all scripts into Redis, before anything else is written.

        Raises:
            redis.exceptions.TimeoutError: No reply arrived in time.
            redis.exceptions.ResponseError: Redis refused a script.

        """
        async with self._in_time():
            await self.write([pack(("SCRIPT", "LOAD", script.text)) for script in LOADED])
            for _ in LOADED:
                if isinstance(answer := await self.answer(), ResponseError):
                    raise answer

    @asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(self.timeout_s):
                yield
        except TimeoutError as error:
            raise RedisTimeoutError(f"no answer for {self.timeout_s:g} s") from error
