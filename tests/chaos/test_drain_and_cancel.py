"""Leaving in order: drain hands over without a loss, cancel frees the engine."""

from __future__ import annotations

import signal
import time

import pytest
from tests.chaos.conftest import WAIT_S, attempts, prompt, require_whole

from inferfleet.local.chaos.harness import Harness, Member
from inferfleet.local.chaos.proxy import Direction
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import JobState

DRAIN_S = 2.0


@pytest.mark.matrix
async def test_a_draining_worker_hands_64_long_jobs_over_and_every_one_continues(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a full worker whose jobs take much longer than its drain
    leaving = await harness.worker(max_running=64, look_ahead=0, drain_timeout_s=DRAIN_S)
    jobs = await fleet.submit_many(
        (prompt(f"long {n}", tokens=500) for n in range(64)), pool=harness.pool, max_attempts=1
    )
    await harness.until_tokens([job.id for job in jobs])

    # When it is told to go
    began = time.monotonic()
    leaving.process.send_signal(signal.SIGTERM)
    code = await leaving.exit_code()
    took_s = time.monotonic() - began

    # Then it is gone soon after, in order
    assert code == 0
    assert DRAIN_S <= took_s < DRAIN_S + 10, f"it took {took_s:.1f} s"
    print(f"a drain of 64 jobs took {took_s:.2f} s, {took_s - DRAIN_S:.2f} s more than drain_timeout_s")  # noqa: T201
    # And another worker continues all of them: the hand-over did not use up their one attempt.
    await harness.worker(max_running=64)
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
        journal = await require_whole(harness, job, result)
        first, second = attempts(journal)
        assert first.worker_id == leaving.id
        assert second.resumed_from > 0
    await harness.until_empty()


@pytest.mark.store
async def test_a_worker_that_is_cut_off_from_redis_still_leaves_when_told_to(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a worker in mid-answer that cannot reach Redis
    leaving = await harness.worker(drain_timeout_s=0.5)
    job = await fleet.submit(prompt("unreachable", tokens=150), pool=harness.pool, stream=True)
    await harness.until_tokens([job.id], at_least=10)
    leaving.link.store.hold(*Direction)
    await leaving.link.store.until_held(Direction.TO_SERVICE)

    # When it is told to go
    leaving.process.send_signal(signal.SIGTERM)

    # Then it goes, and the next worker continues its job
    assert await leaving.exit_code() == 0
    record = await fleet.get(job)
    assert (record.state, record.worker_id) == (JobState.RUNNING, leaving.id)  # nobody could be told
    await harness.worker()
    result = await fleet.wait(job, timeout_s=WAIT_S)
    journal = await require_whole(harness, job, result)
    assert attempts(journal)[-1].resumed_from > 0


@pytest.mark.matrix
async def test_cancelling_a_running_job_frees_its_place_in_the_engine(harness: Harness, fleet: Fleet) -> None:
    # Given a worker with one place, a job in it, and one behind it
    worker = await harness.worker(max_running=1, look_ahead=1)
    running = await fleet.submit(prompt("cancelled", tokens=3000), pool=harness.pool, stream=True)
    await harness.until_tokens([running.id])
    behind = await fleet.submit(prompt("behind", tokens=20), pool=harness.pool)
    await harness.until(lambda: _held(worker, 1), what="the second job waits for the engine")

    # When the running one is cancelled
    began = time.monotonic()
    await fleet.cancel(running)
    await harness.until(lambda: _held(worker, 0), what="the second job has its place")
    print(f"the place was free {time.monotonic() - began:.2f} s after the cancel")  # noqa: T201

    # Then the other one has its place, long before the first would have ended
    assert (await fleet.wait(behind, timeout_s=WAIT_S)).state is JobState.SUCCEEDED
    result = await fleet.wait(running, timeout_s=WAIT_S)
    assert result.state is JobState.CANCELLED
    assert 0 < result.usage.completion_tokens < 3000
    await harness.until(lambda: _running_in_engine(worker, 0), what="the engine is idle")
    await harness.until_empty()


async def _held(worker: Member, count: int) -> bool:
    heartbeat = await worker.process.heartbeat()
    return heartbeat is not None and heartbeat.held == count


async def _running_in_engine(worker: Member, count: int) -> bool:
    heartbeat = await worker.process.heartbeat()
    return heartbeat is not None and heartbeat.running == count
