"""Jobs whose messages RabbitMQ has lost, or whose ends Redis has lost, run again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    answer_to,
    chat,
    eventually,
    journal_of,
    kinds_of,
    slow_chat,
    until_tokens,
)
from tests.integration.test_stalled_jobs import stall

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import JournalEntry, QueuedEntry
from inferfleet.schemas.message import message_body
from inferfleet.schemas.names import job_queue, open_key, request_key
from inferfleet.wire.redis.records import JobRecords

SWEEP_S = 0.4
"""The interval of sweeps: what is lost for longer was found several times over."""


async def open_in(store: aioredis.Redis, pool: str, priority: int = 4) -> set[str]:
    entries: list[Any] = await store.zrange(open_key(pool, priority), 0, -1)
    return {job_id.decode() for job_id in entries}


def was_republished(journal: list[JournalEntry]) -> bool:
    return any(isinstance(entry, QueuedEntry) and entry.republished for entry in journal)


async def test_an_accepted_job_is_open_and_its_request_is_kept_until_it_has_ended(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool, priority=7)
    assert await open_in(store, pool, 7) == {job.id}
    assert await store.get(request_key(job.id)) == message_body(job)
    assert await store.ttl(request_key(job.id)) > 600

    await start_worker()
    await fleet.wait(job, timeout_s=PATIENCE_S)

    async def is_closed() -> bool:
        return await open_in(store, pool, 7) == set()

    await eventually(is_closed)
    assert await store.exists(request_key(job.id)) == 0


async def test_a_cancelled_job_leaves_neither_an_entry_nor_its_request(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await fleet.cancel(job)

    async def is_closed() -> bool:
        return await open_in(store, pool) == set()

    await eventually(is_closed)
    assert await store.exists(request_key(job.id)) == 0


@pytest.mark.parametrize("loss", ["purge", "delete"])
async def test_jobs_whose_queue_is_emptied_end_once_while_those_that_run_go_on(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    loss: str,
) -> None:
    worker = await start_worker(max_running=2, look_ahead=0, sweep_interval_s=SWEEP_S)
    running = [
        await fleet.submit(slow_chat(f"running {n}", tokens=40, step_s=0.1), pool=pool) for n in range(2)
    ]
    for job in running:
        await until_tokens(fleet, job)
    waiting = await fleet.submit_many(
        Job(pool=pool, body=chat(f"waiting {n}"), priority=n % 3, idempotency_key=f"{pool}-{n}")
        for n in range(40)
    )
    if loss == "purge":
        await foreign.channel.queue_purge(job_queue(pool))
    else:
        await foreign.channel.queue_delete(job_queue(pool))
    again = await fleet.submit(waiting[0].model_copy(update={"id": new_job_id()}))
    assert again.id == waiting[0].id

    results = await fleet.wait_many([*running, *waiting], timeout_s=PATIENCE_S)

    for job, result in zip([*running, *waiting], results, strict=True):
        assert (result.state, result.text) == (JobState.SUCCEEDED, answer_to(job))
        journal = await journal_of(store, job)
        kinds = kinds_of(journal)
        assert kinds.count("finished") == kinds.count("running") == 1
        assert was_republished(journal) is (job in waiting)
    assert not worker.running.done()


async def test_a_job_that_is_lost_between_others_is_found_by_those_that_came_later(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """The queue is never seen empty."""
    lost = await fleet.submit("lost", pool=pool)
    message = await foreign.channel.basic_get(job_queue(pool), no_ack=True)
    assert message.header.properties.message_id == lost.id
    await start_worker(max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S)
    stopping = asyncio.Event()

    async def keep_busy() -> None:
        backlog = [await fleet.submit(slow_chat("busy", tokens=1, step_s=0.02), pool=pool) for _ in range(50)]
        while not stopping.is_set():
            backlog.append(await fleet.submit(slow_chat("busy", tokens=1, step_s=0.02), pool=pool))
            await fleet.wait(backlog.pop(0), timeout_s=PATIENCE_S)

    busy = asyncio.create_task(keep_busy())
    assert (await fleet.wait(lost, timeout_s=PATIENCE_S)).text == answer_to(lost)
    stopping.set()
    await busy
    assert was_republished(await journal_of(store, lost))


async def test_a_job_whose_end_redis_has_forgotten_ends_again(
    fleet: Fleet,
    records: JobRecords,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await stall(records, foreign, job)
    await start_worker(sweep_interval_s=SWEEP_S)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    assert kinds_of(await journal_of(store, job)).count("finished") == 1
