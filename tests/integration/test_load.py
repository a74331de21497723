"""Many jobs at once: each answered rightly and once, in order of urgency, whoever leaves in the midst."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    assert_whole,
    chat,
    journal_of,
    read_all,
    record_of,
    slow_chat,
    text_of,
    until_running,
    until_tokens,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState, Priority
from inferfleet.schemas.journal import FinishedEntry, RunningEntry
from inferfleet.schemas.names import journal_key
from inferfleet.wire.redis.journal_lines import parse_line

INSTANT = ("--engine-args", '{"speed": 0}')


async def finished_entries(store: aioredis.Redis, jobs: list[Job]) -> list[int]:
    """How many last lines each journal has."""
    pipeline = store.pipeline(transaction=False)
    for job in jobs:
        pipeline.xrange(journal_key(job.id))
    journals: list[Any] = await pipeline.execute()
    return [
        sum(isinstance(parse_line(fields), FinishedEntry) for _, fields in journal) for journal in journals
    ]


async def test_five_thousand_jobs_through_two_processes_are_each_answered_once(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker_process: StartWorkerProcess,
    store: aioredis.Redis,
    pool: str,
) -> None:
    options = (*INSTANT, "--max-running", "256", "--look-ahead", "64")
    workers = [await start_worker_process(*options) for _ in range(2)]
    jobs = await fleet.submit_many([chat(f"say {number}") for number in range(5000)], pool=pool)
    results = await fleet.wait_many(jobs, timeout_s=2 * PATIENCE_S)
    assert [result.job_id for result in results] == [job.id for job in jobs]
    wrong = [job.id for job, result in zip(jobs, results, strict=True) if result.text != answer_to(job)]
    assert wrong == []
    assert {(result.state, result.attempts) for result in results} == {(JobState.SUCCEEDED, 1)}
    assert len({result.worker_id for result in results}) == 2
    assert set(await finished_entries(store, jobs)) == {1}
    assert [await worker.stop() for worker in workers] == [0, 0]
    # What had not been acknowledged would have come back with the end of its consumer.
    assert await foreign.waiting() == 0


async def test_an_urgent_job_starts_before_all_that_wait(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    """2,000 batch jobs wait, and an urgent one is submitted.

    When the broker confirms it, the worker has been handed ``max_running`` jobs that run and ``look_ahead``
    that are next, and not more: that is its prefetch. Everything it is handed after that comes behind the
    urgent job. So of all jobs that are unfinished at that moment, only those few may start before it.
    """
    max_running, look_ahead = 4, 1
    batch = await fleet.submit_many(
        [slow_chat(str(number), tokens=20, step_s=0.01) for number in range(2000)],
        pool=pool,
        priority=Priority.BATCH,
    )
    await start_worker(max_running=max_running, look_ahead=look_ahead)
    await until_tokens(fleet, batch[0])
    urgent = await fleet.submit(chat("urgent"), pool=pool, priority=Priority.URGENT)
    confirmed = datetime.now(UTC)
    await fleet.wait(urgent, timeout_s=PATIENCE_S)
    records = await fleet.get_many([*batch, urgent])
    urgent_started = record_of(records, urgent).started_at
    assert urgent_started is not None
    before_it = [
        record
        for job in batch
        if (record := record_of(records, job)).started_at is not None
        and record.started_at < urgent_started
        and (record.finished_at is None or record.finished_at > confirmed)
    ]
    assert len(before_it) <= max_running + look_ahead
    waiting = [job for job in batch if record_of(records, job).state is JobState.QUEUED]
    assert len(waiting) > 1900, "nearly all of the batch still waits"


async def test_jobs_start_in_order_of_their_priority(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    jobs = [
        await fleet.submit(chat(str(priority)), pool=pool, priority=priority)
        for priority in (0, 9, 4, 1, 7, 2, 8, 3, 6, 5)
    ]
    await start_worker(max_running=1, look_ahead=0)
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    records = await fleet.get_many(jobs)
    started = sorted(
        (record.started_at, record.priority)
        for record in records.values()
        if record is not None and record.started_at is not None
    )
    assert [priority for _, priority in started] == list(range(9, -1, -1))


async def test_a_worker_holds_no_more_than_it_can_run_and_a_little_ahead(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    """What a full worker hoards, a new one could not take."""
    jobs = await fleet.submit_many(
        [slow_chat(str(number), tokens=100_000, step_s=0.01) for number in range(20)], pool=pool
    )
    await start_worker(max_running=4, look_ahead=2)
    await until_tokens(fleet, jobs[0])
    assert await foreign.waiting() == 14
    second = await start_worker(max_running=4, look_ahead=2)
    async with asyncio.timeout(PATIENCE_S):
        while second.engine.stats().running < 4:
            await asyncio.sleep(0.01)
    assert await foreign.waiting() == 8


async def test_sigterm_under_load_loses_no_job_and_the_next_worker_continues(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker_process: StartWorkerProcess,
    store: aioredis.Redis,
    pool: str,
) -> None:
    leaving = await start_worker_process("--max-running", "16", drain_timeout_s="0")
    jobs = await fleet.submit_many(
        [slow_chat(str(number), tokens=250, step_s=0.01) for number in range(48)], pool=pool, stream=True
    )
    streams = [asyncio.create_task(read_all(fleet.stream(job))) for job in jobs]
    await asyncio.gather(*(until_tokens(fleet, job, 10) for job in jobs[:16]))
    assert await leaving.stop() == 0
    assert await foreign.waiting() == sum(
        record is not None and not record.state.terminal for record in (await fleet.get_many(jobs)).values()
    )
    staying = await start_worker_process("--max-running", "64")
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    continued = 0
    for job, result, streamed in zip(jobs, results, await asyncio.gather(*streams), strict=True):
        assert (result.state, result.text, result.attempts) == (JobState.SUCCEEDED, answer_to(job), 1)
        assert_whole(streamed)
        assert text_of(streamed) == result.text
        runs = [entry for entry in streamed if isinstance(entry, RunningEntry)]
        continued += any(run.resumed_from for run in runs)
        assert not any(entry.kind == "restarted" for entry in streamed)
    assert continued >= 10
    assert set(await finished_entries(store, jobs)) == {1}
    assert await staying.stop() == 0
    assert await foreign.waiting() == 0


async def test_a_drain_lets_jobs_finish_that_end_in_time(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(drain_timeout_s=10, max_running=4, look_ahead=0)
    jobs = await fleet.submit_many(
        [slow_chat(str(number), tokens=20, step_s=0.02) for number in range(6)], pool=pool
    )
    await asyncio.gather(*(until_running(fleet, job) for job in jobs[:4]))
    await worker.stop()
    states = [record.state for record in (await fleet.get_many(jobs)).values() if record is not None]
    assert states.count(JobState.SUCCEEDED) == 4
    assert states.count(JobState.QUEUED) == 2


async def test_a_second_sigterm_ends_the_patience_of_a_drain(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(drain_timeout_s="3600")
    job = await fleet.submit(slow_chat(tokens=1000, step_s=0.01), pool=pool)
    await until_running(fleet, job)
    worker.signal(signal.SIGTERM)
    await worker.logged("draining")
    assert await worker.stop() == 0
    assert (await fleet.get(job)).state is JobState.QUEUED


async def test_sigterm_after_a_drain_order_leaves_the_drain_its_time(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    """Kubernetes sends it right after the preStop hook."""
    worker = await start_worker_process("--worker-id", f"{pool}-w", drain_timeout_s="3600")
    job = await fleet.submit(slow_chat(tokens=50, step_s=0.02), pool=pool)
    await until_running(fleet, job)
    await fleet.drain(f"{pool}-w")
    await worker.logged("draining")
    assert await worker.stop() == 0
    assert (await fleet.get(job)).state is JobState.SUCCEEDED


async def test_sigterm_while_the_model_loads_ends_at_once(
    fleet: Fleet, start_worker_process: StartWorkerProcess
) -> None:
    worker = await start_worker_process("--engine-args", '{"load_s": 3600}')
    await worker.logged("serving health")
    assert await worker.stop() == 0


async def test_a_job_handed_over_again_and_again_is_not_used_up(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """A rolling update is nobody's fault: attempts that a drain ended do not count."""
    job = await fleet.submit(slow_chat(tokens=300, step_s=0.01), pool=pool, stream=True, max_attempts=1)
    for tokens in (10, 60, 110):
        worker = await start_worker()
        await until_tokens(fleet, job, tokens)
        await worker.stop()
    await start_worker()
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.text) == (JobState.SUCCEEDED, answer_to(job))
    entries = await journal_of(store, job)
    assert_whole(entries)
    resumed = [entry.resumed_from for entry in entries if isinstance(entry, RunningEntry)]
    assert len(resumed) == 4
    assert all(earlier < later for earlier, later in pairwise(resumed))


async def test_what_cannot_be_continued_starts_again_and_says_so(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """Two choices at once have no one place to continue from."""
    body = slow_chat(tokens=250, step_s=0.01) | {"n": 2}
    job = await fleet.submit(body, pool=pool, stream=True)
    worker = await start_worker()
    await until_tokens(fleet, job, 10)
    await worker.stop()
    await start_worker()
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.text == answer_to(job)
    kinds = [entry.kind for entry in await journal_of(store, job)]
    assert kinds.count("restarted") == 1


async def test_the_queue_is_emptied_after_it_was_deleted_and_declared_again(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    """An operator deletes the queue under a running worker, which then must not sit there for ever."""
    await start_worker()
    before = await fleet.submit("before", pool=pool)
    await fleet.wait(before, timeout_s=PATIENCE_S)
    await foreign.channel.queue_delete(f"inferfleet.jobs.{pool}")
    await fleet.declare_pool(pool)
    after = await fleet.submit("after", pool=pool)
    assert (await fleet.wait(after, timeout_s=PATIENCE_S)).text == answer_to(after)
