"""A failed job waits for its retry, and whatever it waits in is killed."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
from tests.chaos.conftest import WAIT_S, prompt, require_whole

from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job, JournalEntry
from inferfleet.schemas.journal import QueuedEntry, RunningEntry

pytestmark = pytest.mark.matrix

SHORTEST_PAUSE_S = 1.0
PAUSES = {"retry_base_s": 2 * SHORTEST_PAUSE_S, "retry_cap_s": 2 * SHORTEST_PAUSE_S}


async def test_a_retry_is_not_lost_with_the_broker_and_the_worker_and_does_not_come_early(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a job that failed in a worker and waits for its retry
    first = await harness.worker(**PAUSES)
    job = await fleet.submit(prompt("flaky", tokens=20, fail="engine_error", fail_times=1), pool=harness.pool)
    await harness.until(lambda: _waits_for_a_retry(harness, job), what="the first attempt has failed")

    # When the broker and the worker are killed, and both come back
    await harness.restart_broker()
    await first.crash()
    await harness.worker(**PAUSES)

    # Then it ends well (the simulated engine fails it once in every process), after its pauses
    result = await fleet.wait(job, timeout_s=WAIT_S)
    journal = await require_whole(harness, job, result)
    assert result.attempts == 3
    assert min(_pauses_s(journal)) >= SHORTEST_PAUSE_S
    await harness.until_empty()


async def test_a_job_that_waits_for_its_retry_takes_no_place_of_others(
    harness: Harness, fleet: Fleet
) -> None:
    await harness.worker(max_running=1, look_ahead=0, retry_base_s=60.0, retry_cap_s=60.0)
    failing = await fleet.submit(prompt("fails", tokens=5, fail="engine_error"), pool=harness.pool)
    await harness.until(lambda: _waits_for_a_retry(harness, failing), what="the first attempt has failed")

    others = [await fleet.submit(prompt(f"other {n}", tokens=5), pool=harness.pool) for n in range(5)]

    for job, result in zip(others, await fleet.wait_many(others, timeout_s=WAIT_S), strict=True):
        await require_whole(harness, job, result)
    assert await _waits_for_a_retry(harness, failing)


async def test_paused_jobs_take_no_place_of_others_after_a_restart_of_the_broker_either(
    harness: Harness, fleet: Fleet
) -> None:
    # Given more paused jobs than the worker has places
    await harness.worker(max_running=1, look_ahead=0, retry_base_s=60.0, retry_cap_s=60.0)
    failing = [
        await fleet.submit(prompt(f"fails {n}", tokens=5, fail="engine_error"), pool=harness.pool)
        for n in range(3)
    ]
    for job in failing:
        await harness.until(partial(_waits_for_a_retry, harness, job), what="the first attempt has failed")

    # When their messages come again
    await harness.restart_broker()

    # Then others still find a place
    other = await fleet.submit(prompt("other", tokens=5), pool=harness.pool)
    await require_whole(harness, other, await fleet.wait(other, timeout_s=WAIT_S))
    assert all([await _waits_for_a_retry(harness, job) for job in failing])


async def _waits_for_a_retry(harness: Harness, job: Job) -> bool:
    last = (await harness.journal(job.id))[-1]
    return isinstance(last, QueuedEntry) and last.reason == "retry"


def _pauses_s(journal: list[JournalEntry]) -> list[float]:
    """How long after each retry was decided on the job began again."""
    return [
        (after.at - before.at).total_seconds()
        for before, after in pairwise(journal)
        if isinstance(before, QueuedEntry) and before.reason == "retry" and isinstance(after, RunningEntry)
    ]
