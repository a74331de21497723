"""Jobs that kill what they run on, and the innocent jobs beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from tests.chaos.conftest import WAIT_S, attempts, prompt, require_whole

from inferfleet.local.chaos.harness import Harness
from inferfleet.local.chaos.members import WorkerSlot
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import FailureCode, JobState
from inferfleet.schemas.names import dead_queue
from inferfleet.wire.redis.attempts import DEATHS_PER_ATTEMPT

pytestmark = pytest.mark.matrix


async def test_a_job_that_kills_every_worker_is_given_up_and_its_neighbours_all_succeed(
    harness: Harness, fleet: Fleet
) -> None:
    # Given workers that are replaced when they die, with innocent jobs on all of them
    async with _replaced_workers(harness, 3) as places:
        innocent = await fleet.submit_many(
            (prompt(f"innocent {n}", tokens=60) for n in range(24)), pool=harness.pool
        )

        # When a job among them kills every worker that it meets
        poison = await fleet.submit(
            prompt("poison", tokens=20, after_tokens=10, kill_worker=True), pool=harness.pool, max_attempts=3
        )

        # Then it is given up after that many attempts, with the reason
        result = await fleet.wait(poison, timeout_s=WAIT_S)
        assert result.state is JobState.FAILED
        assert result.error is not None
        assert result.error.code is FailureCode.TOO_MANY_ATTEMPTS
        assert result.attempts == 3
        (letter,) = await fleet.dead_letters.read(harness.pool)
        assert (letter.message_id, letter.code, letter.attempts) == (
            poison.id,
            FailureCode.TOO_MANY_ATTEMPTS,
            3,
        )
        assert letter.message
        # Those deaths that had brought its answer on, as long as they did, are not among the three.
        assert 3 <= sum(place.killed_by_jobs for place in places) < 3 * DEATHS_PER_ATTEMPT
        # And the innocent ones all end well, and so do jobs that come later.
        later = await fleet.submit_many(
            (prompt(f"later {n}", tokens=10) for n in range(24)), pool=harness.pool
        )
        jobs = [*innocent, *later]
        for job, done in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
            await require_whole(harness, job, done)
        await harness.until_empty()
        assert (await harness.depths(dead_queue(harness.pool)))[dead_queue(harness.pool)] == 1


async def test_a_worker_whose_engine_dies_hands_everything_over_and_exits_with_an_error(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a worker with running jobs
    dying = await harness.worker()
    jobs = await fleet.submit_many(
        (prompt(f"beside {n}", tokens=150) for n in range(6)), pool=harness.pool, stream=True
    )
    await harness.until_tokens([job.id for job in jobs])

    # When its engine dies, and another worker is there
    killer = await fleet.submit(
        prompt("killer", tokens=10, kill_engine=True), pool=harness.pool, max_attempts=1
    )
    code = await dying.exit_code()
    assert code not in (0, None)
    async with _replaced_workers(harness, 1):
        # Then the jobs beside it continue there, and the killer is given up
        for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
            journal = await require_whole(harness, job, result)
            assert attempts(journal)[-1].resumed_from > 0
        assert (await fleet.wait(killer, timeout_s=WAIT_S)).state is JobState.FAILED
        await harness.until_empty()


@asynccontextmanager
async def _replaced_workers(harness: Harness, count: int) -> AsyncGenerator[list[WorkerSlot]]:
    """Workers that are started again when they die, as Kubernetes would."""
    places = [WorkerSlot(harness, await harness.link()) for _ in range(count)]
    keepers = [asyncio.create_task(place.keep()) for place in places]
    try:
        yield places
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
