"""Decides what becomes of a rollout. Pure: the controller asks every second and writes the answer down."""

from __future__ import annotations

from datetime import datetime

from inferfleet.producer.rollout_tests import Verdict, base_error_rate, findings
from inferfleet.schemas.ended_counts import EndedCounts
from inferfleet.schemas.rollout import Rollout, RolloutPhase


def next_of(
    rollout: Rollout,
    *,
    stable: EndedCounts,
    canary: EndedCounts,
    now: datetime,
    unserved: str | None = None,
) -> Rollout | None:
    """Return what a rollout becomes now; ``None`` if it stays as it is.

    ``stable`` and ``canary`` count all attempts that have ever ended in the two pools. ``unserved`` says why
    the canary pool cannot serve the pool's jobs now, if it cannot.

    The rollout is aborted as soon as a test finds that the canary does worse, or once the canary pool could
    not serve the jobs for ``worker_timeout_s``, even while it is paused. It goes on once the step has lasted
    its interval and all tests have found that the canary keeps the limits; after the last step it is
    promoted.
    """
    if not rollout.phase.ongoing:
        return None
    since_stable = stable.since(rollout.stable_before)
    found = findings(rollout, stable=since_stable, canary=canary.since(rollout.canary_before))
    wrong = [each for each in found if each.verdict is Verdict.WRONG]
    if wrong:
        why = "; ".join(each.what for each in wrong)
        return rollout.in_phase(RolloutPhase.ABORTING, now=now, reason=f"at {rollout.weight:g} %: {why}")
    if unserved is not None:
        if rollout.unserved_since is None:
            return rollout.model_copy(update={"unserved_since": now})
        if (now - rollout.unserved_since).total_seconds() < rollout.worker_timeout_s:
            return None
        why = f"at {rollout.weight:g} %: {unserved}, for {rollout.worker_timeout_s:g} s"
        return rollout.in_phase(RolloutPhase.ABORTING, now=now, reason=why)
    if rollout.unserved_since is not None:
        return rollout.model_copy(update={"unserved_since": None})
    lasted_s = (now - rollout.since).total_seconds()
    right = all(each.verdict is Verdict.RIGHT for each in found)
    if rollout.phase is RolloutPhase.PAUSED or lasted_s < rollout.interval_s or not right:
        return None
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
