"""Attempts that fail: the next one comes after a pause, and the last one ends among the dead letters."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    answer_to,
    assert_whole,
    chat,
    journal_of,
    kinds_of,
    record_of,
    slow_chat,
    text_of,
    until_running,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import FailureCode, Job, JobState
from inferfleet.schemas.journal import QueuedEntry, RunningEntry, TokensEntry
from inferfleet.schemas.names import job_key, journal_key
from inferfleet.worker.intake import INTERVAL_S, PARKED_PER_PLACE

pytestmark = pytest.mark.matrix


def failing(code: str = "engine_error", **hooks: Any) -> dict[str, Any]:
    """A request that asks the simulated engine to fail."""
    return chat("fail", simulated={"fail": code, **hooks})


@pytest.mark.parametrize("code", [code.value for code in FailureCode if code.retryable])
async def test_a_job_that_fails_twice_succeeds_at_the_third_attempt(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str, code: str
) -> None:
    await start_worker()
    job = await fleet.submit(failing(code, fail_times=2), pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts, result.text) == (JobState.SUCCEEDED, 3, answer_to(job))
    entries = await journal_of(store, job)
    retries = [entry for entry in entries if isinstance(entry, QueuedEntry) and entry.reason == "retry"]
    assert [retry.failure.code for retry in retries if retry.failure] == [code, code]


async def test_the_least_pause_before_a_retry_doubles(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(retry_base_s=0.25)
    job = await fleet.submit(failing(fail_times=3), pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    entries = await journal_of(store, job)
    starts = [entry.at for entry in entries if isinstance(entry, RunningEntry)]
    ends = [entry.at for entry in entries if isinstance(entry, QueuedEntry)][1:]
    pauses = [(start - end).total_seconds() for end, start in zip(ends, starts[1:], strict=True)]
    # At least half of what the backoff allows: the other half is jitter.
    assert all(pause > 0.24 * 2**number / 2 for number, pause in enumerate(pauses))


async def test_a_pause_is_as_long_as_the_backoff_allows_and_no_longer(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit(failing(), pool=pool, max_attempts=4)
    for failed in (1, 2, 3):
        worker = await start_worker(retry_base_s=60.0, retry_cap_s=200.0)
        written: Any = []
        while len(written) < 1 + 2 * failed:
            written = await store.xrange(journal_key(job.id))
            await asyncio.sleep(0.01)
        # Both are Redis' time, of the same script.
        failed_at_ms = int(written[-1][0].partition(b"-")[0])
        begins_at_ms = int(await store.hget(job_key(job.id), "lease") or 0)
        full_s = min(200.0, 60.0 * 2 ** (failed - 1))
        assert full_s / 2 <= (begins_at_ms - failed_at_ms) / 1000 <= full_s
        await worker.stop()
        # Nobody has to wait for it.
        await store.hset(job_key(job.id), "lease", 0)
    assert (await fleet.get(job)).attempt == 3


async def test_what_was_generated_before_a_failure_is_not_generated_again(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    body = chat(
        "long", max_tokens=30, simulated={"fail": "engine_error", "fail_times": 1, "after_tokens": 20}
    )
    job = await fleet.submit(body, pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    entries = await journal_of(store, job)
    assert [entry.resumed_from for entry in entries if isinstance(entry, RunningEntry)] == [0, 20]
    assert_whole(entries)
    assert result.text == answer_to(job) == text_of(entries)


async def test_a_job_that_always_fails_is_dead_lettered_after_its_last_attempt(
    fleet: Fleet, start_worker: StartWorker, foreign: ForeignClient, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(worker_id="w-9")
    job = await fleet.submit(failing(), pool=pool, max_attempts=3)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts) == (JobState.FAILED, 3)
    assert result.error is not None
    assert result.error.code is FailureCode.TOO_MANY_ATTEMPTS
    assert result.error.message.startswith("gave up after 3 attempts; the last failed with engine_error")
    letter = await foreign.dead_letter()
    headers = letter.header.properties.headers or {}
    assert Job.model_validate_json(letter.body) == job
    assert headers["x-inferfleet-code"] == "too_many_attempts"
    assert headers["x-inferfleet-message"] == result.error.message
    assert (headers["x-inferfleet-attempts"], headers["x-inferfleet-worker"]) == (3, "w-9")
    assert await foreign.waiting() == 0
    assert kinds_of(await journal_of(store, job))[-1] == "finished"


async def test_the_dead_letters_can_be_read_and_submitted_again(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(failing(), pool=pool, max_attempts=1)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    (letter,) = await fleet.dead_letters.read(pool)
    assert (letter.job, letter.code, letter.attempts) == (job, FailureCode.TOO_MANY_ATTEMPTS, 1)
    (again,) = await fleet.dead_letters.replay(pool, everything=True)
    assert again.id != job.id
    assert (await fleet.wait(again, timeout_s=PATIENCE_S)).state is JobState.FAILED
    assert await fleet.dead_letters.purge(pool, everything=True) == 1
    assert await fleet.dead_letters.read(pool) == []


@pytest.mark.parametrize("code", [code.value for code in FailureCode if not code.retryable])
async def test_a_failure_that_cannot_get_better_is_final_at_once(
    fleet: Fleet, start_worker: StartWorker, pool: str, code: str
) -> None:
    await start_worker()
    job = await fleet.submit(failing(code), pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts) == (JobState.FAILED, 1)
    assert result.error is not None
    assert result.error.code == code


async def test_a_retry_finds_its_way_into_a_full_queue(
    connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    """The admission limit is for new jobs. One that was accepted must not be dropped on its way round."""
    async with connect(queue_max_length=1) as fleet:
        await fleet.declare_pool(pool)
        await start_worker(queue_max_length=1, max_running=1, look_ahead=0)
        accepted = await fleet.submit(failing(fail_times=1), pool=pool)
        async with asyncio.timeout(PATIENCE_S):
            async for line in fleet.stream(accepted):
                if isinstance(line.entry, QueuedEntry) and line.entry.reason == "retry":
                    break
        running = await fleet.submit(slow_chat(tokens=20, step_s=0.05), pool=pool)
        await until_running(fleet, running)
        filling = await fleet.submit("waits", pool=pool)
        results = await fleet.wait_many([accepted, running, filling], timeout_s=PATIENCE_S)
        assert {result.state for result in results} == {JobState.SUCCEEDED}


async def test_a_worker_whose_jobs_all_fail_takes_in_no_more_than_it_may_keep(
    fleet: Fleet, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    await start_worker(max_running=1, look_ahead=0, retry_base_s=60.0)
    held = 1 + PARKED_PER_PLACE
    jobs = await asyncio.gather(*(fleet.submit(failing(), pool=pool) for _ in range(held + 2)))
    async with asyncio.timeout(PATIENCE_S):
        while await foreign.waiting() > 2:
            await asyncio.sleep(0.1)
    await asyncio.sleep(2 * INTERVAL_S)  # it would take the next one within one
    assert await foreign.waiting() == 2
    # It only has no place: as soon as it has one, it takes the next.
    parked = await fleet.get_many(jobs)
    await fleet.cancel(next(job for job in jobs if record_of(parked, job).attempt))
    async with asyncio.timeout(PATIENCE_S):
        while await foreign.waiting() > 1:
            await asyncio.sleep(0.1)


# Deadlines


async def test_a_job_that_is_too_late_to_start_expires(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    expires_at = datetime.now(UTC) + timedelta(milliseconds=1)
    job = await fleet.submit("hello", pool=pool, expires_at=expires_at)
    await asyncio.sleep(max(0.0, (expires_at - datetime.now(UTC)).total_seconds()) + 0.001)
    await start_worker()
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.EXPIRED
    assert result.error is not None
    assert result.error.code is FailureCode.EXPIRED
    assert kinds_of(await journal_of(store, job)) == ["queued", "finished"]


async def test_a_job_that_has_started_in_time_may_take_longer(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    # The first one shows that the worker takes jobs.
    await fleet.wait(await fleet.submit("hello", pool=pool), timeout_s=PATIENCE_S)
    # A busy machine may start it too late: then it has more time.
    for limit_s in (0.5, 2.0, 8.0):
        expires_at = datetime.now(UTC) + timedelta(seconds=limit_s)
        lasting = slow_chat(tokens=20, step_s=0.1 * limit_s)
        job = await fleet.submit(lasting, pool=pool, expires_at=expires_at)
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        if result.state is not JobState.EXPIRED:
            break
    assert result.state is JobState.SUCCEEDED
    assert datetime.now(UTC) > expires_at


async def test_a_job_that_runs_too_long_is_stopped_and_keeps_what_it_has(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    worker = await start_worker()
    job = await fleet.submit(slow_chat(tokens=50_000, step_s=0.01), pool=pool, timeout_s=2)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert (result.error.code, result.attempts) == (FailureCode.TIMEOUT, 1)
    entries = await journal_of(store, job)
    assert_whole(entries)
    generated = sum(
        len(chunk.token_ids) for entry in entries if isinstance(entry, TokensEntry) for chunk in entry.chunks
    )
    assert 5 <= generated == result.usage.completion_tokens < 50_000
    assert worker.engine.stats().running == 0


async def test_a_job_that_hangs_in_the_engine_is_stopped_too(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(max_running=1)
    stuck = await fleet.submit(chat("stuck", simulated={"hang": True}), pool=pool, timeout_s=0.2)
    behind = await fleet.submit("behind it", pool=pool)
    assert (await fleet.wait(stuck, timeout_s=PATIENCE_S)).state is JobState.FAILED
    assert (await fleet.wait(behind, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert worker.engine.stats().running == 0
