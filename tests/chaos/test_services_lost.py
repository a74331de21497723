"""RabbitMQ and Redis killed, restarted and emptied, under running and waiting jobs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from tests.chaos.conftest import WAIT_S, attempts, prompt, require_whole

from inferfleet.local.chaos.checker import stream_problems
from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job, JobState, JournalEntry
from inferfleet.schemas.journal import TokensEntry


@pytest.mark.matrix
async def test_a_restarted_broker_keeps_waiting_jobs_and_does_not_start_running_ones_elsewhere(
    harness: Harness, fleet: Fleet
) -> None:
    # Given two workers with one running job and a third job that waits behind them
    await harness.workers(2, max_running=1, look_ahead=0)
    running = [
        await fleet.submit(prompt(f"running {n}", tokens=700), pool=harness.pool, stream=True)
        for n in range(2)
    ]
    await harness.until_tokens([job.id for job in running])
    waiting = await fleet.submit(prompt("waiting", tokens=10), pool=harness.pool)

    # When the broker is killed and comes back
    await harness.restart_broker()

    # Then each running job was started once, and stayed where it was
    results = await fleet.wait_many([*running, waiting], timeout_s=WAIT_S)
    for job, result in zip([*running, waiting], results, strict=True):
        journal = await require_whole(harness, job, result)
        assert len(attempts(journal)) == 1
    # And the messages that came again were settled.
    await harness.until_empty()


async def test_a_killed_redis_that_comes_back_with_its_data_costs_nothing(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a running and a waiting job, and a reader of the running one
    await harness.worker(max_running=1, look_ahead=0)
    running = await fleet.submit(prompt("running", tokens=200), pool=harness.pool, stream=True)
    reading = asyncio.create_task(_read(fleet, running))
    await harness.until_tokens([running.id], at_least=20)
    waiting = await fleet.submit(prompt("waiting", tokens=10), pool=harness.pool)

    # When Redis is killed and comes back
    await harness.restart_store()

    # Then both end well, in one attempt each, and the reader saw every token once
    for job, result in zip(
        (running, waiting), await fleet.wait_many([running, waiting], timeout_s=WAIT_S), strict=True
    ):
        journal = await require_whole(harness, job, result)
        assert len(attempts(journal)) == 1
    assert list(stream_problems(await reading)) == []
    await harness.until_empty()


async def test_jobs_survive_a_redis_that_lost_everything(harness: Harness, fleet: Fleet) -> None:
    # Given a job that has ended and was read, one that runs and is read, and one that waits
    await harness.worker(max_running=1, look_ahead=0)
    ended = await fleet.submit(prompt("ended", tokens=5), pool=harness.pool)
    await fleet.wait(ended, timeout_s=WAIT_S)
    running = await fleet.submit(prompt("running", tokens=250), pool=harness.pool, stream=True)
    reading = asyncio.create_task(_read(fleet, running))
    await harness.until_tokens([running.id], at_least=20)
    waiting = await fleet.submit(prompt("waiting", tokens=10), pool=harness.pool)
    waits = [asyncio.create_task(fleet.wait(job)) for job in (running, waiting)]
    await asyncio.sleep(0)
    await fleet.get(waiting)  # answered after the first read of each wait, which came before it

    # When Redis loses everything
    gone = await harness.empty_store()

    # Then what ran goes on where it was, and what waited runs from its message
    assert ended.id in gone
    assert not gone & {running.id, waiting.id}
    async with asyncio.timeout(WAIT_S):
        results = await asyncio.gather(*waits)
    for job, result in zip((running, waiting), results, strict=True):
        await require_whole(harness, job, result)
        assert result.attempts == 1
    # And the reader saw every token once, and nothing of all that.
    seen = await reading
    assert list(stream_problems(seen)) == []
    assert sum(len(c.token_ids) for e in seen if isinstance(e, TokensEntry) for c in e.chunks) == 250
    await harness.until_empty()


@pytest.mark.matrix
async def test_a_restarted_broker_keeps_jobs_that_start_later(harness: Harness, fleet: Fleet) -> None:
    # Given jobs that wait for their time, and no worker
    jobs = [
        await fleet.submit(prompt(f"later {n}", tokens=5), pool=harness.pool, delay_s=delay_s)
        for n, delay_s in enumerate((8, 12))
    ]

    # When the broker is killed and comes back, and a worker is there afterwards
    await harness.restart_broker()
    states = [(await fleet.get(job)).state for job in jobs]
    await harness.worker()

    # Then each ends in one attempt that began no earlier
    assert states == [JobState.QUEUED] * 2
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
        (attempt,) = attempts(await require_whole(harness, job, result))
        assert job.not_before is not None
        assert attempt.at >= job.not_before - timedelta(milliseconds=1)
    # And the messages that came again were settled.
    await harness.until_empty()


@pytest.mark.store
@pytest.mark.matrix
async def test_jobs_are_accepted_while_redis_and_the_broker_come_back(harness: Harness, fleet: Fleet) -> None:
    # Given a worker, and services that are about to be away for a while
    await harness.worker()
    await asyncio.gather(asyncio.to_thread(harness.broker.kill), asyncio.to_thread(harness.store.kill))

    # When a patient client submits, and only then both are started again
    submitting = asyncio.create_task(fleet.submit(prompt("patient", tokens=10), pool=harness.pool))
    await asyncio.gather(asyncio.to_thread(harness.store.start), asyncio.to_thread(harness.broker.start))

    # Then the job is accepted and runs
    job = await asyncio.wait_for(submitting, WAIT_S)
    result = await fleet.wait(job, timeout_s=WAIT_S)
    assert result.state is JobState.SUCCEEDED
    await require_whole(harness, job, result)


async def _read(fleet: Fleet, job: Job) -> list[JournalEntry]:
    """Read a stream to its end; after a break go on with the last cursor."""
    return [line.entry async for line in fleet.stream(job)]
