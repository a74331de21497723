"""Follows whether the worker's pool is paused."""

from __future__ import annotations

import asyncio
import logging

from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import read_pool_settings
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.slots import PauseReason, Slots

logger = logging.getLogger(__name__)


class PoolPause:
    """Pauses the slots with the pool. While Redis is away, what was read last holds.

    ``known`` is set once it was read, so that a worker that starts takes no job of a paused pool.
    """

    def __init__(self, *, settings: WorkerSettings, slots: Slots, fronts: Fronts) -> None:
        self._settings = settings
        self._slots = slots
        self._fronts = fronts
        self._outage = Outage()
        self.known = asyncio.Event()

    async def follow(self, pipeline: CommandPipeline) -> None:
        """Read it with every heartbeat, until cancelled."""
        while True:
            try:
                paused_at = (await read_pool_settings(pipeline, self._settings.pool)).paused_at
            except Exception:
                if self._outage.began():
                    logger.exception("cannot read whether the pool is paused; retrying")
            else:
                self._outage.ended()
                self._set(paused=paused_at is not None)
                self.known.set()
            await asyncio.sleep(self._settings.heartbeat_interval_s)

    def _set(self, *, paused: bool) -> None:
        if paused is not self._slots.paused_by(PauseReason.POOL):
            logger.info("the pool is paused" if paused else "the pool is resumed")
            self._slots.pause(paused=paused)
            self._fronts.forget()
