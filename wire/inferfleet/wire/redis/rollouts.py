"""The rollouts of pools: the rule that producers follow, and the state that the controller changes.

A change writes both at once, and only if nobody else has changed them since they were read. So whatever dies,
there is never half a rule, and two controllers never both make a step.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from pydantic import ValidationError

from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.names import pool_key, rollout_key
from inferfleet.schemas.rollout import Rollout, RolloutPhase, RolloutRule
from inferfleet.wire.redis import pool_scripts
from inferfleet.wire.redis.clock import moment_of
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import new_change, read_pools

logger = logging.getLogger(__name__)


def ask_rule(pipeline: CommandPipeline, pool: str) -> asyncio.Future[bytes | None]:
    """Ask for the rule of a pool. The future fails as those of ``CommandPipeline.enqueue`` do."""
    return pipeline.enqueue("HGET", pool_key(pool), "rollout")


@lru_cache
def rule_of(answer: bytes | None) -> RolloutRule | None:
    """Return the rule; ``None`` if the pool has none, or this version cannot read it.

    Cached, so that a rule which is read all the time is in the log once.
    """
    if answer is None:
        return None
    try:
        return RolloutRule.model_validate_json(answer)
    except ValidationError as error:
        logger.warning("cannot read the rule of a rollout, so no job goes to its canary pool (%s)", error)
        return None


async def read_rules(pipeline: CommandPipeline) -> dict[str, RolloutRule]:
    """Read the rules of all rollouts, by the pools whose jobs they split."""
    pools = await read_pools(pipeline)
    rules = await asyncio.gather(*(ask_rule(pipeline, pool) for pool in pools))
    return {
        pool: rule for pool, answer in zip(pools, rules, strict=True) if (rule := rule_of(answer)) is not None
    }


class Kept(NamedTuple):
    """A rollout as Redis keeps it. ``controller`` is the process that holds the lease, ``""`` for none.

    Without one nobody knows whether the canary pool serves the jobs, so the rollout does not say either.
    """

    revision: int
    rollout: Rollout | None
    controller: str = ""


async def read_rollout(pipeline: CommandPipeline, pool: str) -> Kept:
    """Read the rollout of a pool; revision 0 if there never was one.

    Raises:
        InferfleetError: This version cannot read it.

    """
    revision, state, controller, *lease = await pipeline.execute(
        "HMGET", rollout_key(pool), "revision", "state", "controller", "until", "led_since"
    )
    if state is None:
        return Kept(0, None)
    try:
        rollout = Rollout.model_validate_json(state)
    except ValidationError as error:
        raise InferfleetError(
            f"the rollout of pool {pool!r} cannot be read: another version of inferfleet wrote it"
        ) from error
    led_since = _led_since(pipeline, *lease)
    leader = "" if led_since is None else controller.decode()
    return Kept(int(revision), _as_seen(rollout, led_since), leader)


def _led_since(pipeline: CommandPipeline, until: bytes | None, since: bytes | None) -> datetime | None:
    """Return since when some controller has always looked at a rollout; ``None`` if none does now."""
    if until is None or int(until) <= pipeline.clock.now_ms():
        return None
    # A controller of an earlier version writes no ``since``.
    return moment_of(int(since or 0))


def _as_seen(rollout: Rollout, led_since: datetime | None) -> Rollout:
    """Return the rollout without what may be over, because no controller has looked at it meanwhile."""
    noted = {"unserved_since": rollout.unserved_since, "stalled_since": rollout.stalled_since}
    seen = {
        name: None if since is None or led_since is None else max(since, led_since)
        for name, since in noted.items()
    }
    return rollout if seen == noted else rollout.model_copy(update=seen)


async def last_rollout(pipeline: CommandPipeline, pool: str) -> Rollout | None:
    """Read the rollout of a pool, which needs only the right to HGET; ``None`` if it cannot be read."""
    state: bytes | None
    state, *lease = await asyncio.gather(
        *(pipeline.enqueue("HGET", rollout_key(pool), field) for field in ("state", "until", "led_since"))
    )
    try:
        rollout = None if state is None else Rollout.model_validate_json(state)
    except ValidationError:
        return None
    return None if rollout is None else _as_seen(rollout, _led_since(pipeline, *lease))


async def read_rollouts(pipeline: CommandPipeline) -> list[Rollout]:
    """Read the rollouts of all pools, without those that are finished or cannot be read."""
    pools = await read_pools(pipeline)
    found = await asyncio.gather(*(last_rollout(pipeline, pool) for pool in pools))
    return [each for each in found if each is not None and each.phase is not RolloutPhase.FINISHED]


async def change_rollout(pipeline: CommandPipeline, rollout: Rollout, *, revision: int) -> bool:
    """Change the rollout of a pool that had this revision. Return false if somebody else has changed it."""
    rule = rollout.rule
    command = pool_scripts.rollout_change(
        rollout_key(rollout.pool),
        pool_key(rollout.pool),
        known_revision=revision,
        state=rollout.model_dump_json(),
        rule="" if rule is None else rule.model_dump_json(),
        change=new_change(),
    )
    return bool(await pipeline.execute(*command))


async def lead_rollout(pipeline: CommandPipeline, pool: str, *, controller: str, lease_s: float) -> bool:
    """Take or renew the lease on a pool's rollout. Return whether this process holds it."""
    command = pool_scripts.rollout_lead(
        rollout_key(pool), controller=controller, lease_ms=int(lease_s * 1000)
    )
    return bool(await pipeline.execute(*command))
