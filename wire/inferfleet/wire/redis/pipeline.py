"""Redis commands of many tasks on one connection: written as they come, each answered in its turn.

Nobody waits for the answers of others: commands that arrive within one turn of the event loop leave
together, and the answers to earlier ones come in meanwhile. So a busy worker and Redis work at the same time,
and a lone command leaves at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from contextlib import AsyncExitStack
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
from inferfleet.wire.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

WRITE_LIMIT = 512
"""Commands in one write at most, so that a backlog does not become one huge write."""

_OUTAGE = (RedisConnectionError, RedisTimeoutError, OSError)

_BACKOFF_S = 0.05
_BACKOFF_STEPS = 5
"""How often the pause doubles."""
_BACKOFF = wait_random_exponential(multiplier=_BACKOFF_S, max=2.0)


class _ScriptsForgottenError(RedisConnectionError):
    """A restarted Redis does not know our scripts."""


class _RefusedError(RedisError):
    """Redis is there and refuses us. Not an outage: it does not open the circuit."""

    def __init__(self, refusal: BaseException, *, what: str = "") -> None:
        self.told = refusals.refused(refusal, what=what)
        self.lasts = refusals.lasts(refusal)
        super().__init__(str(self.told))


_AWAY = (*_OUTAGE, ServiceUnreachableError, ServiceRefusedError, _RefusedError)
"""What a conversation with Redis ends with, our own circuit breaker included."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A command, and who waits for its answer since when."""

    verb: Argument
    packed: bytes
    answer: asyncio.Future[Any]
    since: float
    refusals: int = 0


class CommandPipeline:
    """Runs commands for many tasks at once, in the order given.

    Every command given to it must be safe to send twice: after an outage those that have no answer yet are
    sent again, in the same order. ``patience_s`` is how long a command waits for an outage to end, or for a
    refusal that passes, ``None`` for ever. Whatever the patience, no command fails for a connection that was
    there before it: that one may have died while it was idle.

    A refusal that lasts (missing rights, a wrong password) is an error at once for the commands it is about.
    With endless patience it is waited out like all else, and ``refused`` says so meanwhile.
    """

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
        """The times during which commands waited for Redis to come back."""
        self._unsent: deque[_Waiting] = deque()
        self._unanswered: deque[_Waiting] = deque()
        """What was written, in order, which is the order of the answers."""
        self._arrived = asyncio.Event()
        """There is something to send."""
        self._heard_at = 0.0
        """When the last answer came, or the first command that waits for one was written."""
        self._answers = 0
        self._scripts_missing = False
        self._answers_at_load = -1
        """How many answers had come when the scripts were last loaded."""
        self._tried_at = 0.0
        """When the last connection began to be made."""
        self._refused: set[_Waiting] = set()
        """What is sent again in a while, because Redis refused it for now."""
        self._closed = False
        self.clock = clock or RedisClock()
        """Redis' time."""
        self.refused: ServiceRefusedError | None = None
        """Why Redis does not do what is needed, while it says so."""

    async def execute(self, *command: Argument) -> Any:
        """Run one command and return its answer.

        Raises:
            ServiceUnreachableError: Redis stayed away for longer than ``patience_s``.
            ServiceRefusedError: Redis refused this command, and went on to for longer than ``patience_s``.
            TypeError, ValueError: An argument is none that Redis could be given.

        """
        return await self.enqueue(*command)

    def check_home(self) -> None:
        """Make sure that the caller is where the pipeline runs.

        Raises:
            ClientUnusableError: It is not.
            ServiceUnreachableError: The client was closed.

        """
        if self._home is not None:
            self._home.check()

    def enqueue(self, *command: Argument) -> asyncio.Future[Any]:
        """Have one command sent; the future holds its answer.

        Raises:
            ClientUnusableError, ServiceUnreachableError: See ``check_home``.

        """
        if self._home is not None:
            self._home.check()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(_closed())
            return answer
        try:
            packed = pack(command)
        except (TypeError, ValueError) as error:
            answer.set_exception(error)
            return answer
        self._unsent.append(_Waiting(command[0], packed, answer, time.monotonic()))
        self._arrived.set()
        return answer

    async def learn_time(self) -> None:
        """Ask Redis for its time. Each new connection does so by itself."""
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
                    # Whatever it was, the waiting tasks must hear of it: a lost error here would hang them.
                    self._fail(_unreachable(error))
        finally:
            self._closed = True
            self._fail(_closed())

    async def _converse_or_outlast(self) -> None:
        try:
            await self._converse()
        except _ScriptsForgottenError:
            return
        except _AWAY as error:
            if not self._give_up(error) or not self._tried(self._unsent[0]):
                return
            if self.outage.began():
                logger.warning("%s; retrying until it does", _unreachable(error))
        await self._outlast()

    async def _converse(self) -> None:
        """Write commands and read answers until the connection breaks, which is an error."""
        async with AsyncExitStack() as stack:
            self._tried_at = time.monotonic()
            with self._breaker.guarded():
                connection = await self._open(stack)
            both_ways = [
                asyncio.create_task(self._write(connection)),
                asyncio.create_task(self._read(connection)),
                asyncio.create_task(self._watch(connection)),
            ]
            try:
                broken, _ = await asyncio.wait(both_ways, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                await cancel_and_wait(*both_ways)
                self._take_back()
            for task in broken:
                task.result()

    async def _open(self, stack: AsyncExitStack) -> PipelinedConnection:
        try:
            connection = await stack.enter_async_context(PipelinedConnection.opened(self._client))
            await connection.learn_time(self.clock)
            if self._scripts_missing:
                await connection.load_scripts()
                self._scripts_missing = False
                self._answers_at_load = self._answers
        except (ResponseError, AuthenticationError) as refusal:
            raise _RefusedError(refusal) from refusal
        except ConfigurationError as error:
            # The file with the URL is about to be written anew.
            raise RedisConnectionError(str(error)) from error
        return connection

    async def _write(self, connection: PipelinedConnection) -> None:
        while True:
            await self._arrived.wait()
            batch = [self._unsent.popleft() for _ in range(min(len(self._unsent), WRITE_LIMIT))]
            if not self._unsent:
                self._arrived.clear()
            if not self._unanswered:
                self._heard_at = time.monotonic()
            self._unanswered.extend(batch)
            await connection.write([waiting.packed for waiting in batch])

    async def _read(self, connection: PipelinedConnection) -> None:
        while True:
            answer = await connection.answer()
            if isinstance(answer, ResponseError):
                self._check(answer)
            waiting = self._unanswered.popleft()
            self._answers += 1
            self._heard_at = time.monotonic()
            self.refused = None
            if self.outage.lasts:
                logger.warning("Redis answers again after %.1f s", self.outage.ended() or 0.0)
            if waiting.answer.done():
                continue
            if isinstance(answer, ResponseError):
                self._refuse(waiting, answer)
                continue
            try:
                waiting.answer.set_result(connection.readable(waiting.verb, answer))
            except Exception as error:
                waiting.answer.set_exception(error)

    def _check(self, refusal: ResponseError) -> None:
        """Break the conversation off if the command should be sent again later, with all behind it."""
        if isinstance(refusal, NoScriptError):
            self._scripts_missing = True
            if self._answers == self._answers_at_load:
                raise RedisConnectionError(f"it forgets its scripts at once ({refusal})")
            raise _ScriptsForgottenError(str(refusal))
        if self._patience_s is None and (refusals.passes(refusal) or refusals.lasts(refusal)):
            raise _RefusedError(refusal, what=_name(self._unanswered[0]))

    def _refuse(self, waiting: _Waiting, refusal: ResponseError) -> None:
        """Tell whoever waits for a command that it is refused, or send it again if that may help.

        The commands of others are not touched: Redis may well read while it does not write.
        """
        if refusals.passes(refusal) and self._patience_s is not None:
            rest_s = waiting.since + self._patience_s - time.monotonic()
            if rest_s > 0:
                pause_s = _BACKOFF_S * 2.0**waiting.refusals * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                waiting.refusals = min(waiting.refusals + 1, _BACKOFF_STEPS)
                self._refused.add(waiting)
                asyncio.get_running_loop().call_later(min(rest_s, pause_s), self._send_again, waiting)
                return
        waiting.answer.set_exception(refusals.refused(refusal, what=_name(waiting)))

    def _send_again(self, waiting: _Waiting) -> None:
        if waiting in self._refused:
            self._refused.discard(waiting)
            self._unsent.append(waiting)
            self._arrived.set()

    async def _watch(self, connection: PipelinedConnection) -> None:
        """Break the conversation off when Redis owes an answer for too long."""
        while connection.timeout_s is not None:
            await asyncio.sleep(connection.timeout_s / 4)
            if self._unanswered and time.monotonic() - self._heard_at > connection.timeout_s:
                raise RedisTimeoutError(f"no answer for {connection.timeout_s:g} s")

    def _take_back(self) -> None:
        """What has no answer is sent again, before all else."""
        self._unsent.extendleft(reversed(self._unanswered))
        self._unanswered.clear()
        if self._unsent:
            self._arrived.set()

    async def _outlast(self) -> None:
        """Try again and again, until an answer comes or nobody waits any more."""
        answers = self._answers
        async for attempt in AsyncRetrying(retry=retry_if_exception_type(_AWAY), wait=self._pause):
            with attempt:
                try:
                    await self._converse()
                except _ScriptsForgottenError:
                    raise
                except _AWAY as error:
                    if self._give_up(error) and self._answers == answers:
                        raise

    def _pause(self, attempt: RetryCallState) -> float:
        """How long to wait before the next attempt, in seconds: not longer than the oldest command does."""
        pause_s = _BACKOFF(attempt)
        if self._patience_s is None or not self._unsent:
            return pause_s
        oldest = min(waiting.since for waiting in self._unsent)
        return max(0.0, min(pause_s, oldest + self._patience_s - time.monotonic()))

    def _give_up(self, error: Exception) -> bool:
        """Fail the commands that were tried and whose patience is over. Returns whether others still wait."""
        if not isinstance(error, _RefusedError) and refusals.is_refusal(error):
            # redis-py has some among the outages: a wrong password, and a Redis that loads its data.
            error = _RefusedError(error)
        if isinstance(error, _RefusedError):
            self.refused = error.told
        if self._patience_s is not None:
            lasts = isinstance(error, _RefusedError) and error.lasts
            deadline = time.monotonic() - (0.0 if lasts else self._patience_s)
            still: deque[_Waiting] = deque()
            for waiting in self._unsent:
                if waiting.since <= deadline and self._tried(waiting):
                    _fail(waiting, _unreachable(error))
                else:
                    still.append(waiting)
            self._unsent = still
        if not self._unsent:
            self._arrived.clear()
        return bool(self._unsent)

    def _tried(self, waiting: _Waiting) -> bool:
        """Whether a connection was made, or could not be, since the command is there."""
        return waiting.since <= self._tried_at

    def _fail(self, error: InferfleetError) -> None:
        for waiting in (*self._unanswered, *self._unsent, *self._refused):
            _fail(waiting, error)
        self._unanswered.clear()
        self._unsent.clear()
        self._refused.clear()
        self._arrived.clear()


def _fail(waiting: _Waiting, error: InferfleetError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _closed() -> ServiceUnreachableError:
    return ServiceUnreachableError("this connection to Redis was closed")


def _name(waiting: _Waiting) -> str:
    return waiting.verb.decode() if isinstance(waiting.verb, bytes) else str(waiting.verb)


def _unreachable(error: Exception) -> InferfleetError:
    if isinstance(error, (ServiceUnreachableError, ServiceRefusedError)):
        return error
    if isinstance(error, _RefusedError):
        return error.told
    if refusals.is_refusal(error):
        return refusals.refused(error)
    return ServiceUnreachableError(f"Redis does not answer ({error}); check INFERFLEET_REDIS_URL")
