"""Follows whether the worker's pool is paused, and which model it requires."""

from __future__ import annotations

import asyncio
import logging

from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import read_pool_settings
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.ports import Engine
from inferfleet.worker.slots import PauseReason, Slots

logger = logging.getLogger(__name__)


class PoolPause:
    """Pauses the slots with the pool, and while the pool requires a model of another identity.

    While Redis is away, what was read last holds. ``known`` is set once it was read, so that a worker that
    starts takes no job of a paused pool.
    """

    def __init__(self, *, settings: WorkerSettings, engine: Engine, slots: Slots, fronts: Fronts) -> None:
        self._settings = settings
        self._engine = engine
        self._slots = slots
        self._fronts = fronts
        self._outage = Outage()
        self._required_identity: str | None = None
        self.known = asyncio.Event()

    @property
    def unfit(self) -> str:
        """Why the pool does not accept the loaded model; empty if it does."""
        required, identity = self._required_identity, self._engine.identity
        if required is None or identity is None or identity.short == required:
            return ""
        return f"pool {self._settings.pool} requires model {required}, but this worker has {identity.short}"

    async def follow(self, pipeline: CommandPipeline) -> None:
        """Read it with every heartbeat, until cancelled."""
        while True:
            try:
                found = await read_pool_settings(pipeline, self._settings.pool)
            except Exception:
                if self._outage.began():
                    logger.exception("cannot read whether the pool is paused; retrying")
            else:
                self._outage.ended()
                self._set(PauseReason.POOL, paused=found.paused_at is not None)
                self._required_identity = found.required_identity
                self.compare()
                self.known.set()
            await asyncio.sleep(self._settings.heartbeat_interval_s)

    def compare(self) -> None:
        """Compare the model with the one that the pool requires. Call this when either changes."""
        self._set(PauseReason.IDENTITY, paused=bool(self.unfit))

    def _set(self, reason: PauseReason, *, paused: bool) -> None:
        if paused is self._slots.paused_by(reason):
            return
        match reason, paused:
            case PauseReason.IDENTITY, True:
                logger.error("not serving: %s", self.unfit)
            case PauseReason.IDENTITY, False:
                logger.info("the pool accepts the model")
            case _:
                logger.info("the pool is paused" if paused else "the pool is resumed")
        self._slots.pause(reason, paused=paused)
        self._fronts.forget()
