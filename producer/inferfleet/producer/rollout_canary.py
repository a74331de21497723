"""Says whether the workers of a canary pool serve its pool's jobs. Pure: heartbeats in, a reason out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from inferfleet.schemas.ended_counts import EndedCounts
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase

_MOST_NAMED: Final = 5
"""How many models a message names; it only counts the others."""


def ready_workers(canary: str, alive: Sequence[Heartbeat]) -> list[Heartbeat]:
    """Return the workers of the canary pool that serve jobs."""
    return [each for each in alive if each.pool == canary and each.phase is WorkerPhase.READY]


def no_ready_worker(canary: str) -> str:
    """Say that a canary pool has no worker that serves jobs."""
    return f"the canary pool {canary!r} has no ready worker"


def renamed(pool: str, canary: str, alive: Sequence[Heartbeat]) -> str | None:
    """Say which models and adapters the pool serves, and a ready worker of the canary pool does not.

    ``None`` if there is no such model, or one of the pools has no such worker. Jobs that name such a model
    would fail in the canary pool.
    """
    own = {name for each in alive if each.pool == pool for name in _served(each)}
    served = [_served(each) for each in ready_workers(canary, alive)]
    missing = sorted(name for name in own if any(name not in names for names in served))
    if not missing:
        return None
    named = ", ".join(map(repr, missing[:_MOST_NAMED]))
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return f"the pool {pool!r} serves {named}{more}, and not every worker of the canary pool {canary!r} does"


def work_done(canary: str, alive: Sequence[Heartbeat], ended: EndedCounts) -> int:
    """Return a number that changes whenever the workers of the canary pool do something for a job."""
    return ended.total + sum(each.tokens_generated for each in alive if each.pool == canary)


def _served(worker: Heartbeat) -> set[str]:
    return {worker.model, *worker.adapters}
