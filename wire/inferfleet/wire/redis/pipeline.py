"""Sends the Redis commands of many tasks on one connection, without waiting for earlier replies.

The commands of one turn of the event loop leave together, and the replies to earlier ones arrive meanwhile.
So a busy worker and Redis work at the same time, and a lone command leaves at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from copy import copy
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.wire.breaker import Breaker
from inferfleet.wire.home import Home
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis import refusals
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.pipelined_connection import PipelinedConnection, pack
from inferfleet.wire.redis.script import Argument

logger = logging.getLogger(__name__)

WRITE_LIMIT = 512
"""The most commands in one write, so that a backlog does not become one huge write."""

_OUTAGE = (RedisConnectionError, RedisTimeoutError, OSError)

_BACKOFF_S = 0.05
_BACKOFF_STEPS = 5
"""How often the pause between attempts doubles."""
_BACKOFF = wait_random_exponential(multiplier=_BACKOFF_S, max=2.0)


class ScriptsForgottenError(RedisConnectionError):
    """A restarted Redis does not know our scripts."""


class _RefusedError(RedisError):
    """Redis answers, but refuses us. This is not an outage, and does not open the circuit."""

    def __init__(self, refusal: BaseException, *, what: str = "") -> None:
        self.told = refusals.refused(refusal, what=what)
        self.lasts = refusals.lasts(refusal)
        super().__init__(str(self.told))


AWAY = (*_OUTAGE, ServiceUnreachableError, ServiceRefusedError, _RefusedError)
"""The errors that end a conversation with Redis, including those of our own circuit breaker."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A command, the future of its reply, and when it was given.

    ``in_doubt`` says that it was sent on a connection that broke before the reply.
    """

    verb: Argument
    packed: bytes
    answer: asyncio.Future[Any]
    since: float
    refusals: int = 0
    in_doubt: bool = False


class CommandPipeline:
    """Runs the commands of many tasks, in the given order.

    Every command must be safe to send twice: after an outage the pipeline sends the unanswered ones again, in
    the same order. ``patience_s`` is how long a command waits for the end of an outage, or of a refusal that
    passes; ``None`` waits for ever. Whatever the patience, no command fails because of a connection that was
    opened before it, since that one may have died while it was idle.

    A lasting refusal (missing rights, a wrong password) is an error at once for the commands that it
    concerns. With endless patience the pipeline waits for its end, too, and ``refused`` has the error
    meanwhile.
    """

    ordered = True
    """Whether commands for different keys run in the given order, too."""

    def __init__(
        self,
        client: aioredis.Redis,
        *,
        patience_s: float | None,
        clock: RedisClock | None = None,
        home: Home | None = None,
    ) -> None:
        self._client = client
        self._patience_s = patience_s
        self._home = home
        self._breaker = Breaker("Redis", *_OUTAGE)
        self.outage = Outage()
        """The outages of Redis during which commands waited."""
        self._unsent: deque[Waiting] = deque()
        self._unanswered: deque[Waiting] = deque()
        """The written commands in order, which is the order of the replies."""
        self._arrived = asyncio.Event()
        """Set when there is something to send."""
        self._connection: PipelinedConnection | None = None
        """The connection of the present conversation."""
        self._flushing = False
        """Whether what is unsent is sent at the end of this turn of the event loop."""
        self._heard_at = 0.0
        """When the last reply arrived, or the first unanswered command was written."""
        self.answers = 0
        """How many commands Redis has answered."""
        self.answer_seconds = 0.0
        """How long they took in all, from being given to the reply."""
        self._not_run: Waiting | None = None
        """The command whose refusal has ended the conversation."""
        self._scripts_missing = False
        self._answers_at_load = -1
        """How many replies had arrived when the scripts were last loaded."""
        self._tried_at = 0.0
        """When the last attempt to connect began."""
        self._refused: set[Waiting] = set()
        """Commands that Redis has refused for now, and that are sent again later."""
        self._closed = False
        self.connections = 0
        """How many connections were made so far. Another one may lead to another Redis."""
        self.on_connect: list[Callable[[], None]] = []
        """What to call with each new connection, before anything is sent on it."""
        self.clock = clock or RedisClock()
        """Redis' time."""
        self.refused: ServiceRefusedError | None = None
        """Why Redis refuses what is needed, while it does."""

    @property
    def circuit_open(self) -> bool:
        """Whether no connection is attempted for a moment, because Redis has just failed several times."""
        return self._breaker.open

    async def servers(self) -> Sequence[CommandPipeline]:
        """Return a pipeline for each server that has keys.

        Raises:
            ServiceUnreachableError, ServiceRefusedError: The servers cannot be found out.

        """
        return [self]

    async def execute(self, *command: Argument) -> Any:
        """Run one command and return its reply.

        Raises:
            ServiceUnreachableError: Redis was unreachable for longer than ``patience_s``.
            ServiceRefusedError: Redis refused this command for longer than ``patience_s``.
            Both are ``in_doubt`` if the command was sent before, and its reply was lost.
            TypeError, ValueError: An argument cannot be encoded for Redis.

        """
        return await self.enqueue(*command)

    def check_home(self) -> None:
        """Make sure that the caller is in the pipeline's process and event loop.

        Raises:
            ClientUnusableError: The caller is elsewhere.
            ServiceUnreachableError: The client was closed.

        """
        if self._home is not None:
            self._home.check()

    def enqueue(self, *command: Argument) -> asyncio.Future[Any]:
        """Queue one command; the future gets its reply.

        Raises:
            ClientUnusableError, ServiceUnreachableError: See ``check_home``.

        """
        if self._home is not None:
            self._home.check()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(closed())
            return answer
        try:
            packed = pack(command)
        except (TypeError, ValueError) as error:
            answer.set_exception(error)
            return answer
        self._queue(command, packed, answer)
        return answer

    def _queue(self, command: tuple[Argument, ...], packed: bytes, answer: asyncio.Future[Any]) -> None:
        self._unsent.append(Waiting(command[0], packed, answer, time.monotonic()))
        self._send_soon()

    def _send_soon(self) -> None:
        """Send what is unsent at the end of this turn of the event loop, or once there is a connection."""
        self._arrived.set()
        if self._connection is not None and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def learn_time(self) -> None:
        """Ask Redis for its time. Each new connection does this by itself."""
        asked = time.monotonic()
        self.clock.learn(await self.execute("TIME"), asked=asked, answered=time.monotonic())

    async def run(self) -> None:
        """Send and receive until cancelled. The owner's task group runs this."""
        try:
            while True:
                await self._arrived.wait()
                try:
                    await self._converse_or_outlast()
                except Exception as error:
                    # The waiting tasks must get every error: a lost one would hang them.
                    self._fail(_unreachable(error))
        finally:
            self.close()

    def close(self) -> None:
        """Fail all commands that wait, and those that come later."""
        self._closed = True
        self._fail(closed())

    async def _converse_or_outlast(self) -> None:
        try:
            await self._converse()
        except ScriptsForgottenError:
            return
        except AWAY as error:
            if not self._give_up(error) or not self._tried(self._unsent[0]):
                return
            if self.outage.began():
                logger.warning("%s; retrying until it does", _unreachable(error))
        await self._outlast()

    async def _converse(self) -> None:
        """Write commands and read replies until the connection breaks, which is an error."""
        async with AsyncExitStack() as stack:
            self._tried_at = time.monotonic()
            with self._breaker.guarded():
                connection = await self._open(stack)
            self._connection = connection
            connection.converse(on_reply=self._receive, on_writable=self._flush)
            self._flush()
            try:
                await self._watch(connection)
            finally:
                self._connection = None
                self._take_back()

    async def _open(self, stack: AsyncExitStack) -> PipelinedConnection:
        try:
            connection = await stack.enter_async_context(PipelinedConnection.opened(self._client))
            await connection.learn_time(self.clock)
            if self._scripts_missing:
                await connection.load_scripts()
                self._scripts_missing = False
                self._answers_at_load = self.answers
            self.connections += 1
        except (ResponseError, AuthenticationError) as refusal:
            raise _RefusedError(refusal) from refusal
        except ConfigurationError as error:
            # The file with the URL is just being replaced.
            raise RedisConnectionError(str(error)) from error
        for notice in self.on_connect:
            notice()
        return connection

    def _flush(self) -> None:
        """Write the commands that were given in this turn of the event loop."""
        self._flushing = False
        connection = self._connection
        while self._unsent and connection is not None and connection.writable:
            batch = [self._unsent.popleft() for _ in range(min(len(self._unsent), WRITE_LIMIT))]
            if not self._unanswered:
                self._heard_at = time.monotonic()
            self._unanswered.extend(batch)
            connection.send([waiting.packed for waiting in batch])
        if not self._unsent:
            self._arrived.clear()

    def _receive(self, reply: Any) -> None:
        """Take the reply to the oldest command that has none. An error ends the conversation."""
        if isinstance(reply, ResponseError):
            try:
                self._check(reply)
            except RedisError:
                self._not_run = self._unanswered[0]
                raise
        waiting = self._unanswered.popleft()
        self.answers += 1
        self._heard_at = now = time.monotonic()
        self.answer_seconds += now - waiting.since
        self.refused = None
        if self.outage.lasts:
            logger.warning("Redis answers again after %.1f s", self.outage.ended() or 0.0)
        if waiting.answer.done():
            return
        if isinstance(reply, ResponseError):
            self._refuse(waiting, reply)
            return
        try:
            assert self._connection is not None  # noqa: S101 - the reply came from it
            waiting.answer.set_result(self._connection.readable(waiting.verb, reply))
        except Exception as error:
            waiting.answer.set_exception(error)

    def _check(self, refusal: ResponseError) -> None:
        """End the conversation if the command, with all behind it, should be sent again later."""
        if isinstance(refusal, NoScriptError):
            self._scripts_missing = True
            if self.answers == self._answers_at_load:
                raise RedisConnectionError(f"it forgets its scripts at once ({refusal})")
            raise ScriptsForgottenError(str(refusal))
        if self._patience_s is None and (refusals.passes(refusal) or refusals.lasts(refusal)):
            raise _RefusedError(refusal, what=_name(self._unanswered[0]))

    def _refuse(self, waiting: Waiting, refusal: ResponseError) -> None:
        """Fail a refused command, or send it again if that may help.

        This does not affect other commands: Redis may still read while it refuses writes.
        """
        if refusals.passes(refusal) and self._patience_s is not None:
            rest_s = waiting.since + self._patience_s - time.monotonic()
            if rest_s > 0:
                pause_s = _BACKOFF_S * 2.0**waiting.refusals * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                waiting.refusals = min(waiting.refusals + 1, _BACKOFF_STEPS)
                self._refused.add(waiting)
                asyncio.get_running_loop().call_later(min(rest_s, pause_s), self._send_again, waiting)
                return
        _fail(waiting, refusals.refused(refusal, what=_name(waiting)))

    def _send_again(self, waiting: Waiting) -> None:
        if waiting in self._refused:
            self._refused.discard(waiting)
            self._unsent.append(waiting)
            self._send_soon()

    async def _watch(self, connection: PipelinedConnection) -> None:
        """Wait until the conversation ends. End it when Redis has owed a reply for too long."""
        timeout_s, rest_s = connection.timeout_s, connection.timeout_s
        while not (await asyncio.wait([connection.ended], timeout=rest_s))[0]:
            assert timeout_s is not None  # noqa: S101 - otherwise this waits for the end
            # A command that is written meanwhile has at least as long.
            rest_s = self._heard_at + timeout_s - time.monotonic() if self._unanswered else timeout_s
            if rest_s < 0:
                raise RedisTimeoutError(f"no answer for {timeout_s:g} s")
            # The clock may not have moved when a timer fires.
            rest_s = max(rest_s, timeout_s / 1000)
        raise connection.ended.result()

    def _take_back(self) -> None:
        """Put the unanswered commands in front, to send them again first."""
        for waiting in self._unanswered:
            waiting.in_doubt = waiting.in_doubt or waiting is not self._not_run
        self._not_run = None
        self._unsent.extendleft(reversed(self._unanswered))
        self._unanswered.clear()
        if self._unsent:
            self._arrived.set()

    async def _outlast(self) -> None:
        """Reconnect repeatedly, until a reply arrives or no command waits any more."""
        answers = self.answers
        async for attempt in AsyncRetrying(retry=retry_if_exception_type(AWAY), wait=self._pause):
            with attempt:
                try:
                    await self._converse()
                except ScriptsForgottenError:
                    raise
                except AWAY as error:
                    if self._give_up(error) and self.answers == answers:
                        raise

    def _pause(self, attempt: RetryCallState) -> float:
        """Return the pause before the next attempt in seconds: no longer than the oldest command waits."""
        pause_s = _BACKOFF(attempt)
        if self._patience_s is None or not self._unsent:
            return pause_s
        oldest = min(waiting.since for waiting in self._unsent)
        return max(0.0, min(pause_s, oldest + self._patience_s - time.monotonic()))

    def _give_up(self, error: Exception) -> bool:
        """Fail the tried commands whose patience is over. Return whether others still wait."""
        if not isinstance(error, _RefusedError) and refusals.is_refusal(error):
            # redis-py counts some refusals as outages: a wrong password, and a Redis that loads its data.
            error = _RefusedError(error)
        if isinstance(error, _RefusedError):
            self.refused = error.told
        if self._patience_s is not None:
            lasts = isinstance(error, _RefusedError) and error.lasts
            deadline = time.monotonic() - (0.0 if lasts else self._patience_s)
            still: deque[Waiting] = deque()
            for waiting in self._unsent:
                if waiting.since <= deadline and self._tried(waiting):
                    _fail(waiting, _unreachable(error))
                else:
                    still.append(waiting)
            self._unsent = still
        if not self._unsent:
            self._arrived.clear()
        return bool(self._unsent)

    def _tried(self, waiting: Waiting) -> bool:
        """Return whether a connection was attempted since the command was given."""
        return waiting.since <= self._tried_at

    def _fail(self, error: InferfleetError) -> None:
        for waiting in (*self._unanswered, *self._unsent, *self._refused):
            _fail(waiting, error)
        self._unanswered.clear()
        self._unsent.clear()
        self._refused.clear()
        self._arrived.clear()


def _fail(waiting: Waiting, error: InferfleetError) -> None:
    if waiting.answer.done():
        return
    if waiting.in_doubt and isinstance(error, (ServiceUnreachableError, ServiceRefusedError)):
        # Others get the same error for commands that were never sent.
        error = copy(error)
        error.in_doubt = True
    waiting.answer.set_exception(error)


def closed() -> ServiceUnreachableError:
    """Make the error of a command that is given after the end."""
    return ServiceUnreachableError("this connection to Redis was closed")


def _name(waiting: Waiting) -> str:
    return waiting.verb.decode() if isinstance(waiting.verb, bytes) else str(waiting.verb)


def _unreachable(error: Exception) -> InferfleetError:
    if isinstance(error, (ServiceUnreachableError, ServiceRefusedError)):
        return error
    if isinstance(error, _RefusedError):
        return error.told
    if refusals.is_refusal(error):
        return refusals.refused(error)
    return ServiceUnreachableError(f"Redis does not answer ({error}); check INFERFLEET_REDIS_URL")
