"""The controller of rollouts: it goes on from step to step, or aborts. Every gateway has one.

For each rollout one of them holds a lease and decides; the others wait for it to expire. What is decided is
written only if nobody has changed the rollout meanwhile, so a controller that was suspended does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.rollout_moving import any_left, move_back
from inferfleet.producer.rollout_steps import next_of
from inferfleet.producer.rollouts import in_phase
from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.rollouts import change_rollout, lead_rollout, read_canaries, read_rollout

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often the controller looks at each rollout."""

LEASE_S: Final = 10.0
"""After how long without a look another controller takes over."""


class RolloutController:
    """Controls the rollouts of all pools, those of which it has the lease."""

    def __init__(
        self,
        fleet: Fleet,
        settings: ProducerSettings,
        *,
        on_abort: Callable[[Rollout], None] = lambda _: None,
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._pipeline = fleet.pipeline
        self._on_abort = on_abort
        self._name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._away = False

    async def run(self) -> None:
        """Control until cancelled. Without its services, a rollout stays as it is."""
        while True:
            try:
                for pool in (await read_canaries(self._pipeline)).values():
                    await self._look_at(pool)
                self._away = False
            except InferfleetError as error:
                if not self._away:
                    logger.warning("the rollouts stay as they are (%s)", error)
                self._away = True
            except Exception:
                if not self._away:
                    logger.exception("the rollouts stay as they are")
                self._away = True
            await asyncio.sleep(LOOK_S)

    async def _look_at(self, pool: str) -> None:
        if not await lead_rollout(self._pipeline, pool, controller=self._name, lease_s=LEASE_S):
            return
        revision, rollout, _ = await read_rollout(self._pipeline, pool)
        if rollout is None:
            return
        if rollout.phase is RolloutPhase.ABORTING:
            moved = await move_back(self._fleet, self._settings, pool=pool, canary=rollout.to)
            if moved:
                logger.warning("moved jobs from pool %s back to pool %s: %d", rollout.to, pool, moved)
            if await any_left(self._fleet, pool=pool, canary=rollout.to):
                return
            clock = self._pipeline.clock
            after = in_phase(rollout, RolloutPhase.ABORTED, now=clock.now, reason=rollout.reason)
        else:
            stable, canary = await asyncio.gather(
                read_counts(self._pipeline, pool), read_counts(self._pipeline, rollout.to)
            )
            found = next_of(rollout, stable=stable, canary=canary, now=self._pipeline.clock.now())
            if found is None:
                return
            after = found
        if await change_rollout(self._pipeline, after, revision=revision):
            self._tell(after)

    def _tell(self, rollout: Rollout) -> None:
        match rollout.phase:
            case RolloutPhase.ABORTING:
                logger.error(
                    "the rollout of pool %s to %s is aborted: %s", rollout.pool, rollout.to, rollout.reason
                )
                self._on_abort(rollout)
            case phase:
                logger.info(
                    "the rollout of pool %s to %s is %s, at %g %%",
                    rollout.pool,
                    rollout.to,
                    phase,
                    rollout.weight,
                )
