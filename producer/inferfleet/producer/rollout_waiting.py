"""Says whether jobs of a pool wait for the workers of its canary pool."""

from __future__ import annotations

from typing import Final, assert_never

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_listing import JobFilter
from inferfleet.producer.positions import WaitReason
from inferfleet.schemas.errors import JobNotFoundError
from inferfleet.schemas.job import JobState
from inferfleet.schemas.result import JobRecord
from inferfleet.schemas.rollout import Rollout

AT_MOST: Final = 1000
"""How many waiting jobs of the canary pool are looked at, the most urgent first: many may wait for
something else, or be its own."""


async def any_waits(fleet: Fleet, rollout: Rollout) -> bool:
    """Return whether a job of the pool waits for a worker of the canary pool.

    If the rollout is stalled, only a job counts that has waited since before: where jobs come and fail at
    once, another one waits at each look.

    Raises:
        ServiceUnreachableError: Redis does not answer.

    """
    where = JobFilter(pool=rollout.to, state=JobState.QUEUED, until=rollout.stalled_since)
    for record in (await fleet.jobs_page(where, limit=AT_MOST)).jobs:
        if record.submitted_to == rollout.pool and await _waits(fleet, record):
            return True
    return False


async def _waits(fleet: Fleet, record: JobRecord) -> bool:
    try:
        wait = await fleet.waits_for(record.id)
    except JobNotFoundError:
        return False
    if wait is None:
        return False
    match wait.reason:
        case WaitReason.TURN:
            # The turn before may run in the pool itself.
            before = (await fleet.get_many([wait.job_id or ""]))[wait.job_id or ""]
            return before is not None and before.pool == record.pool
        case WaitReason.SLOT | WaitReason.QUEUE | WaitReason.SHARE:
            return True
        case (
            WaitReason.SCHEDULED
            | WaitReason.AFTER
            | WaitReason.PAUSED
            | WaitReason.RETRY
            | WaitReason.NO_WORKER
            | WaitReason.SILENT
        ):
            return False
        case _:
            assert_never(wait.reason)
