"""Puts the jobs of a pool that has a rollout into one of its two pools.

A client reads a pool's rule when it submits a job, at most every ``FRESH_S``. So it follows a change within
that time, pays no round trip for each job, and reads nothing while it submits nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from inferfleet.schemas.job import Job
from inferfleet.schemas.rollout import RolloutRule
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import ask_rule, rule_of

FRESH_S: Final = 0.5
"""How old the rule that routes a job may be."""

_MOST: Final = 1024
"""How many pools a client remembers: callers may name any."""


class Routing:
    """Follows the rules of the pools to which one client submits jobs."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self._known: dict[str, tuple[float, RolloutRule | None]] = {}
        """The rule of each pool, and when it was asked for."""
        self._reading: dict[str, asyncio.Future[bytes | None]] = {}

    async def route(self, job: Job) -> Job:
        """Return the job, in the pool that the rule chooses.

        Raises:
            ServiceUnreachableError: Redis cannot be reached.

        """
        asked = job.submitted_to or job.pool
        at, rule = self._known.get(asked, (-FRESH_S, None))
        if time.monotonic() - at >= FRESH_S:
            rule = await self._read(asked)
        return in_pool(job, rule.to if rule is not None and rule.takes(job) else asked)

    def known(self, pool: str) -> RolloutRule | None:
        """Return the rule of a pool as it was read last."""
        return self._known[pool][1] if pool in self._known else None

    async def _read(self, pool: str) -> RolloutRule | None:
        asked_at = time.monotonic()
        reading = self._reading.get(pool)
        if reading is None:
            reading = self._reading[pool] = ask_rule(self._pipeline, pool)
            reading.add_done_callback(lambda _: self._reading.pop(pool, None))
        # Several jobs wait for it: one that is cancelled must not cancel it for the others.
        rule = rule_of(await asyncio.shield(reading))
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[pool] = asked_at, rule
        return rule


def in_pool(job: Job, pool: str) -> Job:
    """Return the job in a pool. It keeps the name of the pool to which it was submitted."""
    if pool == job.pool:
        return job
    asked = job.submitted_to or job.pool
    return job.model_copy(update={"pool": pool, "submitted_to": None if pool == asked else asked})
