"""Limits on what an API key may do, which all gateways share. Needs the extra ``gateway``.

The rates are those of the library ``limits``: a sliding window, approximated by two counters. After a lost
reply its script may count twice, which makes a limit stricter for a minute.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from inferfleet.schemas.names import LIMITS_PREFIX, places_key
from inferfleet.wire.redis import process_scripts
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.pipeline import CommandPipeline

MINUTE_S: Final = 60

NEW_MS: Final = 60_000
"""For how long a job without a record keeps its place: its submission may be under way."""

RunScript = Callable[[Sequence[str], Sequence[Any]], Awaitable[Any]]


class SharedLimits:
    """The rates and places of API keys. Every call raises what ``CommandPipeline.execute`` raises."""

    def __init__(self, pipeline: CommandPipeline, *, ttl_s: int) -> None:
        self._pipeline = pipeline
        self._jobs = JobReading(pipeline)
        self._ttl_s = ttl_s
        self._storage = _Storage(pipeline)
        self._rates = SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, what: str, key_id: str, *, limit: int, amount: int) -> float:
        """Take an amount, at most ``limit``, from what a key has of something a minute.

        Returns 0, or in how many seconds there is enough.
        """
        item = RateLimitItemPerMinute(limit)
        if await self._rates.hit(item, what, key_id, cost=amount):
            return 0.0
        window = await self._storage.get_sliding_window(item.key_for(what, key_id), MINUTE_S)
        return seconds_until(limit - amount, *window)

    async def reserve(self, key_id: str, jobs: Sequence[str], *, most: int) -> bool:
        """Reserve places for jobs among the unfinished jobs of a key. Return whether there are enough."""
        if not (present := await self._reserve(key_id, jobs, most)):
            return True
        if ended := await self._ended(present):
            await self.free(key_id, ended)
            return not await self._reserve(key_id, jobs, most)
        return False

    async def free(self, key_id: str, jobs: Sequence[str]) -> None:
        """Free the places of jobs."""
        await self._pipeline.execute("ZREM", places_key(key_id), *jobs)

    async def _reserve(self, key_id: str, jobs: Sequence[str], most: int) -> dict[str, float]:
        answer: list[bytes] = await self._pipeline.execute(
            *process_scripts.reserve(places_key(key_id), *jobs, most=most, ttl_s=self._ttl_s)
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
    """Runs the scripts of ``limits`` on our pipeline, so that any Redis will do that we can connect to."""

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


def seconds_until(
    room: int, previous: int, previous_ends_s: float, current: int, current_ends_s: float
) -> float:
    """Return when what has been taken weighs at most ``room``, if nobody takes anything meanwhile.

    The previous window counts by what is left of it. The current one becomes the previous one a minute before
    its end.
    """
    if previous and current <= room:
        return max(previous_ends_s - (room - current) * MINUTE_S / previous, 0.0)
    if not current:
        return 0.0
    shifts_in_s = max(current_ends_s - MINUTE_S, 0.0)
    return shifts_in_s + max(MINUTE_S - room * MINUTE_S / current, 0.0)


def retry_after_s(seconds: float) -> int:
    """Round up to whole seconds, at least one."""
    return max(math.ceil(seconds), 1)
