"""A job that waits for its retry is not deaf: what is asked of it happens now and not after its pause."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import aiormq.abc
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    chat,
    journal_of,
    slow_chat,
    until_running,
    until_tokens,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobRecord, JobState
from inferfleet.schemas.job import OnBusy
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.schemas.names import CONTROL_EXCHANGE, job_key
from inferfleet.wire.redis.records import JobRecords

LONG: dict[str, Any] = {"retry_base_s": 3600.0, "retry_cap_s": 3600.0}


async def paused(fleet: Fleet, store: aioredis.Redis, pool: str, **options: Any) -> Job:
    """A job that has failed after ten tokens, and waits."""
    body = chat("one", max_tokens=30, simulated={"fail": "engine_error", "fail_times": 1, "after_tokens": 10})
    job = await fleet.submit(body, pool=pool, **options)
    await until_paused(store, job)
    return job


async def until_paused(store: aioredis.Redis, job: Job) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance(last := (await journal_of(store, job))[-1], QueuedEntry) or last.attempt == 0:
            await asyncio.sleep(0.02)


async def test_a_cancelled_turn_lets_the_next_one_run(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(**LONG)
    session_id = f"s-{uuid4()}"
    first = await paused(fleet, store, pool, session_id=session_id)
    second = await fleet.submit(chat("two"), pool=pool, session_id=session_id, on_busy=OnBusy.ENQUEUE)
    assert await fleet.cancel(first) is JobState.CANCELLED
    assert (await fleet.wait(second, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_an_interrupted_turn_lets_the_next_one_run_behind_what_it_said(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(**LONG)
    session_id = f"s-{uuid4()}"
    first = await paused(fleet, store, pool, session_id=session_id)
    second = await fleet.submit(chat("two"), pool=pool, session_id=session_id, on_busy=OnBusy.INTERRUPT)
    assert (await fleet.wait(second, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    interrupted = await fleet.wait(first, timeout_s=PATIENCE_S)
    assert (interrupted.state, interrupted.usage.completion_tokens) == (JobState.CANCELLED, 10)


async def test_a_cancel_is_of_the_job_as_it_is_and_not_as_it_was(
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    foreign: ForeignClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client reads the record before a first attempt that fails, and cancels behind it."""
    job = await fleet.submit(chat(simulated={"fail": "engine_error", "fail_times": 1}), pool=pool)
    read = JobRecords.get
    reads: list[JobState] = []

    async def read_and_wait(records: JobRecords, job_id: str) -> JobRecord:
        record = await read(records, job_id)
        if not reads:
            await start_worker(**LONG)
            await until_paused(store, job)
        reads.append(record.state)
        return record

    orders: asyncio.Queue[aiormq.abc.DeliveredMessage] = asyncio.Queue()
    queue = (await foreign.channel.queue_declare(exclusive=True)).queue
    assert queue is not None
    await foreign.channel.queue_bind(queue, CONTROL_EXCHANGE)
    await foreign.channel.basic_consume(queue, orders.put, no_ack=True)
    monkeypatch.setattr(JobRecords, "get", read_and_wait)
    assert await fleet.cancel(job) is JobState.CANCELLED
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).attempts == 1
    # Its worker is told, and keeps its message no longer.
    async with asyncio.timeout(PATIENCE_S):
        while job.id.encode() not in (await orders.get()).body:
            pass


async def test_a_job_that_fails_when_it_is_to_be_cancelled_does_not_pause_first(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(**LONG)
    failing = {"fail": "engine_error", "after_tokens": 40}
    body = slow_chat(tokens=80, step_s=0.02)
    job = await fleet.submit({**body, "simulated": {**body["simulated"], **failing}}, pool=pool)
    await until_running(fleet, job)
    # The mark without the order, as when the order is lost.
    await store.hset(job_key(job.id), "cancel", "cancel")
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.CANCELLED


async def test_a_cancelled_job_counts_its_attempts_as_every_other_end_does(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    """Those that a drain ended do not count."""
    job = await fleet.submit(slow_chat(tokens=500, step_s=0.02), pool=pool, stream=True)
    for tokens in (5, 25):
        worker = await start_worker()
        await until_tokens(fleet, job, tokens)
        await worker.stop()
    assert await fleet.cancel(job) is JobState.CANCELLED
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).attempts == 0
    record = await fleet.get(job)
    assert (record.attempt, record.attempts) == (2, 0)
