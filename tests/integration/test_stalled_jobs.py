"""A record without a message, since Redis has come back without the end of a job; and one with two."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    answer_to,
    chat,
    eventually,
)

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import PublishUnconfirmedError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import AnswerHead, TokenChunk
from inferfleet.schemas.names import job_key, job_queue, result_key
from inferfleet.wire.redis.job_reading import Standing
from inferfleet.wire.redis.journal_lines import PendingTokens
from inferfleet.wire.redis.records import JobRecords


async def stall(records: JobRecords, foreign: ForeignClient, job: Job) -> None:
    """Begin a submitted job, and lose its message, its worker, and whatever that wrote at the end."""
    message = await foreign.channel.basic_get(job_queue(foreign.pool), no_ack=True)
    assert message.header.properties.message_id == job.id
    started = await records.start(
        job,
        token=new_job_id(),
        worker_id="forgotten",
        lease_s=0.01,
        resumable=True,
        alone=True,
        reply_to="",
        model_identity="",
    )
    said = PendingTokens(
        0,
        (TokenChunk(token_ids=(1, 2), text="so far"),),
        AnswerHead(endpoint=job.endpoint, model="m", prompt_tokens=3),
    )
    await records.append(job.id, fence=started.fence, lease_s=0.01, pending=said)

    async def is_stalled() -> bool:
        return await records.standing(job.id) is Standing.STALLED

    await eventually(is_stalled)


async def test_a_job_that_no_worker_has_ends_when_it_is_cancelled_with_what_it_said(
    fleet: Fleet, records: JobRecords, foreign: ForeignClient, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await stall(records, foreign, job)
    assert await fleet.cancel(job) is JobState.CANCELLED
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.text, result.usage.completion_tokens) == ("cancelled", "so far", 2)


@pytest.mark.parametrize("key", [None, "key"])
async def test_a_job_that_no_worker_has_runs_when_it_is_submitted_again(
    fleet: Fleet,
    records: JobRecords,
    foreign: ForeignClient,
    start_worker: StartWorker,
    pool: str,
    key: str | None,
) -> None:
    job = await fleet.submit(Job(pool=pool, body=chat(), idempotency_key=key and f"{key}-{pool}"))
    assert (await fleet.submit(job)).id == job.id
    while await foreign.waiting() > 1:
        await foreign.channel.basic_get(job_queue(pool), no_ack=True)
    await stall(records, foreign, job)
    assert (await fleet.submit(job)).id == job.id
    assert await foreign.waiting() == 1
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    # Its end is known from here on.
    await fleet.submit(job)
    assert await foreign.waiting() == 0


async def test_however_often_such_a_job_is_submitted_again_it_is_published_once_for_each_attempt(
    fleet: Fleet, records: JobRecords, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    job = await fleet.submit(Job(pool=pool, body=chat(), idempotency_key=pool))
    await stall(records, foreign, job)
    for _ in range(3):
        assert (await fleet.submit(job)).id == job.id
    assert await foreign.waiting() == 1
    # Its next attempt is lost, too.
    await stall(records, foreign, job)
    for _ in range(3):
        await fleet.submit(job)
    assert await foreign.waiting() == 1
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_a_job_that_ended_longer_ago_than_its_result_is_kept_stays_as_it_was_when_it_is_cancelled(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await fleet.cancel(job)
    await store.delete(result_key(job.id))
    assert await fleet.cancel(job) is JobState.CANCELLED


async def test_it_is_left_open_whether_such_a_job_runs_if_it_cannot_be_published(
    fleet: Fleet, connect: Connect, records: JobRecords, foreign: ForeignClient, pool: str
) -> None:
    """It was accepted before, so nobody may be told that it was not."""
    job = await fleet.submit("hello", pool=pool)
    await stall(records, foreign, job)
    await foreign.channel.queue_delete(job_queue(pool))
    async with connect() as other:
        with pytest.raises(PublishUnconfirmedError):
            await other.submit(job)
    assert (await fleet.get(job)).state is JobState.RUNNING


async def test_a_job_that_is_queued_twice_is_remembered_for_as_long_as_its_second_message_may_wait(
    services: Services,
    connect: Connect,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
) -> None:
    async with Proxy(services.amqp_url) as link, connect(amqp_url=link.url, patience_s=PATIENCE_S) as fleet:
        await fleet.declare_pool(pool)
        once = await fleet.submit("once", pool=pool)
        link.hold(Direction.TO_CLIENT)
        submitting = asyncio.create_task(fleet.submit("twice", pool=pool))

        async def is_queued() -> bool:
            return await foreign.waiting() == 2

        await eventually(is_queued)
        await link.until_held(Direction.TO_CLIENT)
        assert link.reset()
        link.heal()
        twice = await submitting
        assert await foreign.waiting() == 3
        await start_worker()
        await fleet.wait_many([once, twice], timeout_s=PATIENCE_S)
    assert await store.ttl(job_key(once.id)) <= 600 < await store.ttl(job_key(twice.id))
