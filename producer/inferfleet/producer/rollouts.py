"""What people do with rollouts: start them, look at them, and change their course."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.rollout_canary import no_ready_worker, ready_workers, renamed
from inferfleet.schemas.errors import RolloutError, UnknownPoolError
from inferfleet.schemas.limits import LONGEST_S
from inferfleet.schemas.problems import sentence
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.pools import note_pool, read_pool_settings
from inferfleet.wire.redis.rollouts import Kept, change_rollout, read_rollout, read_rules

_TRIES: Final = 20
"""How often a change is tried, because the controller may be faster."""

WORKER_TIMEOUT_S: Final = 60.0
"""For how long the canary pool may have jobs without a ready worker."""

START_TIMEOUT_S: Final = 600.0
"""The same if workers only start when there are jobs, and then load a model."""

STALL_TIMEOUT_S: Final = 300.0
"""For how long jobs may wait in the canary pool while its workers do nothing: longer than the longest
prompt takes."""

_ONGOING: Final = (RolloutPhase.RUNNING, RolloutPhase.PAUSED)


class Rollouts:
    """The rollouts of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pipeline = fleet.pipeline

    async def start(
        self,
        pool: str,
        *,
        to: str,
        steps: Sequence[float],
        interval_s: float,
        max_error_rate: float = 0.01,
        max_ttft_ratio: float = 1.2,
        max_wait_ratio: float = 2.0,
        worker_timeout_s: float | None = None,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        allow_rename: bool = False,
        allow_no_workers: bool = False,
    ) -> Rollout:
        """Start to move the jobs of ``pool`` to the pool ``to``.

        The rollout is aborted if the canary pool has jobs of the pool and no ready worker for
        ``worker_timeout_s``: by default a minute, or ten with ``allow_no_workers``; or if its workers have
        neither ended an attempt nor generated a token for ``stall_timeout_s`` while jobs of the pool waited.

        Raises:
            UnknownPoolError: A pool has no queue.
            RolloutError: An argument is invalid, or one of the pools has a rollout; or the canary pool has no
                ready worker, unless ``allow_no_workers``; or not all that it has serve all models and
                adapters that the pool serves, unless ``allow_rename``.

        """
        for name, seconds in (
            ("interval_s", interval_s),
            ("worker_timeout_s", worker_timeout_s),
            ("stall_timeout_s", stall_timeout_s),
        ):
            if seconds is not None and seconds > LONGEST_S:
                raise RolloutError(f"{name}: {seconds:g} is above the maximum {LONGEST_S}")
        for name in (pool, to):
            if (await self._fleet.pool(name)).ready is None:
                raise UnknownPoolError(
                    f"the pool {name!r} has no queue: start a worker for it, or declare it, "
                    f"`inferfleet pool declare {name}`"
                )
        # Gateways look at the rollouts of the pools on the list.
        await note_pool(self._pipeline, pool)
        await self._require_apart(pool, to)
        await self._require_served(pool, to, allow_rename=allow_rename, allow_no_workers=allow_no_workers)
        if worker_timeout_s is None:
            worker_timeout_s = START_TIMEOUT_S if allow_no_workers else WORKER_TIMEOUT_S
        now = self._pipeline.clock.now()
        try:
            rollout = Rollout(
                pool=pool,
                to=to,
                steps=tuple(steps),
                interval_s=interval_s,
                max_error_rate=max_error_rate,
                max_ttft_ratio=max_ttft_ratio,
                max_wait_ratio=max_wait_ratio,
                worker_timeout_s=worker_timeout_s,
                stall_timeout_s=stall_timeout_s,
                allow_rename=allow_rename,
                started_at=now,
                since=now,
                stable_before=await read_counts(self._pipeline, pool),
                canary_before=await read_counts(self._pipeline, to),
            )
        except ValidationError as error:
            raise RolloutError(_invalid(error)) from error
        kept = await read_rollout(self._pipeline, pool)
        if kept.rollout is not None and not kept.rollout.phase.over:
            what_to_do = (
                "wait until a gateway has aborted it"
                if kept.rollout.phase is RolloutPhase.ABORTING
                else "abort it, or finish it if it is promoted"
            )
            raise RolloutError(
                f"the pool {pool!r} has a rollout to {kept.rollout.to!r}, which is {kept.rollout.phase}: "
                f"{what_to_do}"
            )
        if not await change_rollout(self._pipeline, rollout, revision=kept.revision):
            raise RolloutError(f"somebody else has just started a rollout of the pool {pool!r}")
        try:
            # No script sees those of several pools. Of two that start at the same moment, one sees the other.
            await self._require_apart(pool, to)
        except RolloutError as error:
            await self.abort(pool, reason=str(error))
            raise
        return rollout

    async def read(self, pool: str) -> Kept:
        """Read the rollout of a pool, with the process that controls it.

        Raises:
            RolloutError: There is none.

        """
        kept = await read_rollout(self._pipeline, pool)
        if kept.rollout is None:
            raise RolloutError(f"the pool {pool!r} has no rollout; `inferfleet rollout start` starts one")
        return kept

    async def canary_paused_at(self, rollout: Rollout) -> datetime | None:
        """Read when the canary pool was paused; ``None`` unless it is."""
        return (await read_pool_settings(self._pipeline, rollout.to)).paused_at

    async def pause(self, pool: str) -> Rollout:
        """Let a rollout stay at its weight. It is still aborted if the canary pool does worse."""
        return await self._change(pool, RolloutPhase.PAUSED, of=_ONGOING)

    async def resume(self, pool: str) -> Rollout:
        """Let a paused rollout go on."""
        return await self._change(pool, RolloutPhase.RUNNING, of=_ONGOING)

    async def promote(
        self, pool: str, *, allow_rename: bool = False, allow_no_workers: bool = False
    ) -> Rollout:
        """Send all jobs to the canary pool now, whatever the tests have found.

        Raises:
            RolloutError: There is no ongoing rollout; or the canary pool could not serve the jobs, as for
                ``start``. What ``start`` allowed under other names is still allowed.

        """
        rollout = (await self.read(pool)).rollout
        if rollout is not None and rollout.phase.ongoing:
            await self._require_served(
                pool,
                rollout.to,
                allow_rename=allow_rename or rollout.allow_rename,
                allow_no_workers=allow_no_workers,
            )
        return await self._change(pool, RolloutPhase.PROMOTED, of=(*_ONGOING, RolloutPhase.PROMOTED))

    async def abort(self, pool: str, *, reason: str) -> Rollout:
        """Send no more jobs to the canary pool. The controller moves back those that wait there."""
        of = (*_ONGOING, RolloutPhase.PROMOTED, RolloutPhase.ABORTING)
        return await self._change(pool, RolloutPhase.ABORTING, of=of, reason=reason)

    async def finish(self, pool: str) -> Rollout:
        """End a rollout that was promoted: the pool takes its own jobs again."""
        of = (RolloutPhase.PROMOTED, RolloutPhase.FINISHED)
        return await self._change(pool, RolloutPhase.FINISHED, of=of)

    async def _change(
        self, pool: str, phase: RolloutPhase, *, of: Sequence[RolloutPhase], reason: str | None = None
    ) -> Rollout:
        for _ in range(_TRIES):
            kept = await self.read(pool)
            assert kept.rollout is not None  # noqa: S101 - ``read`` raises
            if kept.rollout.phase not in of:
                raise RolloutError(
                    f"the rollout of pool {pool!r} is {kept.rollout.phase}; this needs one that is "
                    f"{' or '.join(dict.fromkeys(of))}"
                )
            if kept.rollout.phase is phase:
                return kept.rollout
            changed = kept.rollout.in_phase(phase, now=self._pipeline.clock.now(), reason=reason)
            if await change_rollout(self._pipeline, changed, revision=kept.revision):
                return changed
        raise RolloutError(f"the rollout of pool {pool!r} keeps changing; try again")

    async def _require_served(
        self, pool: str, to: str, *, allow_rename: bool, allow_no_workers: bool
    ) -> None:
        """Refuse what would leave jobs waiting, or fail those that name a model."""
        alive = await read_heartbeats(self._pipeline)
        if not (allow_no_workers or ready_workers(to, alive)):
            raise RolloutError(
                f"{no_ready_worker(to)}: start one and wait until it is ready, or allow this if workers "
                "start once jobs wait (--allow-no-workers)"
            )
        if not allow_rename and (problem := renamed(pool, to, alive)) is not None:
            raise RolloutError(
                f"{problem}, so jobs that name it would fail: serve it in both, or allow this "
                "(--allow-rename)"
            )

    async def _require_apart(self, pool: str, to: str) -> None:
        """Refuse a chain of rollouts: a job is moved once."""
        for name, rule in (await read_rules(self._pipeline)).items():
            if name == to or (name != pool and rule.to in {pool, to}):
                raise RolloutError(
                    f"the pool {name!r} has a rollout to {rule.to!r}: a pool can take part in only one "
                    "rollout; abort or finish that one"
                )


def _invalid(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {sentence(first)}" if where else sentence(first)
