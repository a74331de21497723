"""A rollout: a growing share of a pool's jobs goes to the canary pool, which has the new version."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, assert_never

from pydantic import AwareDatetime, Field, model_validator

from inferfleet.schemas.ended_counts import EndedCounts
from inferfleet.schemas.job import Job, PoolName
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.result import Count
from inferfleet.schemas.wire_model import WireModel

Weight = Annotated[float, Field(ge=0, le=100), NUMBER]
"""A share of jobs, in percent."""

_PLACES: Final = 2**64


class RolloutRule(WireModel):
    """The rule by which producers split the jobs of a pool: ``weight`` percent go to the pool ``to``."""

    to: PoolName
    weight: Weight

    def takes(self, job: Job) -> bool:
        """Return whether a job goes to the canary pool.

        The jobs that go there at one weight are among those that go there at a greater one. All turns of a
        session go to the same side; so do all submissions with one idempotency key. A job that starts
        later stays: nobody knows which rollout there is by then.
        """
        return job.not_before is None and job.after is None and _place(job, self.to) < self.weight


def _place(job: Job, canary: str) -> float:
    """Return the place of a job between 0 and 100: always the same one for the same canary pool."""
    if job.session_id is not None:
        what = f"session:{job.session_id}"
    elif job.idempotency_key is not None:
        what = f"key:{len(job.tenant)}:{job.tenant}:{job.idempotency_key}"
    else:
        what = f"job:{job.id}"
    digest = hashlib.sha256(f"{canary}:{what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * 100 / _PLACES


class RolloutPhase(StrEnum):
    """The phase of a rollout."""

    RUNNING = "running"
    """It goes on step by step."""

    PAUSED = "paused"
    """It stays at its weight until it is resumed. It is still aborted if the canary pool does worse."""

    ABORTING = "aborting"
    """No job goes to the canary pool any more; those that wait there are moved back."""

    ABORTED = "aborted"
    PROMOTED = "promoted"
    """All jobs go to the canary pool, until somebody finishes the rollout."""

    FINISHED = "finished"
    """It was promoted, and the pool takes its own jobs again."""

    @property
    def ongoing(self) -> bool:
        """Whether tests decide what becomes of it."""
        return self in {RolloutPhase.RUNNING, RolloutPhase.PAUSED}

    @property
    def controlled(self) -> bool:
        """Whether a controller has something to do for it."""
        return self.ongoing or self is RolloutPhase.ABORTING

    @property
    def over(self) -> bool:
        """Whether another rollout of the pool may start."""
        return self in {RolloutPhase.ABORTED, RolloutPhase.FINISHED}


class Rollout(WireModel):
    """The state of a pool's rollout.

    ``step`` is the position in ``steps``, which are weights. ``since`` is when it last changed its step or
    phase. ``stable_before`` and ``canary_before`` are the counts of both pools when the step began.
    ``base_error_rate`` is an upper bound of the share of failures in the pool itself during the step before.
    ``reason`` says why it was aborted. ``told`` is whether webhooks have been told of its phase.

    ``unserved_since`` is since when the canary pool cannot serve the pool's jobs; after ``worker_timeout_s``
    of that the rollout is aborted. With ``allow_rename`` it may lack models that the pool itself serves.
    ``stalled_since`` is since when jobs of the pool wait in the canary pool while its workers do nothing:
    while ``work_done`` stays the same, which counts the attempts that have ended there and the tokens that
    were generated. After ``stall_timeout_s`` of that the rollout is aborted. The defaults of all these are
    for rollouts that an earlier version has started, which looked at none of it.
    """

    pool: PoolName
    to: PoolName
    steps: Annotated[tuple[Weight, ...], Field(min_length=1)]
    interval_s: Annotated[float, Field(gt=0), NUMBER]
    max_error_rate: Annotated[float, Field(gt=0, lt=0.5), NUMBER] = 0.01
    max_ttft_ratio: Annotated[float, Field(ge=1), NUMBER] = 1.2
    max_wait_ratio: Annotated[float, Field(ge=1), NUMBER] = 2.0
    phase: RolloutPhase = RolloutPhase.RUNNING
    step: Count = 0
    started_at: AwareDatetime
    since: AwareDatetime
    stable_before: EndedCounts = EndedCounts()
    canary_before: EndedCounts = EndedCounts()
    base_error_rate: Annotated[float, Field(ge=0, le=1), NUMBER] = 0.0
    reason: str | None = None
    told: bool = False
    allow_rename: bool = True
    worker_timeout_s: Annotated[float, Field(gt=0), NUMBER] = 600.0
    unserved_since: AwareDatetime | None = None
    stall_timeout_s: Annotated[float, Field(gt=0), NUMBER] = 300.0
    stalled_since: AwareDatetime | None = None
    work_done: Count = 0

    @model_validator(mode="after")
    def _check(self) -> Rollout:
        if self.pool == self.to:
            raise ValueError("a pool cannot be its own canary")
        if list(self.steps) != sorted(set(self.steps)) or self.steps[0] == 0:
            raise ValueError("the steps have to be above 0, and each greater than the one before")
        if self.steps[-1] != 100:
            raise ValueError("the last step has to be 100")
        if self.step >= len(self.steps):
            raise ValueError("there is no such step")
        return self

    def in_phase(self, phase: RolloutPhase, *, now: datetime, reason: str | None = None) -> Rollout:
        """Return the rollout in another phase, which begins now."""
        return self.model_copy(update={"phase": phase, "since": now, "reason": reason, "told": False})

    @property
    def weight(self) -> float:
        """The share of the pool's jobs that goes to the canary pool, in percent."""
        match self.phase:
            case RolloutPhase.RUNNING | RolloutPhase.PAUSED:
                return self.steps[self.step]
            case RolloutPhase.PROMOTED:
                return 100.0
            case RolloutPhase.ABORTING | RolloutPhase.ABORTED | RolloutPhase.FINISHED:
                return 0.0
            case _:
                assert_never(self.phase)

    @property
    def rule(self) -> RolloutRule | None:
        """The rule for producers; ``None`` once the rollout is over."""
        return None if self.phase.over else RolloutRule(to=self.to, weight=self.weight)
