"""Reads the rollouts of a fleet as people watch them: with what both pools have done since the step began."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from inferfleet.producer.rollout_tests import LEAST_TTFT_S
from inferfleet.schemas.ended_counts import EndedCounts, quantile
from inferfleet.schemas.fleet_snapshot import RolloutView
from inferfleet.schemas.rollout import Rollout
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import read_rollouts


class RolloutSides(NamedTuple):
    """A rollout, and what both its pools have ended since its step began."""

    rollout: Rollout
    stable: EndedCounts
    canary: EndedCounts


async def rollout_views(pipeline: CommandPipeline) -> list[RolloutView]:
    """Read the rollouts that are not finished, sorted by pool.

    Raises:
        ServiceUnreachableError: Redis does not answer.

    """
    return list(map(_view, await rollout_sides(pipeline)))


async def rollout_sides(pipeline: CommandPipeline) -> list[RolloutSides]:
    """Read the same rollouts with all that is counted of their pools. Raises as ``rollout_views`` does."""
    return await asyncio.gather(*(_sides(pipeline, rollout) for rollout in await read_rollouts(pipeline)))


async def _sides(pipeline: CommandPipeline, rollout: Rollout) -> RolloutSides:
    stable, canary = await asyncio.gather(
        read_counts(pipeline, rollout.pool), read_counts(pipeline, rollout.to)
    )
    return RolloutSides(rollout, stable.since(rollout.stable_before), canary.since(rollout.canary_before))


def _view(sides: RolloutSides) -> RolloutView:
    rollout, stable, canary = sides
    return RolloutView(
        pool=rollout.pool,
        to=rollout.to,
        phase=rollout.phase,
        step=rollout.step + 1,
        steps=len(rollout.steps),
        weight=rollout.weight,
        since=rollout.since,
        reason=rollout.reason,
        stable_error_rate=stable.error_rate if stable.total else None,
        canary_error_rate=canary.error_rate if canary.total else None,
        ttft_ratio=_ttft_ratio(stable, canary),
    )


def _ttft_ratio(stable: EndedCounts, canary: EndedCounts) -> float | None:
    if not (stable.first_token and canary.first_token):
        return None
    return quantile(canary.first_token, 0.5) / max(LEAST_TTFT_S, quantile(stable.first_token, 0.5))
