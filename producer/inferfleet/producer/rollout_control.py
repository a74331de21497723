"""Controls rollouts: takes them from step to step, or aborts them. Every gateway runs a controller.

For each rollout one controller holds a lease and decides; the others wait for the lease to expire. A decision
is written only if nobody has changed the rollout meanwhile, so a controller that was suspended does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.rollout_canary import no_ready_worker, ready_workers, renamed, work_done
from inferfleet.producer.rollout_moving import any_left, move_back, moving
from inferfleet.producer.rollout_steps import next_of
from inferfleet.producer.rollout_waiting import any_waits
from inferfleet.schemas.errors import InferfleetError, UnknownPoolError
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.pools import note_pool, read_pool_settings
from inferfleet.wire.redis.rollouts import change_rollout, lead_rollout, read_rollout, read_rules
from inferfleet.wire.tasks import TaskGroup

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S: Final = 1.0
"""How often the controller looks at each rollout."""

LEASE_S: Final = 10.0
"""After how long without a look another controller takes over."""

SETTLE_S: Final = 5.0
"""How long a rollout is ``aborting`` at least: during that time clients may still follow the earlier rule."""

TELL_S: Final = 3600.0
"""For how long others are told of a rollout. What a version that told nobody has promoted is no news."""

_TOLD: Final = {RolloutPhase.ABORTING, RolloutPhase.PROMOTED}


class RolloutController:
    """Controls the rollouts on which it holds the lease."""

    def __init__(
        self,
        fleet: Fleet,
        settings: ProducerSettings,
        *,
        on_abort: Callable[[Rollout], None] = lambda _: None,
        tell: Callable[[Rollout], Awaitable[None]] | None = None,
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._pipeline = fleet.pipeline
        self._on_abort = on_abort
        self._tell = tell
        """Tells others that a rollout was promoted or is being aborted, by itself or by hand. It is repeated
        until it succeeds, for ``TELL_S``."""
        self._name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._failing: set[str] = set()
        """What fails, as the log says it."""

    async def run(self) -> None:
        """Control rollouts until cancelled. While a service does not answer, they stay as they are."""
        looks: dict[str, asyncio.Task[None]] = {}
        async with TaskGroup() as tasks:
            while True:
                pools = await self._or_log("the rollouts stay as they are", read_rules(self._pipeline)) or {}
                # A look may take long, where many jobs move back: that must not hold up the other rollouts.
                for pool in pools.keys() - looks.keys():
                    failing = f"the rollout of pool {pool} stays as it is"
                    looks[pool] = tasks.create_task(self._or_log(failing, self._look_at(pool)))
                await asyncio.sleep(LOOK_S)
                looks = {pool: look for pool, look in looks.items() if not look.done()}

    async def _or_log(self, failing: str, work: Awaitable[T]) -> T | None:
        """Do the work. If it fails, it is repeated at the next look, and the log says so once."""
        try:
            done = await work
        except Exception as error:
            if failing not in self._failing:
                unforeseen = not isinstance(error, InferfleetError)
                logger.warning("%s (%s)", failing, error, exc_info=unforeseen)
            self._failing.add(failing)
            return None
        self._failing.discard(failing)
        return done

    async def _look_at(self, pool: str) -> None:
        if not await lead_rollout(self._pipeline, pool, controller=self._name, lease_s=LEASE_S):
            return
        # Else the list would forget the pool of a promoted rollout, which may have neither workers nor jobs.
        await note_pool(self._pipeline, pool)
        revision, rollout, _ = await read_rollout(self._pipeline, pool)
        if rollout is None:
            return
        rollout, revision = await self._tell_news(rollout, revision)
        if rollout.phase is RolloutPhase.PROMOTED:
            return
        if rollout.phase is RolloutPhase.ABORTING:
            await self._move_back(rollout, revision)
            return
        stable, canary, alive, settings = await asyncio.gather(
            read_counts(self._pipeline, pool),
            read_counts(self._pipeline, rollout.to),
            read_heartbeats(self._pipeline),
            read_pool_settings(self._pipeline, rollout.to),
        )
        unserved = await self._unserved(rollout, alive)
        now = self._pipeline.clock.now()
        after = next_of(
            rollout,
            stable=stable,
            canary=canary,
            now=now,
            unserved=unserved,
            work_done=work_done(rollout.to, alive, canary) if await any_waits(self._fleet, rollout) else None,
            on_hold=settings.paused_at is not None,
        )
        if after is not None and await change_rollout(self._pipeline, after, revision=revision):
            self._log(after)
            # At once: it may be finished before the next look.
            await self._tell_news(after, revision + 1)

    async def _tell_news(self, rollout: Rollout, revision: int) -> tuple[Rollout, int]:
        """Tell others of a rollout, if they have to know. Return it as it is now, with its revision."""
        if self._is_news(rollout):
            told = rollout.model_copy(update={"told": True})
            failing = f"nobody was told of the rollout of pool {rollout.pool}"
            if await self._or_log(failing, self._told(told, revision)):
                return told, revision + 1
        return rollout, revision

    async def _unserved(self, rollout: Rollout, alive: Sequence[Heartbeat]) -> str | None:
        """Say why the canary pool cannot serve jobs of the pool; ``None`` if it can, or has none."""
        if ready_workers(rollout.to, alive):
            return None if rollout.allow_rename else renamed(rollout.pool, rollout.to, alive)
        # Autoscaling may have removed the workers of a canary pool that has no jobs.
        left = await any_left(self._fleet, pool=rollout.pool, canary=rollout.to)
        return f"{no_ready_worker(rollout.to)}, and jobs wait there" if left else None

    def _is_news(self, rollout: Rollout) -> bool:
        age_s = (self._pipeline.clock.now() - rollout.since).total_seconds()
        return self._tell is not None and rollout.phase in _TOLD and not rollout.told and age_s < TELL_S

    async def _told(self, rollout: Rollout, revision: int) -> bool:
        if self._tell is not None:
            await self._tell(rollout)
        return await change_rollout(self._pipeline, rollout, revision=revision)

    async def _move_back(self, rollout: Rollout, revision: int) -> None:
        """Move jobs back until the rollout is aborted, on one connection."""
        pool, canary = rollout.pool, rollout.to
        if (await self._fleet.pool(canary)).ready is None:
            raise UnknownPoolError(
                f"the queue of its canary pool is gone: `inferfleet pool declare {canary}`"
            )
        async with moving(self._settings) as connection:
            while await lead_rollout(self._pipeline, pool, controller=self._name, lease_s=LEASE_S):
                if (await read_rollout(self._pipeline, pool)).revision != revision:
                    return
                moved = await move_back(self._fleet, connection, self._settings, pool=pool, canary=canary)
                if moved:
                    logger.warning("moved jobs from pool %s back to pool %s: %d", canary, pool, moved)
                if self._is_news(rollout):
                    # The next look tells it again. Nobody would, once the rollout is over.
                    return
                now = self._pipeline.clock.now()
                settled = (now - rollout.since).total_seconds() >= SETTLE_S
                if settled and not await any_left(self._fleet, pool=pool, canary=canary):
                    aborted = rollout.in_phase(RolloutPhase.ABORTED, now=now, reason=rollout.reason)
                    if await change_rollout(self._pipeline, aborted, revision=revision):
                        self._log(aborted)
                    return
                await asyncio.sleep(LOOK_S)

    def _log(self, rollout: Rollout) -> None:
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
