"""Natural batching of Redis commands: what arrives while one pipeline is in flight goes into the next.

No timer and no wait when idle: the first command leaves at once, and the batch grows by itself as the
load does. A pipeline of 64 costs a sixth of 64 single commands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import (
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import (
    AsyncRetrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)

from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.wire import scripts
from inferfleet.wire.breaker import Breaker
from inferfleet.wire.round_trip import RoundTrips
from inferfleet.wire.scripts import Argument

logger = logging.getLogger(__name__)

BATCH_LIMIT = 512
"""Commands in one pipeline at most, so that a backlog does not become one huge write."""

_OUTAGE = (RedisConnectionError, RedisTimeoutError, OSError)

_NOT_NOW = (ClusterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)
"""Redis answers, but cannot do it now: a failover, no memory. (redis-py has LOADING among the outages.)"""

_NOT_NOW_CODES = ("BUSY ", "MISCONF ", "NOREPLICAS ")
"""The same, where redis-py has no exception of its own and leaves the code in the text."""

_Waiting = tuple[tuple[Argument, ...], asyncio.Future[Any]]


class CommandPipeline:
    """Runs commands for many tasks at once, in the order given.

    Every command given to it must be safe to send twice: after an outage the pipeline that was in
    flight is sent again. ``patience_s`` is how long it goes on trying; ``None`` is for ever.
    """

    def __init__(self, client: aioredis.Redis, *, patience_s: float | None) -> None:
        self._client = client
        self._round_trips = RoundTrips(client)
        self._patience_s = patience_s
        self._breaker = Breaker("Redis", *_OUTAGE)
        self._queue: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._closed = False

    async def execute(self, *command: Argument) -> Any:
        """Run one command and return its answer.

        Raises:
            ServiceUnreachableError: Redis stayed away for longer than ``patience_s``.
            redis.exceptions.ResponseError: Redis refused this command.

        """
        return await self.enqueue(*command)

    def enqueue(self, *command: Argument) -> asyncio.Future[Any]:
        """Put one command into the next pipeline; the future holds its answer."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(_closed())
            return answer
        self._queue.append((command, answer))
        self._arrived.set()
        return answer

    async def run(self) -> None:
        """Send pipelines until cancelled. The owner's task group runs this."""
        try:
            while True:
                await self._arrived.wait()
                batch, self._queue = self._queue[:BATCH_LIMIT], self._queue[BATCH_LIMIT:]
                if not self._queue:
                    self._arrived.clear()
                await self._settle(batch)
        finally:
            self._closed = True
            _fail(self._queue, _closed())

    async def _settle(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._send([command for command, _ in batch])
        except asyncio.CancelledError:
            _fail(batch, _closed())
            raise
        except Exception as error:
            # Whatever it was, the waiting tasks must hear of it: a lost error here would hang them.
            _fail(batch, _unreachable(error))
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def _send(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        try:
            # By itself: what it takes to repeat costs more than a round trip.
            with self._breaker.guarded():
                return await self._send_once(commands)
        except (*_OUTAGE, ServiceUnreachableError) as error:
            if self._patience_s == 0:
                raise
            logger.warning("Redis does not answer, trying again (%s)", error)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((*_OUTAGE, ServiceUnreachableError)),
            wait=wait_random_exponential(multiplier=0.05, max=2.0),
            stop=stop_never if self._patience_s is None else stop_after_delay(self._patience_s),
            before_sleep=before_sleep_log(logger, logging.WARNING),
            reraise=True,
        ):
            with attempt, self._breaker.guarded():
                return await self._send_once(commands)
        raise AssertionError("tenacity returns or raises")

    async def _send_once(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        answers = await self._round_trips.send(commands)
        for position, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):
                # A restarted Redis has forgotten the scripts. The rest is sent again from here on, so
                # that the order of one job's writes stays as it was.
                await self._load_scripts()
                return [*answers[:position], *await self._send_once(commands[position:])]
            if _not_now(answer):
                raise RedisConnectionError(str(answer))
        return answers

    async def _load_scripts(self) -> None:
        for script in scripts.ALL:
            await self._client.script_load(script.text)


def _not_now(answer: object) -> bool:
    return isinstance(answer, _NOT_NOW) or (
        isinstance(answer, ResponseError) and str(answer).startswith(_NOT_NOW_CODES)
    )


def _fail(waiting: list[_Waiting], error: ServiceUnreachableError) -> None:
    for _, answer in waiting:
        if not answer.done():
            answer.set_exception(error)


def _closed() -> ServiceUnreachableError:
    return ServiceUnreachableError("this connection to Redis was closed")


def _unreachable(error: Exception) -> ServiceUnreachableError:
    if isinstance(error, ServiceUnreachableError):
        return error
    return ServiceUnreachableError(f"Redis does not answer ({error}); check INFERFLEET_REDIS_URL")
