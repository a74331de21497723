"""kill -9 of a worker in each window of a job's life."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from tests.chaos.conftest import WAIT_S, attempts, ends, prompt, require_whole

from inferfleet.local.chaos.harness import LEASE_S, Harness, Member
from inferfleet.local.chaos.proxy import Direction
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import JobState
from inferfleet.schemas.names import job_key


@pytest.mark.store
@pytest.mark.matrix
async def test_a_worker_killed_after_delivery_and_before_its_start_is_recorded_costs_nothing(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a worker that has the message, and cannot tell Redis that it starts
    doomed = await harness.worker()
    doomed.link.store.hold(Direction.TO_SERVICE)
    job = await fleet.submit(prompt("delivered", tokens=20), pool=harness.pool)
    await harness.until_empty()
    await doomed.link.store.until_held(Direction.TO_SERVICE)
    assert (await fleet.get(job)).state is JobState.QUEUED

    # When it is killed, and another is there
    await doomed.crash()
    await harness.worker()

    # Then the other runs it, as the first attempt
    result = await fleet.wait(job, timeout_s=WAIT_S)
    journal = await require_whole(harness, job, result)
    assert [running.attempt for running in attempts(journal)] == [1]
    await harness.until_empty()


@pytest.mark.store
@pytest.mark.matrix
async def test_a_worker_killed_in_mid_answer_is_continued_by_the_next(harness: Harness, fleet: Fleet) -> None:
    # Given a worker whose journal holds half an answer
    doomed = await harness.worker()
    job = await fleet.submit(prompt("half", tokens=300), pool=harness.pool, stream=True)
    await harness.until_tokens([job.id], at_least=30)

    # When it is killed, and another is there
    await doomed.crash()
    await harness.worker()

    # Then the other goes on from the journal, and the text is as if nothing had happened
    result = await fleet.wait(job, timeout_s=WAIT_S)
    journal = await require_whole(harness, job, result)
    first, second = attempts(journal)
    assert first.resumed_from == 0
    assert second.resumed_from >= 30
    assert result.attempts == 1  # the first one brought the answer on, and does not count


@pytest.mark.store
@pytest.mark.matrix
async def test_a_worker_killed_after_the_commit_and_before_the_ack_leaves_one_result(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a worker that has committed a result, and whose ack does not reach the broker
    doomed = await harness.worker()
    job = await fleet.submit(prompt("committed", tokens=60), pool=harness.pool)
    await harness.until_tokens([job.id])
    doomed.link.broker.hold(Direction.TO_SERVICE)
    committed = await fleet.wait(job, timeout_s=WAIT_S)
    await doomed.link.broker.until_held(Direction.TO_SERVICE)

    # When it is killed
    await doomed.crash()
    await harness.until(lambda: _is_waiting(harness), what="the message is back in the queue")
    await harness.worker()

    # Then the next worker only acks what is done already
    await harness.until_empty()
    assert (await fleet.get(job)).result == committed
    journal = await require_whole(harness, job, committed)
    assert len(attempts(journal)) == 1


@pytest.mark.store
@pytest.mark.matrix
async def test_a_worker_killed_while_it_drains_leaves_its_jobs_to_the_next(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a worker that drains, and waits for its jobs
    doomed = await harness.worker(drain_timeout_s=30.0)
    jobs = [
        await fleet.submit(prompt(f"drain {n}", tokens=150), pool=harness.pool, stream=True) for n in range(4)
    ]
    await harness.until_tokens([job.id for job in jobs])
    doomed.process.send_signal(signal.SIGTERM)
    await harness.until(lambda: _is_draining(harness, doomed.id), what="it drains")

    # When it is killed, and another is there
    await doomed.crash()
    await harness.worker()

    # Then the other continues each of them
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
        journal = await require_whole(harness, job, result)
        assert [running.resumed_from > 0 for running in attempts(journal)] == [False, True]


@pytest.mark.store
@pytest.mark.matrix
async def test_a_worker_killed_between_the_hand_over_in_redis_and_in_the_broker_loses_nothing(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a draining worker that has given its job back in Redis, and cannot tell the broker
    doomed = await harness.worker(drain_timeout_s=0.0)
    job = await fleet.submit(prompt("handed over", tokens=400), pool=harness.pool, stream=True)
    await harness.until_tokens([job.id])
    doomed.link.broker.hold(Direction.TO_SERVICE)
    doomed.process.send_signal(signal.SIGTERM)
    await harness.until(lambda: _is_queued(fleet, job.id), what="the record says queued")
    await doomed.link.broker.until_held(Direction.TO_SERVICE)

    # When it is killed, and another is there
    await doomed.crash()
    await harness.worker()

    # Then the other continues it, and the attempt that ended in order does not count
    result = await fleet.wait(job, timeout_s=WAIT_S)
    journal = await require_whole(harness, job, result)
    assert attempts(journal)[-1].resumed_from > 0
    assert result.attempts == 1


async def test_a_paused_worker_that_wakes_up_after_its_job_was_taken_over_changes_nothing(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a worker that stops in mid-answer, for longer than its lease and its connection last
    sleeper = await harness.worker()
    job = await fleet.submit(prompt("asleep", tokens=200), pool=harness.pool, stream=True)
    await harness.until_tokens([job.id], at_least=10)
    sleeper.process.send_signal(signal.SIGSTOP)
    await harness.worker()

    async def taken_over() -> bool:
        journal = await harness.journal(job.id)
        assert not ends(journal), "it goes on by itself"
        return len(attempts(journal)) == 2

    await harness.until(taken_over, what="another worker has the job")

    # When it wakes up while the other one generates
    sleeper.process.send_signal(signal.SIGCONT)

    # Then what it still writes is refused: one result, no write of an older attempt behind a newer one
    result = await fleet.wait(job, timeout_s=WAIT_S)
    journal = await require_whole(harness, job, result)
    assert [entry.attempt for entry in journal] == sorted(entry.attempt for entry in journal)
    assert result.attempts == 1  # the first one brought the answer on, and does not count
    # And it is well: it drops the job, and takes others.
    await harness.until(lambda: _runs(sleeper, 0), what="the sleeper has dropped the job")
    others = [await fleet.submit(prompt(f"after {n}", tokens=10), pool=harness.pool) for n in range(8)]
    await asyncio.gather(*(fleet.wait(other, timeout_s=WAIT_S) for other in others))


@pytest.mark.store
@pytest.mark.matrix
async def test_a_worker_that_lost_its_job_does_not_take_the_message_away_from_it(
    harness: Harness, fleet: Fleet
) -> None:
    """The attempt that took over may come from a delivery of a connection that is dead: a worker that was
    stopped finds such deliveries when it wakes up. Then the message here is the only one.
    """
    # Given a job that runs
    await harness.worker()
    job = await fleet.submit(prompt("lost and found", tokens=200), pool=harness.pool, stream=True)
    await harness.until_tokens([job.id], at_least=10)

    # When another worker takes it over, without a message, and dies
    lease_ends_ms = int((time.time() + LEASE_S) * 1000)
    await harness.redis.hset(
        job_key(job.id), mapping={"fence": "w-9:0", "worker": "w-9", "attempt": 2, "lease": lease_ends_ms}
    )

    # Then a third attempt goes on with it
    journal = await require_whole(harness, job, await fleet.wait(job, timeout_s=WAIT_S))
    assert [attempt.attempt for attempt in attempts(journal)] == [1, 3]
    assert attempts(journal)[-1].resumed_from >= 10
    await harness.until_empty()


async def _is_waiting(harness: Harness) -> bool:
    return await harness.waiting() == 1


async def _is_queued(fleet: Fleet, job_id: str) -> bool:
    return (await fleet.get(job_id)).state is JobState.QUEUED


async def _is_draining(harness: Harness, worker_id: str) -> bool:
    return bool(await harness.redis.hget(f"inferfleet:worker:{worker_id}", "phase") == b"draining")


async def _runs(member: Member, count: int) -> bool:
    heartbeat = await member.process.heartbeat()
    return heartbeat is not None and heartbeat.running == count
