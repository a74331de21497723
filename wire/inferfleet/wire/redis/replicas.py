"""Waits until writes are on replicas of Redis, so that a failover does not forget them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from inferfleet.schemas.errors import ServiceRefusedError
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.pipeline import CommandPipeline

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Replicas:
    """Makes sure that writes are on as many replicas as the settings demand; by default on none.

    ``patience_s`` is how long a write waits for the replicas, at least for one ``WAIT``; ``None`` waits for
    ever. Meanwhile the write is in the master, where everybody sees it.
    """

    def __init__(
        self, pipeline: CommandPipeline, settings: ServiceSettings, *, patience_s: float | None
    ) -> None:
        self._pipeline = pipeline
        self._count = settings.redis_wait_replicas
        self._timeout_ms = settings.redis_wait_timeout_ms
        self._patience_s = patience_s
        self._lacking = Outage()
        self._asking: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None

    @property
    def demanded(self) -> bool:
        """Whether writes have to be on any replica."""
        return self._count > 0

    async def hold(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write, and return when the write is on the replicas that the settings demand.

        ``WAIT`` only knows of the writes on its own connection. If the connection was replaced in between, it
        may lead to a new master that has forgotten the write. So the write is repeated then.

        Raises:
            ServiceRefusedError: Too few replicas have the write, and patience is over.

        """
        if not self._count:
            return await write()
        deadline = time.monotonic() + (self._patience_s or 0.0)
        while True:
            connections = self._pipeline.connections
            answer = await write()
            while True:
                present = await self._ask()
                if self._pipeline.connections != connections:
                    break
                if present >= self._count:
                    if (lasted_s := self._lacking.ended()) is not None:
                        logger.warning("Redis has enough replicas again after %.1f s", lasted_s)
                    return answer
                problem = (
                    f"only {present} of {self._count} replicas of Redis confirmed a write within "
                    f"{self._timeout_ms} ms (INFERFLEET_REDIS_WAIT_REPLICAS)"
                )
                if self._patience_s is not None and time.monotonic() >= deadline:
                    raise ServiceRefusedError(problem, passing=True)
                if self._lacking.began():
                    logger.warning("%s; waiting for the others", problem)

    async def _ask(self) -> int:
        """Send ``WAIT`` behind all writes so far. All who come while another is under way share the next.

        Redis runs nothing else of this connection meanwhile, so one for each write would hold up the leases.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._ask_after(self._asking))
            # Those who wait for it may all be gone by then.
            self._next.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        return await asyncio.shield(self._next)

    async def _ask_after(self, other: asyncio.Task[int] | None) -> int:
        if other is not None:
            await asyncio.wait([other])
        self._asking, self._next = self._next, None
        answer: int = await self._pipeline.execute("WAIT", self._count, self._timeout_ms)
        return answer
