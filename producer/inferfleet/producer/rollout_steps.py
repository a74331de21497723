"""Decides what becomes of a rollout. Pure: the controller asks every second and writes the answer down."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from inferfleet.producer.rollout_tests import Verdict, base_error_rate, findings
from inferfleet.schemas.ended_counts import EndedCounts
from inferfleet.schemas.rollout import Rollout, RolloutPhase

_SERVED: Final = {"unserved_since": None, "stalled_since": None}


def next_of(
    rollout: Rollout,
    *,
    stable: EndedCounts,
    canary: EndedCounts,
    now: datetime,
    unserved: str | None = None,
    work_done: int | None = None,
    on_hold: bool = False,
) -> Rollout | None:
    """Return what a rollout becomes now; ``None`` if it stays as it is.

    ``stable`` and ``canary`` count all attempts that have ever ended in the two pools. ``unserved`` says why
    the canary pool cannot serve the pool's jobs now, if it cannot. ``work_done`` is how much its workers have
    done so far, if jobs of the pool wait there, and have done so for as long as the rollout is stalled;
    ``None`` if none do. ``on_hold`` says that somebody has paused the canary pool.

    The rollout is aborted as soon as a test finds that the canary does worse, or once the canary pool could
    not serve the jobs for ``worker_timeout_s``, or has done nothing for ``stall_timeout_s`` while they wait,
    even while the rollout is paused. While the canary pool itself is, only tests abort it, and no step
    begins. It goes on once the step has lasted its interval and all tests have found that the canary keeps
    the limits; after the last step it is promoted.
    """
    if not rollout.phase.ongoing:
        return None
    since_stable = stable.since(rollout.stable_before)
    found = findings(rollout, stable=since_stable, canary=canary.since(rollout.canary_before))
    wrong = [each for each in found if each.verdict is Verdict.WRONG]
    if wrong:
        why = "; ".join(each.what for each in wrong)
        return rollout.in_phase(RolloutPhase.ABORTING, now=now, reason=f"at {rollout.weight:g} %: {why}")
    if on_hold:
        served = rollout.unserved_since is None and rollout.stalled_since is None
        return None if served else rollout.model_copy(update=_SERVED)
    if unserved is not None:
        if rollout.unserved_since is None:
            return rollout.model_copy(update={"unserved_since": now, "stalled_since": None})
        if (now - rollout.unserved_since).total_seconds() < rollout.worker_timeout_s:
            return None
        why = f"at {rollout.weight:g} %: {unserved}, for {rollout.worker_timeout_s:g} s"
        return rollout.in_phase(RolloutPhase.ABORTING, now=now, reason=why)
    if rollout.unserved_since is not None:
        return rollout.model_copy(update=_SERVED)
    before, rollout = rollout, _with_work(rollout, work_done, now=now)
    stalled_s = (now - (rollout.stalled_since or now)).total_seconds()
    if stalled_s >= rollout.stall_timeout_s:
        why = (
            f"at {rollout.weight:g} %: jobs wait in the canary pool {rollout.to!r}, whose workers have ended "
            f"no attempt and generated no token for {rollout.stall_timeout_s:g} s"
        )
        return rollout.in_phase(RolloutPhase.ABORTING, now=now, reason=why)
    lasted_s = (now - rollout.since).total_seconds()
    right = all(each.verdict is Verdict.RIGHT for each in found)
    if rollout.phase is RolloutPhase.PAUSED or lasted_s < rollout.interval_s or not right:
        return None if rollout is before else rollout
    if rollout.step + 1 == len(rollout.steps):
        return rollout.in_phase(RolloutPhase.PROMOTED, now=now)
    return rollout.model_copy(
        update={
            "step": rollout.step + 1,
            "since": now,
            "stable_before": stable,
            "canary_before": canary,
            "base_error_rate": base_error_rate(since_stable),
        }
    )


def _with_work(rollout: Rollout, work_done: int | None, *, now: datetime) -> Rollout:
    """Return the rollout with since when its canary pool does nothing; the same one if it was known."""
    if work_done is None:
        return rollout.model_copy(update=_SERVED) if rollout.stalled_since is not None else rollout
    if rollout.stalled_since is not None and rollout.work_done == work_done:
        return rollout
    return rollout.model_copy(update={"stalled_since": now, "work_done": work_done})
