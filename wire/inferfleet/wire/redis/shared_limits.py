"""Limits on what an API key may do, which all gateways share. Needs the extra ``gateway``.

The rates are those of the library ``limits``: a sliding window, approximated by two counters. After a lost
reply its script may count twice, which makes a limit stricter for a minute.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, Final, NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from inferfleet.schemas.names import LIMITS_PREFIX, guarantee_key, places_key
from inferfleet.wire.redis import process_scripts
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.pipeline import CommandPipeline

MINUTE_S: Final = 60

NEW_MS: Final = 60_000
"""For how long a job without a record keeps its place: its submission may be under way."""

BURST_S: Final = 2.0
"""How many seconds of its guarantee a key may use at once, and go into debt by one job."""

LOOK_AGAIN_S: Final = 1.0
"""How long a look at all jobs of a key that found no ended one keeps the next look away."""

RunScript = Callable[[Sequence[str], Sequence[Any]], Awaitable[Any]]


class Cost(NamedTuple):
    """An ``amount`` of something of which a key has ``limit`` a minute."""

    what: str
    amount: int
    limit: int


class Lacking(NamedTuple):
    """What a key has too little of, and in how many seconds it will have enough."""

    cost: Cost
    wait_s: float


class SharedLimits:
    """The rates and places of API keys. Every call raises what ``CommandPipeline.execute`` raises."""

    def __init__(self, pipeline: CommandPipeline, *, ttl_s: int) -> None:
        self._pipeline = pipeline
        self._jobs = JobReading(pipeline)
        self._ttl_s = ttl_s
        self._look_at: dict[str, float] = {}
        """When all jobs of a key may be looked at again."""
        self._name = os.urandom(4).hex()
        self._calls = count()
        self._storage = _Storage(pipeline)
        self._rates = SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, key_id: str, costs: Sequence[Cost]) -> Lacking | None:
        """Take amounts, each at most its limit, from what a key has a minute: all of them, or nothing.

        A concurrent call may take a part, and still return what is lacking.
        """
        for cost in costs[1:]:
            if not await self._rates.test(*_rate(key_id, cost), cost=cost.amount):
                return await self._lacking(key_id, cost)
        for cost in costs:
            if not await self._rates.hit(*_rate(key_id, cost), cost=cost.amount):
                return await self._lacking(key_id, cost)
        return None

    async def guaranteed(self, key_id: str, amount: int, *, per_minute: int) -> bool:
        """Take an amount of what a key is guaranteed. Return false, and take nothing, if that is used up.

        This is a token bucket, kept as the generic cell rate algorithm does (ITU-T I.371): by the time until
        which the guarantee is used.
        """
        command = process_scripts.guarantee(
            guarantee_key(key_id),
            caller=self._name,
            number=next(self._calls),
            cost_ms=amount * MINUTE_S * 1000 / per_minute,
            burst_ms=int(BURST_S * 1000),
            ttl_s=self._ttl_s,
        )
        return bool(await self._pipeline.execute(*command))

    async def _lacking(self, key_id: str, cost: Cost) -> Lacking:
        item, *names = _rate(key_id, cost)
        window = await self._storage.get_sliding_window(item.key_for(*names), MINUTE_S)
        return Lacking(cost, seconds_until(cost.limit - cost.amount, *window))

    async def reserve(self, key_id: str, jobs: Sequence[str], *, most: int) -> bool:
        """Reserve places for jobs among the unfinished jobs of a key. Return whether there are enough."""
        now = asyncio.get_running_loop().time()
        looks = now >= self._look_at.get(key_id, now)
        if not (present := await self._reserve(key_id, jobs, most, every=looks)):
            return True
        if ended := await self._ended(present):
            await self.free(key_id, ended)
            return not await self._reserve(key_id, jobs, most, every=False)
        if looks:
            # A caller that tries again and again must not cause a read each time.
            self._look_at[key_id] = now + LOOK_AGAIN_S
        return False

    async def free(self, key_id: str, jobs: Sequence[str]) -> None:
        """Free the places of jobs."""
        await self._pipeline.execute("ZREM", places_key(key_id), *jobs)

    async def _reserve(self, key_id: str, jobs: Sequence[str], most: int, *, every: bool) -> dict[str, float]:
        """Reserve places. If there are not enough, return the jobs that hold them: all, or the first."""
        answer: list[bytes] = await self._pipeline.execute(
            *process_scripts.reserve(
                places_key(key_id), *jobs, most=most, ttl_s=self._ttl_s, last=-1 if every else 0
            )
        )
        return {
            job_id.decode(): float(since) for job_id, since in zip(answer[::2], answer[1::2], strict=True)
        }

    async def _ended(self, places: dict[str, float]) -> list[str]:
        states = await self._jobs.states(places)
        new_ms = self._pipeline.clock.now_ms() - NEW_MS
        return [
            job_id
            for job_id, since in places.items()
            if (since < new_ms if (state := states[job_id]) is None else state.terminal)
        ]


class _Storage(RedisStorage):
    """Runs the scripts of ``limits`` on our pipeline, so that they run on every Redis that it reaches."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._scripts = _Scripts(pipeline)
        super().__init__("async+redis://", implementation="redispy", key_prefix=LIMITS_PREFIX)

    def configure_bridge(self) -> None:
        bridge: Any = self.bridge
        scripts = self._scripts

        def connection(readonly: bool) -> _Scripts:
            return scripts

        bridge.connection_getter = connection


class _Scripts:
    """What ``limits`` needs of a client of Redis."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline

    def register_script(self, text: str) -> RunScript:
        async def run(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            return await self._pipeline.execute("EVAL", text, len(keys), *keys, *arguments)

        return run


def _rate(key_id: str, cost: Cost) -> tuple[RateLimitItemPerMinute, str, str]:
    return RateLimitItemPerMinute(cost.limit), cost.what, key_id


def seconds_until(
    room: int, previous: int, previous_ends_s: float, current: int, current_ends_s: float
) -> float:
    """Return in how many seconds the window counts at most ``room``, if nobody takes anything meanwhile.

    The previous window counts in proportion to what is left of it, rounded down. The current one becomes the
    previous one a minute before its end.
    """
    if current > room:
        shifts_in_s = max(current_ends_s - MINUTE_S, 0.0)
        return shifts_in_s + max(MINUTE_S - _left_s(current, at_most=room), 0.0)
    if not previous:
        return 0.0
    return max(previous_ends_s - _left_s(previous, at_most=room - current), 0.0)


def _left_s(count: int, *, at_most: int) -> float:
    """Return how much of a window is left when its ``count`` weighs that little, to Redis' millisecond."""
    return (at_most + 1) * MINUTE_S / count - 0.001


def retry_after_s(seconds: float) -> int:
    """Round up to whole seconds, at least one."""
    return max(math.ceil(seconds), 1)
